"""How the losses relate: where one is another, what they do not see, what they refuse; and MaxNorm."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses import (
    LOSSES,
    WeightedCrossEntropy,
    build_loss,
    effective_number_weights,
    inverse_power_weights,
    logit_adjustment,
    max_norm_,
    max_norm_limit,
)

COUNTS = [40, 17, 5, 2, 1]
BALANCED = [8, 8, 8, 8, 8]
COUNTED = ["cb", "power", "bsce", "ldam", "lade", "label_aware", "wb"]


@pytest.fixture(autouse=True)
def double():
    """Losses built in double precision, so that the comparison can be tight."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(targets=(0, 2, 4, 3, 0, 2, 0, 3, 0)):
    """Class 1 has no image in the batch unless asked for."""
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.randn(len(targets), 5, generator=generator), torch.tensor(targets)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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
    ],
)
def test_a_loss_is_cross_entropy_where_its_option_or_balance_turns_it_off(name, counts, options):
    logits, targets = batch()
    same(build_loss(name, counts, **options)(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize("rho", [0.5, 1.2])
def test_weighted_cross_entropy_is_torchs_weighted_mean(rho):
    logits, targets = batch()
    weights = inverse_power_weights(COUNTS, rho)
    expected = F.cross_entropy(logits, targets, weight=weights)
    same(WeightedCrossEntropy(weights)(logits, targets), expected)
    same(build_loss("power", COUNTS, rho=rho)(logits, targets), expected)


def test_lade_without_its_bound_is_balanced_softmax():
    logits, targets = batch()
    lade, bsce = build_loss("lade", COUNTS, alpha=0.0), build_loss("bsce", COUNTS)
    same(lade(logits, targets), bsce(logits, targets))


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_balanced_softmax_is_training_with_logit_adjustment(tau):
    logits, targets = batch()
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    loss_fn = build_loss("bsce", COUNTS, tau=tau)
    for shift in (tau * (counts / counts.sum()).log(), tau * counts.log()):
        same(loss_fn(logits, targets), F.cross_entropy(logits + shift, targets))


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_post_hoc_logit_adjustment_takes_off_what_training_adds(tau):
    logits, targets = batch()
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    same(logit_adjustment(logits + tau * (counts / counts.sum()).log(), COUNTS, tau), logits)
    adjusted = logit_adjustment(logits, COUNTS, tau)
    same(build_loss("bsce", COUNTS, tau=tau)(adjusted, targets), F.cross_entropy(logits, targets))


def test_logit_adjustment_keeps_the_type_of_the_logits_and_leaves_them_alone():
    logits = batch()[0].float()
    before = logits.clone()
    assert logit_adjustment(logits, COUNTS).dtype == torch.float32 and torch.equal(logits, before)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_label_aware_smoothing_with_one_epsilon_is_torchs_label_smoothing(eps):
    logits, targets = batch()
    loss_fn = build_loss("label_aware", COUNTS, eps_head=eps, eps_tail=eps)
    same(loss_fn(logits, targets), F.cross_entropy(logits, targets, label_smoothing=eps))


def test_label_aware_smoothing_takes_the_tails_epsilon_where_counts_are_balanced():
    logits, targets = batch()
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1)
    same(build_loss("label_aware", BALANCED)(logits, targets), expected)


def test_the_weighted_mean_does_not_see_the_scale_of_the_weights():
    logits, targets = batch()
    weights = inverse_power_weights(COUNTS)
    torch.testing.assert_close(
        WeightedCrossEntropy(7 * weights)(logits, targets), WeightedCrossEntropy(weights)(logits, targets)
    )


@pytest.mark.parametrize("name", ["cb", "power", "wb"])
def test_class_weights_of_a_batch_of_one_class_cancel_in_a_weighted_mean_only(name):
    logits, targets = batch((4, 4, 4))
    ratio = build_loss(name, COUNTS)(logits, targets) / build_loss(name, BALANCED)(logits, targets)
    same(ratio, effective_number_weights(COUNTS)[4] if name == "wb" else torch.tensor(1.0))


def test_weight_balancing_of_two_classes_is_weighted_cross_entropy():
    # 1 - p of one class is p of the other, so both columns hold the same term and their mean is it.
    logits, targets = batch((0, 1, 1, 0))
    weights = effective_number_weights([30, 2])
    each = F.cross_entropy(logits[:, :2], targets, reduction="none")
    same(build_loss("wb", [30, 2])(logits[:, :2], targets), (weights[targets] * each).mean())


# ---- a constant added to all logits of an image ----


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"lade"}))
def test_a_constant_added_to_all_logits_of_an_image_changes_nothing(name):
    logits, targets = batch()
    loss_fn = build_loss(name, COUNTS, **({"label_smooth": 0.9} if name == "los" else {}))
    shift = torch.linspace(-50, 50, len(logits))[:, None]
    torch.testing.assert_close(loss_fn(logits + shift, targets), loss_fn(logits, targets), rtol=1e-10, atol=0)


