"""The classifier heads against their formulas; what each learns, keeps, needs and refuses; class means.

Who adds a head adds its row to FORMULAS and to LEARNED.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.func import functional_call

from losses import LabelOverSmooth
from models import HEADS, build_head, head_from_state
from models.heads import means as fitted
from models.heads.means import CHUNK, class_means
from tests.heads import COUNTS, D, K, array, largest_tensor, made, seeded, stirred, training_set

OPTIONS = {
    "tau_norm": {"tau": 1.9},
    "la": {"tau": 1.5},
    "etf": {"scale": 12.0},
    "los_step": {"strength": 0.3},
    "logreg": {"logreg_c": 0.1},
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
    "samn": {"weight": K * D, "bias": K},
    "logreg": {},
}
LEARNABLE = [kind for kind, learned in LEARNED.items() if learned]


# ---- the formulas: of a head away from its start, the rows w and logits z of stage 1, features x, in NumPy


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def disalign(head, w, z, x):
    s, b, v, c = map(array, (head.scale, head.shift, head.confidence_weight, head.confidence_bias))
    sigma = 1 / (1 + np.exp(-(x @ v + c)))[:, None]
    return (1 + sigma * s) * z + sigma * b


def etf(head, w, z, x):
    frame = np.sqrt(K / (K - 1)) * (np.eye(K) - 1 / K)
    return 12 * unit(x @ array(head.weight).T) @ frame


def nearest_mean(head, w, z, x):
    features, labels = map(array, training_set())
    centre = features.mean(axis=0)
    means = [unit(features - centre)[labels == k].mean(axis=0) for k in range(K)]
    return unit(x - centre) @ unit(np.array(means)).T


def los_step(head, w, z, x):
    features, labels = map(array, training_set())
    own = np.array([features[labels == k].sum(axis=0) for k in range(K)]) / len(labels)  # π_k μ_k
    shares = np.array(COUNTS) / sum(COUNTS)
    return z - 0.3 * (x @ (own - features.mean(axis=0) / K).T + shares - 1 / K)


def logreg(head, w, z, x):
    features, labels = map(array, training_set())
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    found = LogisticRegression(C=0.1, class_weight="balanced").fit((features - mean) / deviation, labels)
    return found.decision_function((x - mean) / deviation)


def linear(head, w, z, x):
    return x @ array(head.weight).T + array(head.bias)


FORMULAS = {
    "linear": linear,
    "samn": linear,
    "logreg": logreg,
    "lws": lambda head, w, z, x: array(head.scale) * z,
    "marc": lambda head, w, z, x: array(head.scale) * z + array(head.shift) * np.linalg.norm(w, axis=1),
    "disalign": disalign,
    "tau_norm": lambda head, w, z, x: x @ (w / np.linalg.norm(w, axis=1, keepdims=True) ** 1.9).T,
    "la": lambda head, w, z, x: z - 1.5 * np.log(np.array(COUNTS) / sum(COUNTS)),
    "ldam": lambda head, w, z, x: 30 * unit(x) @ unit(array(head.weight)).T,
    "etf": etf,
    "ncm": nearest_mean,
    "los_step": los_step,
}


@pytest.mark.parametrize("kind", HEADS)
def test_each_head_equals_its_formula_away_from_the_start(kind, fc, x):
    make = stirred if LEARNED[kind] else made
    head = make(kind, fc, **OPTIONS.get(kind, {}))
    expected = FORMULAS[kind](head, array(fc.weight), array(fc(x)), array(x))
    # scikit-learn's solver works in single precision here, and ends where its gradient is below 1e-4
    near = {"rtol": 1e-2, "atol": 1e-2} if kind == "logreg" else {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(array(head(x)), expected, **near)
    if hasattr(head, "folded"):
        np.testing.assert_allclose(array(nn.functional.linear(x, *head.folded())), array(head(x)), rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in ("linear", "samn", "lws", "marc", "disalign")),
        *(("lws", {"whole": True}), ("la", {"tau": 0}), ("los_step", {"strength": 0})),
    ],
)
def test_a_head_without_a_correction_is_exactly_the_stage_1_classifier_and_leaves_it_alone(
    kind, options, fc, x
):
    before = fc.weight.clone()
    head = made(kind, fc, **options)
    assert torch.equal(head(x), fc(x))
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(fc.weight, before) and not fc.weight.requires_grad


def test_tau_0_is_the_classifier_without_its_bias_and_tau_1_has_unit_rows(fc, x):
    assert torch.equal(made("tau_norm", fc, tau=0.0)(x), x @ fc.weight.T)
    np.testing.assert_allclose(array(made("tau_norm", fc).weight.norm(dim=1)), 1, rtol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_implied_frame_of_the_etf_head_has_unit_rows_and_equal_angles(num_classes):
    head = build_head("etf", nn.Linear(num_classes, num_classes).double(), generator=seeded(0), scale=1.0)
    with torch.no_grad():
        head.weight.copy_(torch.eye(num_classes))
    frame = array(head(torch.eye(num_classes, dtype=torch.float64)))
    expected = np.full((num_classes, num_classes), -1 / (num_classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(frame @ frame.T, expected, atol=1e-12)


def test_an_etf_head_of_8142_classes_learns_without_a_matrix_of_class_pairs():
    fc, batch, labels = nn.Linear(512, 8142), torch.randn(64, 512, generator=seeded(1)), torch.arange(64)

    def learn() -> None:
        head = build_head("etf", fc, generator=seeded(0))
        nn.functional.cross_entropy(head(batch), labels).backward()

    assert largest_tensor(learn) == 8142 * 512


# ---- learning, keeping, drawing


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_learns_exactly_its_documented_parameters(kind, fc, x):
    head = made(kind, fc)
    learned = {name: value.numel() for name, value in head.named_parameters() if value.requires_grad}
    assert learned == LEARNED[kind]
    assert head(x).requires_grad == bool(learned) and head(x).shape == (len(x), K)


def test_lws_learns_the_whole_classifier_where_asked(fc):
    alone, whole = made("lws", fc), made("lws", fc, whole=True)
    assert {name for name, _ in whole.named_parameters()} == {"scale", "weight", "bias"}
    assert set(whole.state_dict()) == set(alone.state_dict())


@pytest.mark.parametrize("kind", LEARNABLE)
def test_gradients_of_parameters_and_features_equal_finite_differences_and_none_is_zero(kind, fc, x):
    head = stirred(kind, fc)
    names = list(LEARNED[kind])

    def logits(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(head, dict(zip(names, values, strict=True)), (features,))

    inputs = [head.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(logits, (x[:3].requires_grad_(), *inputs))
    nn.functional.cross_entropy(head(x), torch.arange(9) % K).backward()
    assert all(value.grad.abs().sum() > 0 for value in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, OPTIONS.get(kind, {})) for kind in HEADS),
        ("linear", {"fresh": True}),
        ("lws", {"whole": True}),
    ],
)
def test_a_state_dict_with_kind_and_options_rebuilds_the_same_logits(kind, options, dtype, fc, x):
    head = stirred(kind, fc.to(dtype), **options)
    state = head.state_dict()
    rebuilt = head_from_state(kind, state, **options)
    assert torch.equal(rebuilt(x.to(dtype)), head(x.to(dtype))) and rebuilt(x.to(dtype)).dtype == dtype
    assert [v.requires_grad for v in rebuilt.parameters()] == [v.requires_grad for v in head.parameters()]
    with torch.no_grad():
        for value in rebuilt.state_dict().values():
            value.zero_()
    assert state["weight"].any(), "the rebuilt head must not share memory with the state"


def test_what_is_drawn_depends_on_the_generator_alone_and_is_drawn_as_torch_does(fc):
    def drawn(kind: str, seed: int, **options: bool) -> nn.Module:
        return build_head(kind, fc.float(), generator=seeded(seed), **options)

    torch.manual_seed(8)
    theirs, ours = nn.Linear(D, K), drawn("linear", 8, fresh=True)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert torch.equal(drawn("etf", 8).weight, drawn("etf", 8).weight)
    assert not torch.equal(drawn("etf", 8).weight, drawn("etf", 9).weight)


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


# ---- heads from the training features


def on_disk(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A memory-mapped float16 tensor of more rows than two chunks, and labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 2 * CHUNK + 17)
    mapped = np.memmap(path, np.float16, "w+", shape=(len(labels), 8))
    mapped[:] = generator.normal(size=mapped.shape) + labels[:, None]
    return torch.from_numpy(mapped), torch.from_numpy(labels)


def test_means_and_shares_equal_loops_in_double_precision_and_are_zero_of_an_empty_class(tmp_path):
    for (features, labels), num_classes in ((training_set(), K + 1), (on_disk(tmp_path / "features"), 7)):
        means, shares = class_means(features, labels, num_classes)
        wide, own = array(features).astype(np.float64), array(labels)
        expected = [wide[own == k].mean(axis=0) for k in range(num_classes - 1)]
        assert means.dtype == shares.dtype == torch.float64
        np.testing.assert_allclose(array(means), [*expected, np.zeros(wide.shape[1])], rtol=1e-12)
        np.testing.assert_allclose(array(shares), np.bincount(own, minlength=num_classes) / len(own))
        np.testing.assert_allclose(array(shares @ means), wide.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("kind", ["ncm", "los_step"])
def test_a_head_from_memory_mapped_features_is_that_from_memory_and_never_copies_all_at_once(kind, tmp_path):
    features, labels = on_disk(tmp_path / "features")
    fc = nn.Linear(8, 6)
    mapped = build_head(kind, fc, features=features, labels=labels).state_dict()
    in_memory = build_head(kind, fc, features=features.double(), labels=labels).state_dict()
    assert mapped["weight"].dtype == torch.float32
    assert all(torch.equal(mapped[name], in_memory[name]) for name in in_memory)
    assert largest_tensor(lambda: build_head(kind, fc, features=features, labels=labels)) == CHUNK * 8


def test_nearest_mean_gives_the_only_image_of_a_class_the_cosine_1_and_the_centre_0(fc):
    (features, labels), head = training_set(), made("ncm", fc)
    assert head(features[labels == 4])[0, 4].item() == pytest.approx(1)
    assert torch.equal(head(head.centre[None]), torch.zeros(1, K, dtype=torch.float64))


# ---- the closed-form step of LOS


def separable(margin: float) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A classifier whose right logit leads by `margin` or more on features [28, K + 3], and their labels."""
    labels, generator = torch.arange(K).repeat_interleave(torch.tensor(COUNTS)), seeded(0)
    own = 2 * nn.functional.one_hot(labels, K) + torch.rand(len(labels), K, generator=generator)
    free = torch.randn(len(labels), 3, generator=generator)
    fc = nn.Linear(K + 3, K, dtype=torch.float64)
    with torch.no_grad():
        fc.weight.copy_(margin * torch.eye(K, K + 3))
        fc.bias.zero_()
    return fc, torch.cat([own, free], dim=1).double(), labels


