"""The move of the logits, on whose scale --select val places the learning rates of every method."""

from copy import deepcopy

import pytest
import torch

from losses import build_loss
from models import build_head
from tests.heads import COUNTS, K, seeded, stage1_classifier, training_set
from tests.stage2 import frozen_features, settle
from utils.base.errors import UserError
from utils.heads import move
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan, plan_heads
from utils.settings.methods import METHODS

TRAINED = [name for name, method in METHODS.items() if method.trained]


def started(name: str) -> tuple:
    """Plan, head, loss, features [N, D] and labels [N] of a method at its start."""
    method, (features, labels) = METHODS[name], training_set()
    options = method.options | {"label_smooth": 0.9} if name.startswith("los") else method.options
    fc, x = stage1_classifier().float(), features.float()
    head = build_head(method.head, fc, COUNTS, seeded(6), x, labels, **method.head_options(options))
    loss = build_loss(method.loss, COUNTS, **method.loss_options(options))
    return HeadPlan(method, options, 10, None, 0.0, 0), head, loss, x, labels


@pytest.mark.parametrize("name", TRAINED)
def test_the_move_is_what_a_short_step_against_the_gradient_of_the_whole_loss_changes(name):
    plan, head, loss, x, labels = started(name)
    found = move.logit_move(plan, head, loss, x, labels)
    exact, loss, x = deepcopy(head).double(), loss.double(), x.double()
    weight = torch.ones(len(labels), dtype=torch.float64)
    value = loss(exact(x), labels)
    if plan.method.sampler == "balanced":
        value = sum(loss(exact(x[labels == k]), labels[labels == k]) for k in range(K)) / K
        weight = (len(labels) / K / torch.tensor(COUNTS, dtype=torch.float64))[labels]
    moved, short = deepcopy(exact), 1e-7
    value.backward()
    with torch.no_grad():
        for (tensor, parameter), other in zip(exact.named_parameters(), moved.parameters(), strict=True):
            factor = 0.2 if name == "label_aware" and tensor != "scale" else 1.0
            other.sub_(short * factor * parameter.grad)
        change = (moved(x) - exact(x)) / short
    change = change - change.mean(1, keepdim=True)
    expected = ((change.square().mean(1) * weight).sum() / len(labels)).sqrt()
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_images_that_do_not_lie_in_memory_together_make_the_same_move(monkeypatch):
    plan, head, loss, x, labels = started("ce")
    whole = move.logit_move(plan, head, loss, x, labels)
    monkeypatch.setattr(move, "_LOGITS", 3 * K)
    assert move.logit_move(plan, head, loss, x, labels) == pytest.approx(whole, rel=1e-5)


def test_a_head_whose_logits_do_not_move_is_refused_with_advice():
    plan, head, loss, x, labels = started("lws")
    head.bias.zero_()
    with pytest.raises(UserError, match="give --finetune_lr"):
        move.logit_move(plan, head, loss, 0 * x, labels)


def test_the_learning_rate_of_a_plan_makes_its_move_in_all_its_steps_together(digits):
    config = settle(digits, "--method", "los,crt", "--select", "val", "--seed", "0")
    frozen = frozen_features(digits, "--views", "0")
    for plan in plan_heads(config)[0][1:]:
        head = HeadRun(plan, frozen, config)
        one = move.logit_move(plan, head.head, head.loss_fn, frozen.train.plain(), frozen.train.labels)
        steps = head.steps * sum(head.rate(epoch) for epoch in range(plan.epochs))
        assert steps / (1 - config.momentum) * one == pytest.approx(plan.options["move"], rel=1e-6)
    assert len(frozen.moves) == 3 + 1, "once for each label of los, once for crt"
