"""The path of LOS: a logit drop, the step and the learning rate that make it."""

import pytest
import torch
from torch import nn

from losses import LabelOverSmooth
from models import build_head
from models.heads.los_path import los_path_lr, path_strength
from tests.heads import COUNTS, K, seeded, stage1_classifier, training_set
from utils.engine.loop import cosine_lr


def shuffled() -> tuple[torch.Tensor, torch.Tensor]:
    """The training set with class 2 as the most frequent one."""
    features, labels = training_set()
    return features, torch.tensor([2, 1, 0, 3, 4])[labels]


def drop_at_own_mean(fc: nn.Linear, head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> float:
    """By how much the logit of the most frequent class fell at its mean feature."""
    first = int(labels.bincount().argmax())
    mean = features[labels == first].mean(0)
    return (fc(mean) - head(mean))[first].item()


@pytest.mark.parametrize("path", [0.25, 10.0])
def test_a_step_of_that_strength_drops_the_logit_by_exactly_the_path(path):
    fc, (features, labels) = stage1_classifier(), shuffled()
    strength = path_strength(path, features, labels, K)
    head = build_head("los_step", fc, features=features, labels=labels, strength=strength)
    assert drop_at_own_mean(fc, head, features, labels) == pytest.approx(path, rel=1e-12)


@pytest.mark.parametrize(("label_smooth", "schedule_sum", "momentum"), [(0.98, 100.0, 0.9), (0.5, 7.5, 0.0)])
def test_the_learning_rate_makes_the_step_of_that_strength(label_smooth, schedule_sum, momentum):
    features, labels = shuffled()
    lr = los_path_lr(path_strength(1.5, features, labels, K), label_smooth, schedule_sum, momentum)
    step = label_smooth * lr * schedule_sum / (1 - momentum)
    assert step == pytest.approx(path_strength(1.5, features, labels, K), rel=1e-12)


@pytest.mark.parametrize(("momentum", "steps", "tolerance"), [(0.0, 20, 1e-9), (0.9, 400, 0.05)])
def test_training_at_that_rate_goes_the_path_while_predictions_stay_one_hot(momentum, steps, tolerance):
    labels = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))
    features = nn.functional.one_hot(labels, K) + 0.2 * torch.rand(len(labels), K, generator=seeded(0))
    features, fc = features.double(), nn.Linear(K, K, dtype=torch.float64)
    with torch.no_grad():
        fc.weight.copy_(2000 * torch.eye(K))
    rates = [cosine_lr(1.0, step, steps) for step in range(steps)]
    lr = los_path_lr(path_strength(2.0, features, labels, K), 0.9, sum(rates), momentum)
    head = build_head("linear", fc)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=momentum)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = lr * rate
        optimizer.zero_grad()
        LabelOverSmooth(0.9)(head(features), labels).backward()
        optimizer.step()
    assert drop_at_own_mean(fc, head, features, labels) == pytest.approx(2.0, rel=tolerance)


def test_balanced_classes_with_means_of_their_own_still_have_a_path():
    labels = torch.arange(K).repeat(3)
    assert path_strength(1.0, nn.functional.one_hot(labels, K).double(), labels, K) > 0


@pytest.mark.parametrize(
    "features",
    [torch.full((3 * K, 4), 1.1), torch.arange(K).repeat(3)[:, None] + 1.0],
    ids=["balanced classes of one mean", "balanced classes, the first with the shortest mean"],
)
def test_where_the_step_does_not_lower_the_logit_there_is_no_path(features):
    with pytest.raises(ValueError, match="LOS has no first-order path"):
        path_strength(1.0, features, torch.arange(K).repeat(3), K)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_smooth": 0.0}, "plain cross-entropy: give --finetune_lr"),
        ({"label_smooth": 1.0}, r"label_smooth must be in \[0, 1\)"),
        ({"schedule_sum": 0.0}, "schedule_sum must be a number above 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    ],
)
def test_what_gives_no_learning_rate_is_refused_with_its_reason(changed, message):
    wanted = {"strength": 1.0, "label_smooth": 0.9, "schedule_sum": 10.0, "momentum": 0.9}
    with pytest.raises(ValueError, match=message):
        los_path_lr(**wanted | changed)


@pytest.mark.parametrize(
    ("path", "num_classes", "message"),
    [(0.0, K, "path must be a number above 0"), (float("nan"), K, "path must be"), (1.0, 4, r"0\.\.3")],
)
def test_what_gives_no_strength_is_refused_with_its_reason(path, num_classes, message):
    with pytest.raises(ValueError, match=message):
        path_strength(path, *shuffled(), num_classes)