def apart(margin: float, label_smooth: float, lr: float) -> float:
    """How far LosStep is from one full-batch step of plain gradient descent on LOS."""
    fc, features, labels = separable(margin)
    step = build_head("los_step", fc, features=features, labels=labels, strength=label_smooth * lr)
    head = build_head("linear", fc)
    LabelOverSmooth(label_smooth)(head(features), labels).backward()
    torch.optim.SGD(head.parameters(), lr=lr).step()
    pairs = zip(head.state_dict().values(), step.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("label_smooth", "lr"), [(0.98, 1.0), (0.5, 3.0), (0.98, 40.0)])
def test_los_step_is_the_gradient_step_of_los_where_training_predictions_are_one_hot(label_smooth, lr):
    assert apart(1000, label_smooth, lr) < 1e-10


def test_the_two_part_where_predictions_are_not_one_hot_and_meet_as_margins_grow():
    found = [apart(margin, 0.9, 1.0) for margin in (0.5, 2, 8, 32)]
    assert found == sorted(found, reverse=True) and found[0] > 0.1 and found[-1] < 1e-10


def test_los_step_leaves_the_row_of_a_class_without_feature_but_for_the_overall_mean(fc):
    features, labels = training_set()
    features, labels = features[labels != 3], labels[labels != 3]
    head = build_head("los_step", fc, features=features, labels=labels, strength=0.7)
    torch.testing.assert_close(head.weight[3], fc.weight[3] + 0.7 * features.mean(0) / K)
    torch.testing.assert_close(head.bias[3], fc.bias[3] + 0.7 / K)


