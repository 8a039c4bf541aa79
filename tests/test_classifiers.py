"""The classifier heads against their formulas, computed by hand, and what they learn, keep and refuse."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from models import HEADS, build_head, head_from_state

D, K = 7, 5
COUNTS = [12, 8, 5, 2, 1]
OPTIONS = {"tau_norm": {"tau": 0.7}, "la": {"tau": 1.5}, "etf": {"scale": 12.0}}
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
}
LEARNABLE = [kind for kind, learned in LEARNED.items() if learned]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def fc() -> nn.Linear:
    """A frozen stage-1 classifier in float64, with rows of unlike length."""
    classifier = nn.Linear(D, K, dtype=torch.float64).requires_grad_(False)
    classifier.weight.copy_(torch.randn(K, D, generator=seeded(1), dtype=torch.float64))
    classifier.weight.mul_(torch.tensor([[3.0], [2], [1], [0.5], [0.1]]))
    classifier.bias.copy_(torch.randn(K, generator=seeded(2), dtype=torch.float64))
    return classifier


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(9, D, generator=seeded(3), dtype=torch.float64)


def training_set() -> tuple[torch.Tensor, torch.Tensor]:
    """28 features in mixed order; class 4 has one image."""
    labels = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))
    features = torch.randn(len(labels), D, generator=seeded(4), dtype=torch.float64) + labels[:, None]
    order = torch.randperm(len(labels), generator=seeded(5))
    return features[order], labels[order]


def made(kind: str, fc: nn.Linear, **options: float) -> nn.Module:
    """A head at its start, given all that any head could need."""
    features, labels = training_set()
    return build_head(kind, fc, COUNTS, seeded(6), features, labels, **options)


def stirred(kind: str, fc: nn.Linear, **options: float) -> nn.Module:
    """A head whose learned parameters are away from their start."""
    head, generator = made(kind, fc, **options), seeded(7)
    with torch.no_grad():
        for value in head.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return head


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().numpy()


# ---- the formulas


def test_the_linear_head_is_a_copy_that_learns_and_leaves_the_stage_1_classifier_alone(fc, x):
    head, before = made("linear", fc), fc.weight.clone()
    assert isinstance(head, nn.Linear) and torch.equal(head(x), fc(x))
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(fc.weight, before) and not fc.weight.requires_grad


@pytest.mark.parametrize("kind", ["lws", "marc", "disalign"])
def test_a_correction_starts_as_exactly_the_stage_1_classifier(kind, fc, x):
    assert torch.equal(made(kind, fc)(x), fc(x))


def test_lws_scales_the_whole_logit_bias_included(fc, x):
    head = stirred("lws", fc)
    expected = array(head.scale) * (array(x) @ array(fc.weight).T + array(fc.bias))
    np.testing.assert_allclose(array(head(x)), expected, rtol=1e-12)


def test_marc_equals_its_formula_away_from_the_start(fc, x):
    head, w = stirred("marc", fc), array(fc.weight)
    a, b = array(head.scale), array(head.shift)
    for image, logits in zip(array(x), array(head(x)), strict=True):
        for k in range(K):
            z = w[k] @ image + fc.bias[k].item()
            assert logits[k] == pytest.approx(a[k] * z + b[k] * np.sqrt((w[k] ** 2).sum()), rel=1e-12)


def test_disalign_equals_its_formula_away_from_the_start(fc, x):
    head, w = stirred("disalign", fc), array(fc.weight)
    s, b, v, c = map(array, (head.scale, head.shift, head.confidence_weight, head.confidence_bias))
    for image, logits in zip(array(x), array(head(x)), strict=True):
        sigma = 1 / (1 + np.exp(-(v @ image + c[0])))
        for k in range(K):
            z = w[k] @ image + fc.bias[k].item()
            assert logits[k] == pytest.approx((1 + sigma * s[k]) * z + sigma * b[k], rel=1e-12)


def test_tau_0_is_the_classifier_without_its_bias_and_tau_1_has_unit_rows(fc, x):
    assert torch.equal(made("tau_norm", fc, tau=0.0)(x), x @ fc.weight.T)
    np.testing.assert_allclose(array(made("tau_norm", fc, tau=1.0).weight.norm(dim=1)), 1, rtol=1e-12)
    assert torch.equal(made("tau_norm", fc)(x), made("tau_norm", fc, tau=1.0)(x))


def test_tau_norm_divides_each_row_by_a_power_of_its_length(fc, x):
    w = array(fc.weight)
    expected = array(x) @ (w / np.linalg.norm(w, axis=1, keepdims=True) ** 1.9).T
    np.testing.assert_allclose(array(made("tau_norm", fc, tau=1.9)(x)), expected, rtol=1e-10)


def test_nearest_mean_equals_loops_also_for_a_class_of_one_image(fc, x):
    features, labels = map(array, training_set())
    centre = features.mean(axis=0)
    unit = [(row - centre) / np.linalg.norm(row - centre) for row in features]
    logits = array(made("ncm", fc)(x))
    for i, image in enumerate(array(x)):
        for k in range(K):
            mean = np.mean([u for u, label in zip(unit, labels, strict=True) if label == k], axis=0)
            y = image - centre
            expected = y @ mean / (np.linalg.norm(y) * np.linalg.norm(mean))
            assert logits[i, k] == pytest.approx(expected, rel=1e-10)


def test_nearest_mean_gives_the_only_image_of_a_class_the_cosine_1(fc):
    features, labels = training_set()
    assert made("ncm", fc)(features[labels == 4])[0, 4].item() == pytest.approx(1)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logit_adjustment_subtracts_tau_log_frequency(fc, x, tau):
    prior = np.array(COUNTS) / sum(COUNTS)
    expected = array(fc(x)) - tau * np.log(prior)
    np.testing.assert_allclose(array(made("la", fc, tau=tau)(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["ldam", "etf"])
def test_cosines_stay_in_range_and_ignore_the_length_of_the_feature(kind, fc, x):
    head = stirred(kind, fc)
    cosines = head(x) / getattr(head, "scale", 1.0)
    assert cosines.abs().max() <= 1 + 1e-12
    np.testing.assert_allclose(array(head(1000 * x)), array(head(x)), rtol=1e-10, atol=1e-12)


def test_the_ldam_head_starts_from_normalised_stage_1_rows_and_normalises_what_it_learns(fc, x):
    head, w, unit = made("ldam", fc), array(fc.weight), array(x)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(array(head.weight), w, rtol=1e-12)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[4.0], [1], [1], [0.2], [9]]))
    np.testing.assert_allclose(array(head(x)), unit @ w.T, rtol=1e-10)


# ---- the equiangular frame


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_the_frame_has_unit_rows_and_equal_angles_also_for_more_classes_than_features(num_classes):
    head = build_head("etf", nn.Linear(8, num_classes).double(), generator=seeded(0))
    expected = np.full((num_classes, num_classes), -1 / (num_classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(array(head.frame @ head.frame.T), expected, atol=1e-12)


def test_the_frame_stays_fixed_while_the_map_learns(fc, x):
    head = made("etf", fc)
    frame = head.frame.clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    before = nn.functional.cross_entropy(head(x), torch.arange(9) % K)
    before.backward()
    optimizer.step()
    assert head.frame.grad is None and not head.frame.requires_grad and torch.equal(head.frame, frame)
    assert nn.functional.cross_entropy(head(x), torch.arange(9) % K) < before


def test_the_etf_logits_are_30_times_the_cosine_of_mapped_feature_and_frame(fc, x):
    head = made("etf", fc)
    mapped = array(x) @ array(head.weight).T
    cosine = mapped / np.linalg.norm(mapped, axis=1, keepdims=True) @ array(head.frame).T
    np.testing.assert_allclose(array(head(x)), 30 * cosine, rtol=1e-10, atol=1e-12)


def test_frames_of_one_seed_are_equal_and_of_two_seeds_are_not(fc):
    first, second, other = (build_head("etf", fc, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.frame, second.frame) and torch.equal(first.weight, second.weight)
    assert not torch.equal(first.frame, other.frame) and not torch.equal(first.weight, other.weight)


# ---- learning, keeping, drawing


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_exactly_its_documented_parameters(kind, fc, x):
    head = made(kind, fc)
    learned = {name: value.numel() for name, value in head.named_parameters() if value.requires_grad}
    assert learned == LEARNED[kind] and len(learned) == len(list(head.parameters()))
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


def test_a_feature_at_the_centre_is_equally_near_to_every_mean(fc):
    head = made("ncm", fc)
    assert torch.equal(head(head.centre[None]), torch.zeros(1, K, dtype=torch.float64))


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
    ],
)
def test_an_option_out_of_range_is_refused(fc, kind, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        made(kind, fc, **{option: value})


def test_nearest_mean_refuses_a_class_without_features_and_what_does_not_fit(fc):
    features, labels = training_set()
    with pytest.raises(ValueError, match="class 3 has no training feature"):
        build_head("ncm", fc, features=features[labels != 3], labels=labels[labels != 3])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4, got 1\.\.5"):
        build_head("ncm", fc, features=features, labels=labels + 1)
    with pytest.raises(ValueError, match=r"features must be \[27, 7\]"):
        build_head("ncm", fc, features=features, labels=labels[1:])


def test_logit_adjustment_refuses_a_class_without_images_and_a_wrong_number_of_counts(fc):
    with pytest.raises(ValueError, match="class 1 has no training image"):
        build_head("la", fc, [3, 0, 2, 1, 1])
    with pytest.raises(ValueError, match="class_counts must hold 5 counts"):
        build_head("la", fc, [3, 2])


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
