"""What LOS is: its identity with the frequency-weighted logits magnitude, its optimum, its file alone."""

import math
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import losses.label_over_smooth as module
from losses import LabelOverSmooth, build_loss, label_smooth_for_gap, logit_gap
from utils.metrics import logits_magnitude

DELTAS = [0.0, 0.5, 0.9999]


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
def test_the_loss_is_cross_entropy_against_the_soft_labels_with_softmax_minus_label_as_gradient(
    delta, num_classes
):
    logits, targets, _ = long_tailed_batch(num_classes)
    labels = (1 - delta) * F.one_hot(targets, num_classes).float() + delta / num_classes
    loss = LabelOverSmooth(delta)(logits.requires_grad_(), targets)
    assert torch.equal(loss, F.cross_entropy(logits, targets, label_smoothing=delta))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels.double()))
    loss.backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - labels.double()) / len(targets))


# ---- the identity: cross-entropy plus a penalty on the frequency-weighted logits magnitude ----


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_loss_is_cross_entropy_plus_delta_times_the_frequency_weighted_loma(delta, num_classes):
    logits, targets, shares = long_tailed_batch(num_classes)
    one, other = (logits_magnitude(logits, targets, reading) for reading in ("per_sample", "per_class"))
    plain, found = F.cross_entropy(logits, targets), LabelOverSmooth(delta)(logits, targets)
    factor = delta * (num_classes - 1) / num_classes
    assert abs(float(found - plain - factor * (shares * one).sum())) < 1e-10
    # in the other reading of LoMa it does not hold, though the mean over classes is the same
    assert abs(float(one.mean() - other.mean())) < 1e-10
    if num_classes > 2 and delta > 0.5:
        assert abs(float(found - plain - factor * (shares * other).sum())) > 0.1


@pytest.mark.parametrize("delta", [0.5, 0.98])
def test_the_gradient_of_a_linear_head_adds_each_class_mean_by_frequency_whatever_is_predicted(delta):
    """∇ LOS = ∇ CE + δ (π_k μ_k - μ / K): the closed first step asks for ∇ CE near 0 and for nothing else."""
    logits, targets, shares = long_tailed_batch(10)
    features = torch.cat([logits, torch.ones(len(logits), 1, dtype=torch.float64)], dim=1)  # the bias last
    weight = torch.randn(10, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight.requires_grad_()
    los, ce = (
        torch.autograd.grad(LabelOverSmooth(value)(features @ weight.T, targets), weight)[0]
        for value in (delta, 0.0)
    )
    means = torch.stack([features[targets == k].mean(0) for k in range(10)])
    expected = delta * (shares[:, None] * means - features.mean(0) / 10)
    assert float(ce.abs().max()) > 0.1
    torch.testing.assert_close(los - ce, expected, atol=1e-12, rtol=0)


def test_under_equal_shares_the_penalty_is_the_plain_mean_of_loma_and_no_class_is_asked_for_more():
    logits, targets, _ = long_tailed_batch(10)
    balanced = (10 * torch.bincount(targets).double()).reciprocal()[targets]  # of an image, in expectation
    los, ce = (
        F.cross_entropy(logits, targets, label_smoothing=delta, reduction="none") for delta in (0.98, 0)
    )
    penalty = 0.98 * 9 / 10 * logits_magnitude(logits, targets).mean()
    assert abs(float(balanced @ (los - ce) - penalty)) < 1e-10


# ---- the gap at the optimum ----


@pytest.mark.parametrize("delta", [1e-6, *DELTAS[1:]])
@pytest.mark.parametrize("num_classes", [2, 100, 8142])
def test_the_gradient_vanishes_at_the_logit_gap_and_nowhere_beside_it(delta, num_classes):
    targets, largest = torch.tensor([1, 0]), []
    gap = logit_gap(delta, num_classes)
    assert label_smooth_for_gap(gap, num_classes) == pytest.approx(delta, rel=1e-9)
    for factor in (1.0, 1.1, 0.9):
        logits = (factor * gap * F.one_hot(targets, num_classes).double() + 2.5).requires_grad_()
        LabelOverSmooth(delta)(logits, targets).backward()
        largest.append(float(logits.grad.abs().max()))
    assert largest[0] < 1e-12 and min(largest[1:]) > 1e-8


def test_the_published_smoothing_means_a_gap_of_1_11_which_is_another_smoothing_for_other_classes():
    gap = logit_gap(0.98, 100)
    assert gap == pytest.approx(math.log(0.0298 / 0.0098)) and round(gap, 2) == 1.11
    found = [label_smooth_for_gap(gap, num_classes) for num_classes in (10, 1000, 8142)]
    assert found == pytest.approx([0.8305, 0.99796, 0.99975], abs=5e-5)


def test_no_smoothing_means_an_unbounded_gap_and_the_reverse_and_other_gaps_are_refused():
    assert logit_gap(0, 100) == math.inf
    assert label_smooth_for_gap(math.inf, 100) == label_smooth_for_gap(701.0, 100) == 0
    assert 0 <= label_smooth_for_gap(699.0, 100) < 1e-290
    for gap in (0, -1, math.nan, -math.inf):
        with pytest.raises(ValueError, match="logit_gap must be above 0"):
            label_smooth_for_gap(gap, 100)


# ---- the module ----


def test_the_table_builds_the_same_loss_whatever_the_class_counts_and_it_shows_its_smoothing():
    logits, targets, _ = long_tailed_batch(10)
    for counts in (None, list(range(10, 0, -1))):
        found = build_loss("los", counts, label_smooth=0.98)
        assert torch.equal(found(logits, targets), LabelOverSmooth(0.98)(logits, targets))
        assert repr(found) == "LabelOverSmooth(label_smooth=0.98)"


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
