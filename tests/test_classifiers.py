"""What every classifier head learns, keeps and refuses, and the formulas of those whose rows are learned."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from models import HEADS, build_head, head_from_state
from tests.heads import D, K, array, largest_tensor, made, seeded, stirred

OPTIONS = {
    "tau_norm": {"tau": 0.7},
    "la": {"tau": 1.5},
    "etf": {"scale": 12.0},
    "los_step": {"strength": 0.3},
}
LEARNED = {
    "linear": {"weight": K * D, "bias": K},
    "lws": {"scale": K},
    "tau_norm": {},
    "ncm": {},
    "ldam": {"weight": K * D},
    "etf": {"weight": K * D},
    "marc": {"scale": K, "shift": K},
    "disalign": {"scale": K, "shift": K, "confidence_weight": D, "confidence_bias": 1},
    "la": {},
    "los_step": {},
}
LEARNABLE = [kind for kind, learned in LEARNED.items() if learned]


# ---- the formulas


def test_the_linear_head_is_a_copy_that_learns_and_leaves_the_stage_1_classifier_alone(fc, x):
    head, before = made("linear", fc), fc.weight.clone()
    assert isinstance(head, nn.Linear) and torch.equal(head(x), fc(x))
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(fc.weight, before) and not fc.weight.requires_grad


@pytest.mark.parametrize("kind", ["ldam", "etf"])
def test_cosines_stay_in_range_and_ignore_the_length_of_the_feature(kind, fc, x):
    head = stirred(kind, fc)
    cosines = head(x) / head.scale
    assert cosines.abs().max() <= 1 + 1e-12
    np.testing.assert_allclose(array(head(1000 * x)), array(head(x)), rtol=1e-10, atol=1e-12)


def test_the_ldam_head_starts_from_normalised_stage_1_rows_and_normalises_what_it_learns(fc, x):
    head, w, unit = made("ldam", fc), array(fc.weight), array(x)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(array(head.weight), w, rtol=1e-12)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[4.0], [1], [1], [0.2], [9]]))
    np.testing.assert_allclose(array(head(x)), 30 * unit @ w.T, rtol=1e-10)


# ---- the equiangular frame


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_the_implied_frame_has_unit_rows_and_equal_angles(num_classes):
    head = build_head("etf", nn.Linear(num_classes, num_classes).double(), generator=seeded(0), scale=1.0)
    unit = torch.eye(num_classes, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(unit)
    frame = array(head(unit))
    expected = np.full((num_classes, num_classes), -1 / (num_classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(frame @ frame.T, expected, atol=1e-12)


@pytest.mark.parametrize("num_classes", [5, 20])
def test_the_etf_logits_are_30_times_the_cosine_of_mapped_feature_and_frame(num_classes, x):
    head = build_head("etf", nn.Linear(D, num_classes).double(), generator=seeded(6))
    mapped = array(x) @ array(head.weight).T
    unit = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    frame = np.sqrt(num_classes / (num_classes - 1)) * (np.eye(num_classes) - 1 / num_classes)
    np.testing.assert_allclose(array(head(x)), 30 * unit @ frame, rtol=1e-10, atol=1e-12)


def test_the_map_of_the_etf_head_learns(fc, x):
    head = made("etf", fc)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    before = nn.functional.cross_entropy(head(x), torch.arange(9) % K)
    before.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(head(x), torch.arange(9) % K) < before


def test_etf_maps_of_one_seed_are_equal_and_of_two_seeds_are_not(fc):
    first, second, other = (build_head("etf", fc, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)


def test_an_etf_head_of_8142_classes_learns_from_a_batch_in_a_second_without_a_matrix_of_class_pairs():
    fc, batch, labels = nn.Linear(512, 8142), torch.randn(64, 512, generator=seeded(1)), torch.arange(64)

    def learn() -> None:
        head = build_head("etf", fc, generator=seeded(0))
        nn.functional.cross_entropy(head(batch), labels).backward()

    started = time.process_time()
    assert largest_tensor(learn) == 8142 * 512
    assert time.process_time() - started < 1


# ---- learning, keeping, drawing


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_exactly_its_documented_parameters(kind, fc, x):
    head = made(kind, fc)
    learned = {name: value.numel() for name, value in head.named_parameters() if value.requires_grad}
    assert learned == LEARNED[kind]
    assert head(x).requires_grad == bool(learned) and head(x).shape == (len(x), K)


@pytest.mark.parametrize("kind", LEARNABLE)
def test_gradients_of_parameters_and_features_equal_finite_differences(kind, fc, x):
    head = stirred(kind, fc)
    names = list(LEARNED[kind])

    def logits(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(head, dict(zip(names, values, strict=True)), (features,))

    inputs = [head.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(logits, (x[:3].requires_grad_(), *inputs))


@pytest.mark.parametrize("kind", LEARNABLE)
def test_every_learned_parameter_gets_a_gradient_away_from_the_start(kind, fc, x):
    head = stirred(kind, fc)
    nn.functional.cross_entropy(head(x), torch.arange(9) % K).backward()
    assert all(value.grad.abs().sum() > 0 for value in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", HEADS)
def test_a_state_dict_with_kind_and_options_rebuilds_the_same_logits(kind, dtype, fc, x):
    head = stirred(kind, fc.to(dtype), **OPTIONS.get(kind, {}))
    state = head.state_dict()
    rebuilt = head_from_state(kind, state, **OPTIONS.get(kind, {}))
    assert torch.equal(rebuilt(x.to(dtype)), head(x.to(dtype))) and rebuilt(x.to(dtype)).dtype == dtype
    assert {n for n, v in rebuilt.named_parameters() if v.requires_grad} == set(LEARNED[kind])
    with torch.no_grad():
        for value in rebuilt.state_dict().values():
            value.zero_()
    assert state["weight"].any(), "the rebuilt head must not share memory with the state"


def test_a_fresh_linear_head_is_rebuilt_from_its_state_and_not_drawn_again(fc, x):
    head = made("linear", fc, fresh=True)
    assert torch.equal(head_from_state("linear", head.state_dict(), fresh=True)(x), head(x))


def test_the_fresh_linear_head_depends_on_the_generator_alone_and_draws_as_torch_does(fc):
    heads = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        heads.append(build_head("linear", fc.float(), generator=seeded(8), fresh=True))
    torch.manual_seed(8)
    for head in (heads[1], nn.Linear(D, K)):
        assert torch.equal(heads[0].weight, head.weight) and torch.equal(heads[0].bias, head.bias)
    other = build_head("linear", fc, generator=seeded(9), fresh=True)
    assert not torch.equal(heads[0].weight, other.weight)


@pytest.mark.parametrize("kind", HEADS)
def test_making_a_head_leaves_the_global_random_state_alone(kind, fc):
    before = torch.get_rng_state()
    head = made(kind, fc, **({"fresh": True} if kind == "linear" else {}))
    head_from_state(kind, head.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", HEADS)
def test_a_stage_1_classifier_without_a_bias_counts_as_one_with_zeros(kind, fc, x):
    bare = nn.Linear(D, K, bias=False, dtype=torch.float64)
    with torch.no_grad():
        bare.weight.copy_(fc.weight)
        fc.bias.zero_()
    assert torch.equal(made(kind, bare)(x), made(kind, fc)(x))


# ---- numbers at the edge


@pytest.mark.parametrize("kind", HEADS)
def test_zero_features_zero_rows_and_large_features_give_finite_logits_and_gradients(kind, fc):
    fc = fc.float()
    fc.weight[2] = 0
    head = stirred(kind, fc, **({"tau": 2.0} if kind == "tau_norm" else {}))
    if kind == "ldam":
        with torch.no_grad():
            head.weight[2] = 0
    large = 1e4 * torch.randn(6, D, generator=seeded(10))
    features = torch.cat([torch.zeros(1, D), large, 1e-12 * large[:2]])
    logits = head(features)
    assert logits.isfinite().all()
    if LEARNED[kind]:
        nn.functional.cross_entropy(logits, torch.arange(len(logits)) % K).backward()
        assert all(value.grad.isfinite().all() for value in head.parameters())


# ---- refusals


def test_unknown_kinds_and_options_are_refused_with_the_known_ones(fc):
    with pytest.raises(ValueError, match="unknown head 'cosine', known: linear, lws, tau_norm, ncm"):
        made("cosine", fc)
    with pytest.raises(ValueError, match="unknown option 'taus' of head 'la', known: tau"):
        made("la", fc, taus=1.0)
    with pytest.raises(ValueError, match="unknown option 'tau' of head 'marc', known: none"):
        head_from_state("marc", made("marc", fc).state_dict(), tau=1.0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("etf", {}, "'etf' needs generator"),
        ("linear", {"fresh": True}, "'linear' needs generator"),
        ("ncm", {}, "'ncm' needs features and labels"),
        ("los_step", {}, "'los_step' needs features and labels"),
        ("la", {}, "'la' needs class_counts"),
    ],
)
def test_what_a_head_needs_and_did_not_get_is_named(fc, kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_head(kind, fc, **options)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("tau_norm", "tau", -0.1),
        ("la", "tau", float("nan")),
        ("etf", "scale", 0.0),
        ("etf", "scale", float("inf")),
        ("los_step", "strength", -1e-9),
        ("los_step", "strength", float("inf")),
        ("los_step", "strength", float("nan")),
    ],
)
def test_an_option_out_of_range_is_refused(fc, kind, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        made(kind, fc, **{option: value})


def test_a_frame_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_head("etf", nn.Linear(4, 1), generator=seeded(0))


def test_the_state_of_another_kind_of_head_is_refused_by_name(fc):
    with pytest.raises(ValueError, match="not the weights of a head 'marc': scale, shift missing"):
        head_from_state("marc", fc.state_dict())
    with pytest.raises(ValueError, match="not the weights of a head 'lws': shift missing, unknown"):
        head_from_state("lws", made("marc", fc).state_dict())
    with pytest.raises(ValueError, match="no matrix `weight`"):
        head_from_state("linear", {"bias": fc.bias})