def test_lade_sees_a_constant_through_its_regulariser_which_pins_the_level_of_the_logits():
    logits, targets = batch((0, 1, 2, 3, 4))
    moved = logits + 3
    # With every class in the batch the constant cancels between the mean and the level m; λ m² keeps it.
    free = build_loss("lade", COUNTS, lam=0.0)
    same(free(moved, targets), free(logits, targets))
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    level = (logits.exp() / prior / 5).mean(0).log()
    expected = 0.1 * 0.01 * (prior * ((level + 3) ** 2 - level**2)).sum()
    pinned = build_loss("lade", COUNTS)
    same(pinned(moved, targets) - pinned(logits, targets), expected)


def test_lade_without_regulariser_sees_a_constant_through_classes_absent_from_the_batch():
    logits, targets = batch()
    free = build_loss("lade", COUNTS, lam=0.0)
    # Class 1 has a level but no mean to cancel it.
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
    assert float(max_norm_(weight, limits[0]).norm(dim=1).max().detach()) == pytest.approx(1.4)


# ---- refusals ----


@pytest.mark.parametrize("name", COUNTED)
def test_a_loss_that_needs_class_counts_says_so_by_name(name):
    with pytest.raises(ValueError, match=f"loss '{name}' needs class_counts"):
        build_loss(name)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("count", [0, -3, math.nan, math.inf])
def test_a_class_without_images_is_refused_and_named(name, count):
    with pytest.raises(ValueError, match="class_counts must be above 0, class 2 has"):
        build_loss(name, [5, 3, count])


@pytest.mark.parametrize("counts", [[], [7], [[1, 2], [3, 4]]])
def test_counts_that_are_no_list_of_two_classes_or_more_are_refused(counts):
    with pytest.raises(ValueError, match="two classes or more"):
        build_loss("bsce", counts)


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
        ("los", "label_smooth", 1.0, "below 1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(name, option, value, rule):
    with pytest.raises(ValueError, match=f"{option} must be .*{rule}"):
        build_loss(name, COUNTS, **{option: value})


def test_weights_and_norms_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rho must be"):
        inverse_power_weights(COUNTS, rho=-1.0)
    with pytest.raises(ValueError, match="tau must be"):
        logit_adjustment(torch.zeros(1, 5), COUNTS, tau=-1.0)
    with pytest.raises(ValueError, match="limit must be a number above 0, got 0"):
        max_norm_(torch.ones(2, 2), 0.0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
            max_norm_limit(torch.ones(2, 2), share)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="class weights must be numbers above 0"):
            WeightedCrossEntropy(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("label_aware", "eps_heads", "known: eps_head, eps_tail; did you mean 'eps_head'?"),
        ("lade", "lambda", "known: alpha, lam; did you mean 'lam'?"),
        ("focal", "xyz", "known: gamma"),
        ("bsce", "class_count", "known: tau"),
        ("ce", "gamma", "it takes none"),
    ],
)
def test_an_unknown_option_is_refused_with_the_known_ones_and_the_nearest(name, option, message):
    with pytest.raises(ValueError) as caught:
        build_loss(name, COUNTS, **{option: 1.0})
    assert str(caught.value) == f"loss {name!r} has no option {option!r}, {message}"


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match="loss 'los' needs the option 'label_smooth'"):
        build_loss("los")


def test_the_table_has_the_names_of_the_methods():
    names = ["ce", "los", "focal", "cb", "power", "bsce", "ldam", "lade", "label_aware", "wb"]
    assert list(LOSSES) == names