def test_the_state_of_los_step_is_that_of_a_linear_head(fc, x):
    head = made("los_step", fc)
    assert isinstance(head, nn.Linear)
    assert torch.equal(head_from_state("linear", head.state_dict())(x), head(x))


# ---- monotone row norms, logistic regression


@pytest.mark.parametrize(
    ("counts", "lengths", "expected"),
    [
        ([9, 7, 5, 3, 1], [5, 4, 3, 2, 1], [3, 3, 3, 3, 3]),
        ([9, 7, 5, 3, 1], [1, 3, 2, 5, 4], [1, 2.5, 2.5, 4.5, 4.5]),
        ([1, 3, 5, 7, 9], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]),
        ([9, 5, 5, 1, 1], [1, 4, 2, 6, 5], [1, 3, 3, 5.5, 5.5]),
        ([9, 7, 5, 3, 1], [0, 1, 0, 2, 3], [0, 0.5, 0, 2, 3]),
    ],
    ids=["falling", "two violators", "rising", "equal counts, equal norms", "a row of zeros"],
)
def test_row_norms_come_to_the_nearest_that_do_not_fall_towards_rare_classes(fc, counts, lengths, expected):
    fc.weight.copy_(nn.functional.normalize(fc.weight) * torch.tensor(lengths)[:, None])
    head = build_head("samn", fc, counts)
    head.constrain()
    np.testing.assert_allclose(array(head.weight.norm(dim=1)), expected, rtol=1e-12)
    assert torch.equal(head.bias, fc.bias)
    directions = nn.functional.cosine_similarity(head.weight, fc.weight)
    assert (directions[torch.tensor(lengths) > 0] > 1 - 1e-12).all()


