"""The losses of the re-training methods against plain loops in NumPy, and how far numbers may go."""

import math

import numpy as np
import pytest
import torch

from losses import (
    LOSSES,
    LabelAwareSmoothing,
    build_loss,
    effective_number_weights,
    inverse_power_weights,
)

COUNTS = [40, 17, 5, 2, 1]
OPTIONS = {"los": {"label_smooth": 0.9}}
NAMES = sorted(LOSSES)
OTHER_OPTIONS = [
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 2.0}),
    ("cb", {"beta": 0.9}),
    ("power", {"rho": 0.5}),
    ("bsce", {"tau": 1.7}),
    ("ldam", {"max_margin": 0.2, "scale": 7.0}),
    ("lade", {"alpha": 0.7, "lam": 0.2}),
    ("label_aware", {"eps_head": 0.3, "eps_tail": 0.0}),
    ("wb", {"beta": 0.9}),
]
CASES = [(name, OPTIONS.get(name, {})) for name in NAMES] + OTHER_OPTIONS


@pytest.fixture
def double():
    """Losses built in double precision, so that the comparison can be tight."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name, counts=COUNTS, **options):
    return build_loss(name, counts, **{**OPTIONS.get(name, {}), **options})


def batch(size=9, dtype=torch.float64):
    """Class 1 has no image in the batch and class 4, with one in training, has one."""
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(size, 5, generator=generator, dtype=dtype)
    targets = torch.tensor([0, 2, 4, 3, 0, 2, 0, 3, 0])[:size]
    return logits, targets


# ---- references: one image, one class at a time ----


def log_softmax(row):
    top = max(row)
    log_sum = top + math.log(sum(math.exp(z - top) for z in row))
    return [z - log_sum for z in row]


def plain_ce(row, y):
    return -log_softmax(row)[y]


def summing_to_classes(raw):
    return [len(raw) * w / sum(raw) for w in raw]


def cb_weights(counts, beta):
    return summing_to_classes([(1 - beta) / (1 - beta**n) for n in counts])


def power_weights(counts, rho):
    return summing_to_classes([(n / sum(counts)) ** -rho for n in counts])


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def ce_reference(rows, ys, counts):
    return mean(plain_ce(row, y) for row, y in zip(rows, ys, strict=True))


def los_reference(rows, ys, counts, label_smooth):
    total = 0.0
    for row, y in zip(rows, ys, strict=True):
        for k, log_p in enumerate(log_softmax(row)):
            total -= ((1 - label_smooth) * (k == y) + label_smooth / len(row)) * log_p
    return total / len(rows)


def focal_reference(rows, ys, counts, gamma=1.0):
    total = 0.0
    for row, y in zip(rows, ys, strict=True):
        p = math.exp(log_softmax(row)[y])
        total += (1 - p) ** gamma * -math.log(p)
    return total / len(rows)


def weighted_mean(rows, ys, weights):
    total = sum(weights[y] * plain_ce(row, y) for row, y in zip(rows, ys, strict=True))
    return total / sum(weights[y] for y in ys)


def cb_reference(rows, ys, counts, beta=0.9999):
    return weighted_mean(rows, ys, cb_weights(counts, beta))


def power_reference(rows, ys, counts, rho=1.2):
    return weighted_mean(rows, ys, power_weights(counts, rho))


def bsce_reference(rows, ys, counts, tau=1.0):
    shifted = [[z + tau * math.log(n) for z, n in zip(row, counts, strict=True)] for row in rows]
    return ce_reference(shifted, ys, counts)


def ldam_reference(rows, ys, counts, max_margin=0.5, scale=30.0):
    constant = max_margin / max(1 / n**0.25 for n in counts)
    total = 0.0
    for row, y in zip(rows, ys, strict=True):
        moved = [z - scale * constant / counts[k] ** 0.25 * (k == y) for k, z in enumerate(row)]
        total += plain_ce(moved, y)
    return total / len(rows)


def lade_reference(rows, ys, counts, alpha=0.1, lam=0.01):
    num_classes, prior = len(counts), [n / sum(counts) for n in counts]
    bound = 0.0
    for c in range(num_classes):
        own = [row[c] for row, y in zip(rows, ys, strict=True) if y == c]
        level = math.log(mean(math.exp(row[c]) / prior[c] / num_classes for row in rows))
        bound += prior[c] * (-(mean(own) if own else 0.0) + level + lam * level**2)
    return bsce_reference(rows, ys, counts) + alpha * bound


def label_aware_reference(rows, ys, counts, eps_head=0.4, eps_tail=0.1):
    total = 0.0
    for row, y in zip(rows, ys, strict=True):
        angle = math.pi * (counts[y] - min(counts)) / (2 * (max(counts) - min(counts)))
        eps = eps_tail + (eps_head - eps_tail) * math.sin(angle)
        total += los_reference([row], [y], counts, eps)
    return total / len(rows)


def wb_reference(rows, ys, counts, beta=0.9999):
    weights = cb_weights(counts, beta)
    total = 0.0
    for row, y in zip(rows, ys, strict=True):
        for c, log_p in enumerate(log_softmax(row)):
            p = math.exp(log_p)
            total -= weights[y] * (math.log(p) if c == y else math.log(1 - p))
    return total / (len(rows) * len(counts))


REFERENCES = {
    "ce": ce_reference,
    "los": los_reference,
    "focal": focal_reference,
    "cb": cb_reference,
    "power": power_reference,
    "bsce": bsce_reference,
    "ldam": ldam_reference,
    "lade": lade_reference,
    "label_aware": label_aware_reference,
    "wb": wb_reference,
}


# ---- value and gradient ----


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_loss_equals_plain_loops_over_images_and_classes(double, name, options):
    logits, targets = batch()
    expected = REFERENCES[name](logits.tolist(), targets.tolist(), COUNTS, **options)
    found = build(name, **options)(logits, targets)
    assert found.shape == () and float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_gradient_passes_gradcheck(double, name, options):
    logits, targets = batch()
    assert torch.autograd.gradcheck(lambda z: build(name, **options)(z, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(double, name):
    logits, targets = batch()
    order = torch.tensor([3, 8, 0, 6, 1, 7, 2, 5, 4])
    torch.testing.assert_close(
        build(name)(logits[order], targets[order]), build(name)(logits, targets), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_logits_give_a_single_precision_loss_near_the_double_one(name):
    logits, targets = batch()
    single = build(name)(logits.float(), targets)
    both = build(name).double()(logits, targets)
    assert single.dtype == torch.float32 and both.dtype == torch.float64
    assert float(single) == pytest.approx(float(both), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_double_logits_need_no_conversion_of_the_loss(name):
    logits, targets = batch()
    assert build(name)(logits, targets).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_no_parameters_and_nothing_in_its_state_but_moves_with_to(name):
    loss_fn = build(name)
    assert not list(loss_fn.parameters()) and not loss_fn.state_dict()
    counted = name not in {"ce", "los", "focal"}
    assert [b.dtype for b in loss_fn.double().buffers()] == [torch.float64] * counted
    assert all(b.is_meta for b in loss_fn.to("meta").buffers())


# ---- far logits ----


def far_logits():
    """Won, lost, tied at the top, all equal, and one far below: each by 1e4."""
    logits = torch.zeros(6, 5)
    logits[0, 0] = logits[1, 1] = logits[2, 0] = logits[2, 1] = 1e4
    logits[3], logits[4, 0] = -1e4, -1e4
    logits[5] = torch.tensor([1e4, -1e4, 1e4, -1e4, 0])
    return logits.requires_grad_(), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_loss_and_gradient_are_finite_at_huge_logits_in_single_precision(name, options):
    logits, targets = far_logits()
    loss = build(name, **options)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_the_focal_gradient_fades_to_zero_as_the_true_class_takes_all(gamma):
    sizes = []
    for gap in (5.0, 15.0, 17.0, 40.0, 1e4):
        logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
        build("focal", gamma=gamma)(logits, torch.tensor([0])).backward()
        sizes.append(float(logits.grad.abs().max()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0


def test_the_focal_loss_keeps_its_digits_where_a_probability_rounds_to_one():
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    rest = 2 * math.exp(-30)
    found = float(build("focal", gamma=0.5)(logits, torch.tensor([0])))
    assert found == pytest.approx(rest**1.5, rel=1e-5, abs=0) and float(logits.softmax(1)[0, 0]) == 1


def test_weight_balancing_pays_the_whole_gap_where_a_wrong_class_takes_all(double):
    logits = torch.tensor([[0.0, 1e4, 0.0, 0.0, 0.0]])
    # log p of the true class is -1e4, and log(1 - p) of the wrong one is log 4 - 1e4.
    weight = float(effective_number_weights(COUNTS)[0])
    expected = weight * (2e4 - math.log(4)) / 5
    assert float(build("wb")(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-12)


# ---- weights, margins and norms ----


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-9])
def test_effective_number_weights_follow_the_formula_and_sum_to_the_number_of_classes(beta):
    weights = effective_number_weights(COUNTS, beta)
    np.testing.assert_allclose(weights, cb_weights(COUNTS, beta), rtol=1e-12)
    assert weights.dtype == torch.float64 and float(weights.sum()) == pytest.approx(5)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.2])
def test_inverse_power_weights_follow_the_formula_and_sum_to_the_number_of_classes(rho):
    weights = inverse_power_weights(COUNTS, rho)
    np.testing.assert_allclose(weights, power_weights(COUNTS, rho), rtol=1e-12)


def test_margins_fall_with_the_fourth_root_of_the_count_from_the_largest(double):
    margins = build_loss("ldam", [32, 2, 162], max_margin=0.5, scale=1.0).margins
    torch.testing.assert_close(margins, torch.tensor([0.5 / 2, 0.5, 0.5 / 3]))


def test_label_aware_smoothing_runs_from_tail_to_head_along_a_sine(double):
    eps = LabelAwareSmoothing([101, 51, 1], eps_head=0.4, eps_tail=0.1).eps
    torch.testing.assert_close(eps, torch.tensor([0.4, 0.1 + 0.3 * math.sin(math.pi / 4), 0.1]))
