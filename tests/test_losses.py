"""The losses against their formulas in NumPy and against each other, far logits, and what they refuse."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import (
    LOSSES,
    WeightedCrossEntropy,
    build_loss,
    effective_number_weights,
    inverse_power_weights,
    max_norm_,
    max_norm_limit,
)
from utils.metrics.logits import logits_magnitude

COUNTS = [40, 17, 5, 2, 1]
BALANCED = [8, 8, 8, 8, 8]
OPTIONS = {name: {"label_smooth": 0.9} for name in ("los", "los_weighted")}  # of losses without a default
NAMES = sorted(LOSSES)
COUNTED = ["cb", "power", "bsce", "ldam", "lade", "label_aware", "los_weighted", "wb"]
OTHER_OPTIONS = [
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 2.0}),
    ("cb", {"beta": 0.9}),
    ("power", {"rho": 0.5}),
    ("bsce", {"tau": 1.7}),
    ("ldam", {"max_margin": 0.2, "scale": 7.0}),
    ("lade", {"alpha": 0.7, "lam": 0.2}),
    ("label_aware", {"eps_head": 0.3, "eps_tail": 0.0}),
    ("los_weighted", {"label_smooth": 0.5, "power": 0.0}),
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


def batch(targets=(0, 2, 4, 3, 0, 2, 0, 3, 0)):
    """Class 1 has no image in the batch unless asked for; class 4, with one in training, has one."""
    generator = torch.Generator().manual_seed(9)
    return 3 * torch.randn(len(targets), 5, generator=generator, dtype=torch.float64), torch.tensor(targets)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---- references in NumPy: logits z [N, K], targets y [N], counts n [K] ----


def log_p(z):
    top = z.max(axis=1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))


def of_target(values, y):
    return np.array([row[k] for row, k in zip(values, y, strict=True)])


def onehot(y, num_classes=5):
    return np.eye(num_classes)[y]


def cb_weights(n, beta):
    raw = (1 - beta) / (1 - beta ** np.array(n))
    return len(n) * raw / raw.sum()


def power_weights(n, rho):
    raw = (np.array(n) / sum(n)) ** -rho
    return len(n) * raw / raw.sum()


def ce(z, y, n):
    return -of_target(log_p(z), y).mean()


def weighted(z, y, weights):
    return (weights[y] * -of_target(log_p(z), y)).sum() / weights[y].sum()


def smoothed(z, y, eps):
    """Against (1 - ε) onehot + ε / K, with an ε for each image."""
    labels = (1 - eps[:, None]) * onehot(y) + eps[:, None] / 5
    return -(labels * log_p(z)).sum(axis=1).mean()


def focal(z, y, n, gamma=1.0):
    p = np.exp(of_target(log_p(z), y))
    return ((1 - p) ** gamma * -np.log(p)).mean()


def bsce(z, y, n, tau=1.0):
    return ce(z + tau * np.log(n), y, n)


def ldam(z, y, n, max_margin=0.5, scale=30.0):
    margins = max_margin / (1 / n**0.25).max() / n**0.25
    return ce(z - scale * margins * onehot(y), y, n)


def lade(z, y, n, alpha=0.1, lam=0.01):
    prior = n / n.sum()
    own = np.array([z[y == c, c].mean() if (y == c).any() else 0 for c in range(5)])
    level = np.log((np.exp(z) / prior / 5).mean(axis=0))
    return bsce(z, y, n) + alpha * (prior * (-own + level + lam * level**2)).sum()


def label_aware(z, y, n, eps_head=0.4, eps_tail=0.1):
    eps = eps_tail + (eps_head - eps_tail) * np.sin(np.pi / 2 * (n - n.min()) / (n.max() - n.min()))
    return smoothed(z, y, eps[y])


def los_weighted(z, y, n, label_smooth, power=0.5):
    weights = n**power / (n**power).sum()
    margins = of_target(z, y) - (z.sum(axis=1) - of_target(z, y)) / 4
    return ce(z, y, n) + 4 / 5 * label_smooth * (weights[y] / n[y] * n.sum() * margins).mean()


def wb(z, y, n, beta=0.9999):
    p = np.exp(log_p(z))
    each = np.where(onehot(y) == 1, np.log(p), np.log(1 - p)).mean(axis=1)
    return -(cb_weights(n, beta)[y] * each).mean()


REFERENCES = {
    "ce": ce,
    "los": lambda z, y, n, label_smooth: smoothed(z, y, np.full(len(y), label_smooth)),
    "focal": focal,
    "cb": lambda z, y, n, beta=0.9999: weighted(z, y, cb_weights(n, beta)),
    "power": lambda z, y, n, rho=1.2: weighted(z, y, power_weights(n, rho)),
    "bsce": bsce,
    "ldam": ldam,
    "lade": lade,
    "label_aware": label_aware,
    "los_weighted": los_weighted,
    "wb": wb,
}


# ---- value and gradient ----


def test_every_loss_has_a_reference():
    """Who adds a loss adds its formula to REFERENCES."""
    assert set(REFERENCES) == set(LOSSES)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_loss_equals_its_formula_in_numpy(double, name, options):
    logits, targets = batch()
    expected = REFERENCES[name](logits.numpy(), targets.numpy(), np.array(COUNTS), **options)
    found = build(name, **options)(logits, targets)
    assert found.shape == () and float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_gradient_passes_gradcheck(double, name, options):
    logits, targets = batch()
    assert torch.autograd.gradcheck(lambda z: build(name, **options)(z, targets), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_takes_logits_of_either_precision_and_gives_a_loss_of_theirs(name):
    logits, targets = batch()
    single, mixed = build(name)(logits.float(), targets), build(name)(logits, targets)
    both = build(name).double()(logits, targets)
    assert (single.dtype, mixed.dtype, both.dtype) == (torch.float32, torch.float64, torch.float64)
    assert float(single) == pytest.approx(float(both), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_no_parameters_and_nothing_in_its_state_but_moves_with_to(name):
    loss_fn = build(name)
    assert not list(loss_fn.parameters()) and not loss_fn.state_dict()
    assert [b.dtype for b in loss_fn.double().buffers()] == [torch.float64] * (name in COUNTED)
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


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 5.0])
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


@pytest.mark.parametrize(
    ("find", "expected", "option"),
    [(effective_number_weights, cb_weights, beta) for beta in (0.0, 0.9, 1 - 1e-9)]
    + [(inverse_power_weights, power_weights, rho) for rho in (0.0, 1.2)],
)
def test_class_weights_follow_their_formula_and_sum_to_the_number_of_classes(find, expected, option):
    weights = find(COUNTS, option)
    np.testing.assert_allclose(weights, expected(COUNTS, option), rtol=1e-12)
    assert weights.dtype == torch.float64 and float(weights.sum()) == pytest.approx(5)


# ---- one loss is another ----


@pytest.mark.parametrize(
    ("name", "counts", "options"),
    [
        ("los", None, {"label_smooth": 0.0}),
        ("focal", None, {"gamma": 0.0}),
        ("cb", COUNTS, {"beta": 0.0}),
        ("cb", BALANCED, {}),
        ("power", COUNTS, {"rho": 0.0}),
        ("power", BALANCED, {}),
        ("bsce", COUNTS, {"tau": 0.0}),
        ("bsce", BALANCED, {}),
        ("lade", BALANCED, {"alpha": 0.0}),
        ("ldam", COUNTS, {"max_margin": 0.0}),
        ("label_aware", COUNTS, {"eps_head": 0.0, "eps_tail": 0.0}),
        ("los_weighted", COUNTS, {"label_smooth": 0.0}),
    ],
)
def test_a_loss_is_cross_entropy_where_its_option_or_balance_turns_it_off(double, name, counts, options):
    logits, targets = batch()
    same(build_loss(name, counts, **options)(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("counts", "options", "smoothing"),
    [(COUNTS, {"eps_head": e, "eps_tail": e}, e) for e in (0.1, 0.5)] + [(BALANCED, {}, 0.1)],
)
def test_label_aware_smoothing_with_one_epsilon_is_torchs_label_smoothing(double, counts, options, smoothing):
    logits, targets = batch()
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    same(build_loss("label_aware", counts, **options)(logits, targets), expected)


@pytest.mark.parametrize(("counts", "power"), [(COUNTS, 1.0), (BALANCED, 0.0), (BALANCED, 0.3)])
def test_los_weighted_by_frequency_or_over_balanced_classes_is_los(double, counts, power):
    logits, targets = batch()
    weighted = build_loss("los_weighted", counts, label_smooth=0.98, power=power)
    same(weighted(logits, targets), build_loss("los", label_smooth=0.98)(logits, targets))


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_over_the_training_set_los_weighted_penalises_the_loma_of_each_class_by_its_weight(double, power):
    targets = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    logits = torch.randn(len(targets), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.tensor(COUNTS, dtype=torch.float64) ** power
    penalty = (weights / weights.sum() * logits_magnitude(logits, targets)).sum()
    expected = F.cross_entropy(logits, targets) + 0.9 * 4 / 5 * penalty
    same(build("los_weighted", power=power)(logits, targets), expected)


def test_weighted_cross_entropy_is_torchs_weighted_mean_whatever_the_scale_of_the_weights(double):
    logits, targets = batch()
    weights = inverse_power_weights(COUNTS, 0.5)
    expected = F.cross_entropy(logits, targets, weight=weights)
    for loss_fn in (WeightedCrossEntropy(7 * weights), build("power", rho=0.5)):
        same(loss_fn(logits, targets), expected)


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_balanced_softmax_is_cross_entropy_of_logits_moved_by_the_prior_or_by_the_counts(double, tau):
    logits, targets = batch()
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    prior = (counts / counts.sum()).log()
    for shift in (tau * prior, tau * counts.log()):
        same(build("bsce", tau=tau)(logits, targets), F.cross_entropy(logits + shift, targets))


def test_lade_sees_a_constant_through_its_regulariser_which_pins_the_level_of_the_logits(double):
    logits, targets = batch((0, 1, 2, 3, 4))
    moved = logits + 3
    # With every class in the batch the constant cancels between the mean and the level m; λ m² keeps it.
    free = build("lade", lam=0.0)
    same(free(moved, targets), free(logits, targets))
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    level = (logits.exp() / prior / 5).mean(0).log()
    expected = 0.1 * 0.01 * (prior * ((level + 3) ** 2 - level**2)).sum()
    same(build("lade")(moved, targets) - build("lade")(logits, targets), expected)
    # Without the regulariser it sees it through class 1, which is absent here: a level but no mean.
    logits, targets = batch()
    same(free(logits + 3, targets) - free(logits, targets), torch.tensor(0.1 * 3 * 17 / 65))


# ---- MaxNorm ----


def test_max_norm_shrinks_long_rows_to_the_limit_and_leaves_the_others_untouched():
    weight = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.1, 0.2], [0.0, 0.0]], requires_grad=True)
    before = weight.detach().clone()
    assert max_norm_(weight, 2.0) is weight and weight.is_leaf and weight.grad_fn is None
    torch.testing.assert_close(weight.detach()[0], torch.tensor([1.2, 1.6]))
    assert torch.equal(weight.detach()[1:], before[1:])


def test_the_limit_of_max_norm_lies_a_share_of_the_way_from_the_shortest_row_to_the_longest():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0]]))
    limits = [max_norm_limit(weight), *(max_norm_limit(weight, share) for share in (0.0, 0.5, 1.0))]
    assert limits == pytest.approx([1.4, 1.0, 3.0, 5.0])


# ---- refusals ----


@pytest.mark.parametrize("name", COUNTED)
def test_a_loss_that_needs_class_counts_refuses_none_and_a_class_without_images(name):
    with pytest.raises(ValueError, match=f"loss '{name}' needs class_counts"):
        build_loss(name)
    for count in (0, -3, math.nan, math.inf):
        with pytest.raises(ValueError, match="class_counts must be above 0, class 2 has"):
            build(name, [5, 3, count])
    for counts in ([], [7], [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="two classes or more"):
            build(name, counts)


@pytest.mark.parametrize(
    ("name", "option", "value", "rule"),
    [
        ("focal", "gamma", -0.1, "of at least 0"),
        ("focal", "gamma", math.nan, "of at least 0"),
        ("focal", "gamma", math.inf, "of at least 0"),
        ("cb", "beta", 1.0, r"in \[0, 1\)"),
        ("cb", "beta", -0.1, r"in \[0, 1\)"),
        ("power", "rho", -0.1, "of at least 0"),
        ("wb", "beta", math.nan, r"in \[0, 1\)"),
        ("bsce", "tau", -1.0, "of at least 0"),
        ("ldam", "max_margin", -0.5, "of at least 0"),
        ("ldam", "scale", 0.0, "above 0"),
        ("lade", "alpha", -0.1, "of at least 0"),
        ("lade", "lam", -0.1, "of at least 0"),
        ("label_aware", "eps_head", 1.0, r"in \[0, 1\)"),
        ("label_aware", "eps_tail", -0.1, r"in \[0, 1\)"),
        ("los_weighted", "label_smooth", 1.0, r"in \[0, 1\)"),
        ("los_weighted", "power", -0.1, "of at least 0"),
        ("los", "label_smooth", 1.0, r"in \[0, 1\), got 1: at 1 every label is 1/K"),
        ("los", "label_smooth", math.nan, r"in \[0, 1\)"),
        ("los", "label_smooth", -1e-9, r"in \[0, 1\)"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(name, option, value, rule):
    with pytest.raises(ValueError, match=f"{option} must be .*{rule}"):
        build_loss(name, COUNTS, **{**OPTIONS.get(name, {}), option: value})


def test_weights_and_norms_out_of_range_are_refused():
    with pytest.raises(ValueError, match="limit must be a number above 0, got 0"):
        max_norm_(torch.ones(2, 2), 0.0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
            max_norm_limit(torch.ones(2, 2), share)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="class weights must be numbers above 0"):
            WeightedCrossEntropy(torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="the least is 0"):  # in the numbers that it computes with
        WeightedCrossEntropy(torch.tensor([1.0, 1e-60], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("label_aware", {"eps_heads": 1}, "has no option 'eps_heads', known: eps_head, eps_tail"),
        ("bsce", {"class_count": 1}, "has no option 'class_count', known: tau"),
        ("ce", {"gamma": 1}, "has no option 'gamma', known: none"),
        ("los", {}, "loss 'los' needs the option 'label_smooth'"),
        ("hinge", {}, "unknown loss 'hinge', known: ce, los,"),
    ],
)
def test_an_unknown_or_missing_name_is_refused_with_the_known_ones(name, options, message):
    with pytest.raises(ValueError) as caught:
        build_loss(name, COUNTS, **options)
    assert message in str(caught.value)
