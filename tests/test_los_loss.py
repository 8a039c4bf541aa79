"""The loss: against torch's own label smoothing, by hand, at its optimum, and what it refuses."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses.label_over_smooth as module
from losses import LabelOverSmooth, build_loss, label_smooth_for_gap, logit_gap, smooth_labels
from utils.metrics import logits_magnitude

DELTAS = [0.0, 0.1, 0.5, 0.98, 0.9999]


def batch(num_classes=10, size=32, dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(num_classes)
    logits = scale * torch.randn(size, num_classes, generator=generator, dtype=dtype)
    return logits, torch.randint(0, num_classes, (size,), generator=generator)


# ---- value ----


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_loss_equals_torch_cross_entropy_with_label_smoothing(delta, num_classes):
    logits, targets = batch(num_classes)
    expected = F.cross_entropy(logits, targets, label_smoothing=delta)
    torch.testing.assert_close(LabelOverSmooth(delta)(logits, targets), expected, rtol=0, atol=0)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_loss_equals_a_computation_by_hand_in_numpy(delta, num_classes):
    logits, targets = batch(num_classes)
    total = 0.0
    for row, target in zip(logits.numpy(), targets.tolist(), strict=True):
        log_sum = row.max() + np.log(np.sum(np.exp(row - row.max())))
        for k in range(num_classes):
            label = delta / num_classes + (1 - delta if k == target else 0)
            total -= label * (row[k] - log_sum)
    assert float(LabelOverSmooth(delta)(logits, targets)) == pytest.approx(total / len(logits), rel=1e-12)


@pytest.mark.parametrize("delta", DELTAS)
def test_the_loss_equals_cross_entropy_against_the_soft_labels(delta):
    logits, targets = batch(dtype=torch.float32)
    soft = smooth_labels(targets, 10, delta)
    torch.testing.assert_close(LabelOverSmooth(delta)(logits, targets), F.cross_entropy(logits, soft))


def test_the_loss_is_a_scalar_mean_over_the_batch():
    logits, targets = batch()
    loss_fn = LabelOverSmooth(0.9)
    each = torch.stack([loss_fn(logits[i : i + 1], targets[i : i + 1]) for i in range(len(logits))])
    assert loss_fn(logits, targets).shape == ()
    torch.testing.assert_close(loss_fn(logits, targets), each.mean())


def test_zero_smoothing_is_the_cross_entropy_of_the_table():
    logits, targets = batch()
    assert torch.equal(LabelOverSmooth(0)(logits, targets), build_loss("ce")(logits, targets))


def test_the_loss_does_not_change_with_a_constant_added_to_all_logits():
    logits, targets = batch()
    shift = torch.linspace(-50, 50, len(logits), dtype=torch.float64)[:, None]
    loss_fn = LabelOverSmooth(0.98)
    torch.testing.assert_close(loss_fn(logits + shift, targets), loss_fn(logits, targets))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_huge_logits_in_float32(scale):
    logits = torch.zeros(3, 100)
    logits[0, 0], logits[1, 1:], logits[2] = scale, scale, scale
    logits.requires_grad_()
    loss = LabelOverSmooth(0.98)(logits, torch.tensor([0, 0, 0]))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("delta", DELTAS)
def test_the_gradient_passes_gradcheck_and_equals_softmax_minus_label(delta):
    logits, targets = batch(size=6)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: LabelOverSmooth(delta)(z, targets), logits)
    LabelOverSmooth(delta)(logits, targets).backward()
    labels = torch.full((6, 10), delta / 10, dtype=torch.float64)
    labels[torch.arange(6), targets] += 1 - delta
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - labels) / 6)


# ---- the identity: cross-entropy plus a penalty on the frequency-weighted logits magnitude ----


def long_tailed_batch(num_classes, scale=3.0):
    """Logits [N, K] in float64, targets with many images of class 0 and one of the last, and shares π [K]."""
    counts = torch.tensor([max(1, int(40 * 0.5**k)) for k in range(num_classes)])
    targets = torch.arange(num_classes).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(num_classes)
    logits = scale * torch.randn(len(targets), num_classes, generator=generator, dtype=torch.float64)
    logits += 5 * F.one_hot(targets, num_classes) + torch.linspace(-9, 9, num_classes, dtype=torch.float64)
    return logits, targets, counts.double() / counts.sum()


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_loss_is_cross_entropy_plus_delta_times_the_frequency_weighted_loma(delta, num_classes):
    logits, targets, shares = long_tailed_batch(num_classes)
    penalty = (shares * logits_magnitude(logits, targets, "per_sample")).sum()
    expected = F.cross_entropy(logits, targets) + delta * (num_classes - 1) / num_classes * penalty
    assert abs(float(LabelOverSmooth(delta)(logits, targets) - expected)) < 1e-10


def test_with_the_other_reading_of_loma_the_identity_does_not_hold():
    logits, targets, shares = long_tailed_batch(10)
    penalty = (shares * logits_magnitude(logits, targets, "per_class")).sum()
    other = F.cross_entropy(logits, targets) + 0.98 * 9 / 10 * penalty
    assert abs(float(LabelOverSmooth(0.98)(logits, targets) - other)) > 0.1


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_mean_of_loma_over_classes_is_the_same_in_both_readings(num_classes):
    logits, targets, _ = long_tailed_batch(num_classes)
    one, other = (logits_magnitude(logits, targets, reading) for reading in ("per_sample", "per_class"))
    assert abs(float(one.mean() - other.mean())) < 1e-10
    assert num_classes == 2 or float((one - other).abs().max()) > 1


@pytest.mark.parametrize("delta", [0.5, 0.98])
def test_the_gradient_of_a_linear_head_adds_each_class_mean_by_frequency_whatever_is_predicted(delta):
    """∇ LOS = ∇ CE + δ (π_k μ_k - μ / K): the closed first step asks for ∇ CE near 0 and for nothing else."""
    logits, targets, shares = long_tailed_batch(10)
    features = torch.cat([logits, torch.ones(len(logits), 1, dtype=torch.float64)], dim=1)  # the bias last
    weight = torch.randn(
        10, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    los, ce = (
        torch.autograd.grad(LabelOverSmooth(value)(features @ weight.T, targets), weight)[0]
        for value in (delta, 0.0)
    )
    means = torch.stack([features[targets == k].mean(0) for k in range(10)])
    assert float(ce.abs().max()) > 0.1
    torch.testing.assert_close(
        los - ce, delta * (shares[:, None] * means - features.mean(0) / 10), atol=1e-12, rtol=0
    )


def test_under_equal_shares_the_penalty_is_the_plain_mean_of_loma_and_no_class_is_asked_for_more():
    logits, targets, _ = long_tailed_batch(10)
    balanced = (10 * torch.bincount(targets).double()).reciprocal()[targets]  # of an image, in expectation
    losses = F.cross_entropy(logits, targets, label_smoothing=0.98, reduction="none")
    plain = F.cross_entropy(logits, targets, reduction="none")
    penalty = 0.98 * 9 / 10 * logits_magnitude(logits, targets).mean()
    assert abs(float(balanced @ losses - balanced @ plain - penalty)) < 1e-10


# ---- labels and the gap at the optimum ----


def test_the_labels_of_the_paper_are_just_above_and_below_one_in_a_hundred():
    labels = smooth_labels(torch.tensor([3]), 100, 0.98)
    assert float(labels[0, 3]) == pytest.approx(0.0298)
    assert labels[0, torch.arange(100) != 3].tolist() == pytest.approx([0.0098] * 99)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_soft_labels_sum_to_one_and_prefer_the_true_class(delta, num_classes):
    targets = torch.arange(num_classes)[:50]
    labels = smooth_labels(targets, num_classes, delta)
    assert labels.shape == (len(targets), num_classes) and labels.dtype == torch.get_default_dtype()
    torch.testing.assert_close(labels.sum(1), torch.ones(len(targets)))
    assert torch.equal(labels.argmax(1), targets)


@pytest.mark.parametrize("delta", [0.1, 0.5, 0.98, 0.9999])
@pytest.mark.parametrize("num_classes", [2, 10, 100, 8142])
def test_the_gradient_vanishes_at_the_logit_gap_and_nowhere_beside_it(delta, num_classes):
    targets = torch.tensor([1, 0])
    largest = []
    for factor in (1.0, 1.1, 0.9):
        gap = factor * logit_gap(delta, num_classes)
        logits = (gap * F.one_hot(targets, num_classes).double() + 2.5).requires_grad_()
        LabelOverSmooth(delta)(logits, targets).backward()
        largest.append(float(logits.grad.abs().max()))
    assert largest[0] < 1e-13
    assert min(largest[1:]) > 1e-8


def test_the_published_smoothing_means_a_gap_of_1_11():
    assert logit_gap(0.98, 100) == pytest.approx(math.log(0.0298 / 0.0098))
    assert round(logit_gap(0.98, 100), 2) == 1.11


@pytest.mark.parametrize(
    ("num_classes", "delta", "digits"), [(10, 0.8305, 4), (1000, 0.99796, 5), (8142, 0.99975, 5)]
)
def test_the_same_gap_needs_another_smoothing_at_another_number_of_classes(num_classes, delta, digits):
    assert round(label_smooth_for_gap(logit_gap(0.98, 100), num_classes), digits) == delta


@pytest.mark.parametrize("num_classes", [2, 10, 100, 8142])
@pytest.mark.parametrize("delta", [1e-6, 0.1, 0.5, 0.98, 0.9999])
def test_label_smooth_for_gap_inverts_logit_gap(num_classes, delta):
    assert label_smooth_for_gap(logit_gap(delta, num_classes), num_classes) == pytest.approx(delta, rel=1e-9)


def test_no_smoothing_means_an_unbounded_gap_and_the_reverse():
    assert logit_gap(0, 100) == math.inf
    assert label_smooth_for_gap(math.inf, 100) == 0
    assert 0 <= label_smooth_for_gap(699.0, 100) < 1e-290
    assert label_smooth_for_gap(701.0, 100) == 0


# ---- refusals ----


@pytest.mark.parametrize("delta", [-0.1, -1e-9, float("nan"), float("-inf")])
def test_a_negative_smoothing_or_no_number_is_refused(delta):
    with pytest.raises(ValueError, match=r"label_smooth must be in \[0, 1\), got"):
        LabelOverSmooth(delta)


@pytest.mark.parametrize("delta", [1, 1.5, float("inf")])
def test_smoothing_of_one_or_more_is_refused_and_the_message_says_why(delta):
    with pytest.raises(ValueError, match=r"below 1, got .* at 1 every label is 1/K .* least likely"):
        LabelOverSmooth(delta)


@pytest.mark.parametrize("gap", [0, -1, float("nan"), float("-inf")])
def test_a_gap_that_is_not_positive_is_refused(gap):
    with pytest.raises(ValueError, match="logit_gap must be above 0"):
        label_smooth_for_gap(gap, 100)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown loss 'hinge', known: .*ce.*los"):
        build_loss("hinge")


# ---- the module ----


def test_the_table_builds_the_same_loss_whatever_the_class_counts():
    logits, targets = batch()
    plain = LabelOverSmooth(0.9)(logits, targets)
    for counts in (None, list(range(10, 0, -1))):
        assert torch.equal(build_loss("los", counts, label_smooth=0.9)(logits, targets), plain)


def test_the_loss_has_no_parameters_and_shows_its_smoothing():
    loss_fn = LabelOverSmooth(0.98)
    assert not list(loss_fn.parameters()) and not loss_fn.state_dict()
    assert repr(loss_fn) == "LabelOverSmooth(label_smooth=0.98)"


def test_the_loss_file_works_alone_in_another_project(tmp_path):
    shutil.copy(module.__file__, tmp_path / "label_over_smooth.py")
    program = """
import builtins, sys
asked = set()
real = builtins.__import__
def watched(name, globals=None, locals=None, fromlist=(), level=0):
    if globals and globals.get("__name__") == "label_over_smooth":
        asked.add((level, name.split(".")[0]))
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = watched
from label_over_smooth import LabelOverSmooth
builtins.__import__ = real
allowed = {"torch", *sys.stdlib_module_names}
foreign = {name for level, name in asked if level or name not in allowed}
assert asked and not foreign, foreign
import torch
print(float(LabelOverSmooth(0.5)(torch.zeros(1, 4), torch.tensor([0]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(math.log(4))
