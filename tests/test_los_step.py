"""The closed-form step of LOS against the gradient step that it stands for."""

import numpy as np
import pytest
import torch
from torch import nn

from losses import LabelOverSmooth
from models import build_head, head_from_state
from tests.heads import COUNTS, K, array, made, seeded, stage1_classifier, training_set

LABELS = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))


def separable(margin: float) -> tuple[nn.Linear, torch.Tensor]:
    """Features [28, K + 3] and a classifier of them whose right logit leads by `margin` or more."""
    generator = seeded(0)
    own = 2 * nn.functional.one_hot(LABELS, K) + torch.rand(len(LABELS), K, generator=generator)
    free = torch.randn(len(LABELS), 3, generator=generator)
    fc = nn.Linear(K + 3, K, dtype=torch.float64)
    with torch.no_grad():
        fc.weight.copy_(margin * torch.eye(K, K + 3))
        fc.bias.zero_()
    return fc, torch.cat([own, free], dim=1).double()


def gradient_step(fc: nn.Linear, features: torch.Tensor, label_smooth: float, lr: float) -> nn.Module:
    """The linear head after one full-batch step of plain gradient descent on LOS."""
    head = build_head("linear", fc)
    LabelOverSmooth(label_smooth)(head(features), LABELS).backward()
    torch.optim.SGD(head.parameters(), lr=lr).step()
    return head


def distance(head: nn.Module, other: nn.Module) -> float:
    pairs = zip(head.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("label_smooth", "lr"), [(0.98, 1.0), (0.5, 3.0), (0.98, 40.0)])
def test_it_is_the_gradient_step_of_los_where_training_predictions_are_one_hot(label_smooth, lr):
    fc, features = separable(margin=1000)
    assert torch.equal(fc(features).softmax(1), nn.functional.one_hot(LABELS, K).double())
    step = build_head("los_step", fc, features=features, labels=LABELS, strength=label_smooth * lr)
    assert distance(step, fc) > 0.1
    assert distance(step, gradient_step(fc, features, label_smooth, lr)) < 1e-10


def test_the_two_part_where_predictions_are_not_one_hot_and_meet_as_margins_grow():
    apart = []
    for margin in (0.5, 2, 8, 32):
        fc, features = separable(margin)
        step = build_head("los_step", fc, features=features, labels=LABELS, strength=0.9)
        apart.append(distance(step, gradient_step(fc, features, 0.9, 1.0)))
    assert apart == sorted(apart, reverse=True) and apart[0] > 0.1 and apart[-1] < 1e-10


def test_it_equals_its_formula_in_plain_loops():
    fc = stage1_classifier()
    head, features, labels = made("los_step", fc, strength=0.7), *map(array, training_set())
    for k in range(K):
        own = sum(features[labels == k]) / len(labels)  # π_k μ_k
        weight = array(fc.weight[k]) - 0.7 * (own - features.mean(axis=0) / K)
        np.testing.assert_allclose(array(head.weight[k]), weight, rtol=1e-12)
        bias = float(fc.bias[k]) - 0.7 * (COUNTS[k] / sum(COUNTS) - 1 / K)
        assert float(head.bias[k]) == pytest.approx(bias, rel=1e-12)


def test_a_step_of_strength_0_is_the_stage_1_classifier():
    fc = stage1_classifier()
    head = made("los_step", fc, strength=0.0)
    assert torch.equal(head.weight, fc.weight) and torch.equal(head.bias, fc.bias)


def test_a_class_without_training_feature_keeps_its_row_but_for_the_overall_mean():
    fc, (features, labels) = stage1_classifier(), training_set()
    features, labels = features[labels != 3], labels[labels != 3]
    head = build_head("los_step", fc, features=features, labels=labels, strength=0.7)
    torch.testing.assert_close(head.weight[3], fc.weight[3] + 0.7 * features.mean(0) / K)
    torch.testing.assert_close(head.bias[3], fc.bias[3] + 0.7 / K)


def test_its_state_is_that_of_a_linear_head_and_nothing_in_it_is_learned():
    head = made("los_step", stage1_classifier())
    assert set(head.state_dict()) == {"weight", "bias"} and isinstance(head, nn.Linear)
    assert not any(value.requires_grad for value in head.parameters())
    linear, (features, _) = head_from_state("linear", head.state_dict()), training_set()
    assert torch.equal(linear(features), head(features))


def test_features_or_labels_that_do_not_fit_are_refused():
    fc, (features, labels) = stage1_classifier(), training_set()
    with pytest.raises(ValueError, match=r"features must be \[28, 7\]"):
        build_head("los_step", fc, features=features[:, :1], labels=labels)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4, got 1\.\.5"):
        build_head("los_step", fc, features=features, labels=labels + 1)