def test_logistic_regression_ignores_scale_and_place_of_the_features_and_has_one_result(fc, x):
    features, labels = training_set()
    found = [
        build_head("logreg", fc.float(), features=rows.float(), labels=labels)(shown.float())
        for rows, shown in ((features, x), (features, x), (1000 * features + 7, 1000 * x + 7))
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=0.02, atol=0.02)


def test_logistic_regression_of_two_classes_and_of_a_feature_that_is_always_zero():
    features, labels = torch.randn(40, 3, generator=seeded(0)), torch.arange(40) % 2
    features[:, 0] += 4 * labels
    features[:, 2] = 0
    head = build_head("logreg", nn.Linear(3, 2), features=features, labels=labels)
    assert (head(features).argmax(dim=1) == labels).float().mean() > 0.9
    torch.testing.assert_close(head.weight[0], -head.weight[1])
    assert not head.weight[:, 2].any()


def test_what_logistic_regression_cannot_fit_is_refused(fc, monkeypatch):
    features, labels = training_set()
    with pytest.raises(ValueError, match="class 3 has no training feature"):
        build_head("logreg", fc, features=features[labels != 3], labels=labels[labels != 3])
    monkeypatch.setattr(fitted, "MOST", 100)
    with pytest.raises(ValueError, match=r"28 x 7 features of 5 classes are too many.*leave logreg out"):
        build_head("logreg", fc, features=features, labels=labels)


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("cosine", {}, "unknown head 'cosine', known: linear, lws, tau_norm, ncm"),
        ("la", {"taus": 1.0}, "unknown option 'taus' of head 'la', known: tau"),
        ("marc", {"tau": 1.0}, "unknown option 'tau' of head 'marc', known: none"),
        ("etf", {}, "'etf' needs generator"),
        ("linear", {"fresh": True}, "'linear' needs generator"),
        ("ncm", {}, "'ncm' needs features and labels"),
        ("los_step", {}, "'los_step' needs features and labels"),
        ("la", {}, "'la' needs class_counts"),
        ("la", {"class_counts": [3, 0, 2, 1, 1]}, "class_counts must be above 0, class 1 has 0"),
        ("la", {"class_counts": [3, 2]}, "class_counts must hold 5 counts"),
        ("tau_norm", {"tau": -0.1}, "tau must be"),
        ("la", {"tau": float("nan")}, "tau must be"),
        ("etf", {"scale": 0.0}, "scale must be"),
        ("etf", {"scale": float("inf")}, "scale must be"),
        ("logreg", {"logreg_c": 0.0}, "logreg_c must be"),
        ("samn", {}, "'samn' needs class_counts"),
        ("los_step", {"strength": -1e-9}, "strength must be"),
        ("los_step", {"strength": float("nan")}, "strength must be"),
    ],
)
def test_what_is_unknown_missing_or_out_of_range_is_refused_by_name(fc, kind, given, message):
    with pytest.raises(ValueError, match=message):
        build_head(kind, fc, **given)


def test_a_frame_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_head("etf", nn.Linear(4, 1), generator=seeded(0))


@pytest.mark.parametrize("make", ["ncm", "los_step", "logreg", class_means])
def test_features_and_labels_that_do_not_fit_are_refused(fc, make):
    features, labels = training_set()
    for rows, classes, message in (
        (features, labels[1:], r"features must be \[27, 7\]"),
        (features, labels + 1, r"labels must be in 0\.\.4, got 1\.\.5"),
        (features[:0], labels[:0], "no training feature"),
    ):
        with pytest.raises(ValueError, match=message):
            if make is class_means:
                class_means(rows, classes, K)
            else:
                build_head(make, fc, features=rows, labels=classes)
    with pytest.raises(ValueError, match="class 3 has no training feature"):
        build_head("ncm", fc, features=features[labels != 3], labels=labels[labels != 3])


def test_the_state_of_another_kind_of_head_is_refused_by_name(fc):
    for kind, state, message in (
        ("marc", fc.state_dict(), "not the weights of a head 'marc': scale, shift missing"),
        ("lws", made("marc", fc).state_dict(), "not the weights of a head 'lws': shift missing, unknown"),
        ("linear", {"bias": fc.bias}, "no matrix `weight`"),
    ):
        with pytest.raises(ValueError, match=message):
            head_from_state(kind, state)
