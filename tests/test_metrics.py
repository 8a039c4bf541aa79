"""Accuracy, calibration, LoMa and RSD by enumeration and by hand, and the one line that programs read."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import f1_score, precision_score

from utils.base.errors import UserError
from utils.metrics import logits_magnitude, regularized_std
from utils.metrics.accuracy import (
    Scores,
    calibration_error,
    epoch_figures,
    predictions,
    result_line,
    shot_accuracy,
    topk_hits,
)
from utils.metrics.balance import RATIOS, balance_figures, rank_correlation, shifted_priors, target_priors
from utils.metrics.logits import READINGS
from utils.metrics.paired import bootstrap, holm, mcnemar
from utils.metrics.percent import fraction, in_percent
from utils.metrics.temperature import fit_temperature

# one class a row: training count, hits, test images; class 3 has no test images
CLASSES = [(500, 3, 4), (101, 1, 2), (100, 2, 2), (50, 0, 0), (20, 0, 3), (19, 1, 4)]
COUNTS = [count for count, _, _ in CLASSES]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets with the hits of CLASSES in mixed order; a miss goes to the next class."""
    rows, targets = [], []
    for label, (_, hits, images) in enumerate(CLASSES):
        for image in range(images):
            winner = label if image < hits else (label + 1) % len(CLASSES)
            rows.append([5.0 if k == winner else 0.1 * k for k in range(len(CLASSES))])
            targets.append(label)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    return torch.tensor(rows)[order], torch.tensor(targets)[order]


# training counts of the classes of `random_scores`: three of them many, five medium, four few
TWELVE = [200, 150, 101, 100, 80, 60, 40, 20, 19, 10, 5, 1]


def random_scores(images: int = 400, num_classes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(images)
    targets = torch.randint(0, num_classes, (images,), generator=generator)
    logits = 2 * torch.randn(images, num_classes, generator=generator)
    logits[torch.arange(images), targets] += 1.5
    return logits, targets


def report(logits: torch.Tensor, targets: torch.Tensor, class_counts: list[int]) -> dict:
    """The figures of `Scores` for logits [N, K] that are all there."""
    scores = Scores(targets, len(class_counts))
    scores.add(logits)
    return scores.figures(class_counts)


def topk_accuracy(logits: torch.Tensor, targets: torch.Tensor, k: int = 5) -> float:
    return float(topk_hits(logits, targets, predictions(logits), k).double().mean())


# ---- accuracy ----


def test_shot_accuracy_equals_enumeration():
    shots = shot_accuracy(*example(), COUNTS)
    assert shots.per_class == [3 / 4, 1 / 2, 1.0, None, 0.0, 1 / 4]
    assert shots.support == [4, 2, 2, 0, 3, 4]
    assert shots.overall == pytest.approx(7 / 15)
    assert shots.many == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert shots.medium == pytest.approx((1.0 + 0.0) / 2)
    assert shots.few == pytest.approx(1 / 4)
    assert shots.balanced == pytest.approx((3 / 4 + 1 / 2 + 1 + 0 + 1 / 4) / 5)


def test_an_empty_group_is_none_and_not_a_number():
    logits, targets = example()
    shots = shot_accuracy(logits, targets, [500] * 6)
    assert shots.medium is None and shots.few is None and shots.many is not None
    # nor has a group a figure whose classes have no test images
    assert shot_accuracy(logits, targets, [500, 500, 500, 5, 500, 500]).few is None
    shots = shot_accuracy(torch.eye(4)[[0, 1]], torch.tensor([0, 1]), [200, 50, 10, 5])
    assert shots.per_class == [1.0, 1.0, None, None] and shots.few is None


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_image_with_a_logit_that_is_not_finite_has_no_prediction_in_any_figure(odd):
    logits, targets = torch.eye(7) * 9, torch.arange(7)
    logits[2, 2] = logits[4, 6] = odd
    assert predictions(logits).tolist() == [0, 1, -1, 3, -1, 5, 6]
    assert topk_accuracy(logits, targets, 1) == topk_accuracy(logits, targets, 6) == 5 / 7
    assert calibration_error(logits, targets) is None
    figures = report(logits, targets, [9] * 7)
    assert figures["overall"] == figures["top5"] == 5 / 7 and figures["calibration_error"] is None
    assert figures["without_prediction"] == 2
    unknown = [value is None for value in figures["classes"]["loma_per_sample"]]
    assert unknown == [False, False, True, False, True, False, False]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert "without_prediction" not in report(torch.eye(7), targets, [9] * 7)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_of_equal_logits_the_first_class_wins_in_every_figure(levels):
    """Top-1 by ranks is the accuracy, and no top-k is below a smaller one; softmax rounds 1e-30 to a tie."""
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(levels, (300, 9), generator=generator).float()
    targets = torch.randint(9, (300,), generator=generator)
    shares = [topk_accuracy(logits, targets, k) for k in range(1, 9)]
    assert shares[0] == pytest.approx(shot_accuracy(logits, targets, [9] * 9).overall)
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] < 1
    assert topk_accuracy(torch.zeros(4, 9), torch.tensor([0, 4, 5, 8])) == 0.5
    tiny = torch.tensor([[1e-30, 2e-30]])
    assert predictions(tiny).tolist() == [1] and calibration_error(tiny, torch.tensor([1])) == 0.5


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_equals_a_count_by_sorting(k):
    logits, targets = random_scores()
    hits = 0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        hits += target in sorted(range(len(row)), key=lambda c: -row[c])[:k]
    assert 0 < hits < len(targets)
    assert topk_accuracy(logits, targets, k) == pytest.approx(hits / len(targets))


def test_top_5_is_none_with_five_classes_or_fewer():
    known = {k: report(*random_scores(num_classes=k), [9] * k)["top5"] is not None for k in (4, 5, 6)}
    assert known == {4: False, 5: False, 6: True}


# ---- calibration ----


def slow_calibration_error(logits: torch.Tensor, targets: torch.Tensor, bins: int) -> float:
    """Guo et al. 2017, equation 3: bin m holds confidences in ((m - 1) / M, m / M]."""
    members = [[] for _ in range(bins)]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        weights = [math.exp(value - max(row)) for value in row]
        confidence = max(weights) / sum(weights)
        for m in range(bins):
            if m / bins < confidence <= (m + 1) / bins:
                members[m].append((confidence, float(row.index(max(row)) == target)))
    assert sum(map(len, members)) == len(targets)
    total = 0.0
    for content in filter(None, members):
        accuracy = sum(hit for _, hit in content) / len(content)
        confidence = sum(conf for conf, _ in content) / len(content)
        total += len(content) / len(targets) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_error_equals_a_slow_computation(bins):
    logits, targets = random_scores()
    slow = slow_calibration_error(logits, targets, bins)
    assert calibration_error(logits, targets, bins) == pytest.approx(slow, abs=1e-9)


def test_over_and_under_confidence_of_different_bins_do_not_cancel():
    """Half the images 0.9 sure and half of them right, half 0.6 sure and all right: (.4 + .4) / 2."""
    logits = torch.tensor([[math.log(9), 0.0]] * 2 + [[math.log(1.5), 0.0]] * 2)
    assert calibration_error(logits, torch.tensor([0, 1, 0, 0])) == pytest.approx(0.4)
    sure = 100 * torch.eye(4)  # and always right, or always wrong
    assert calibration_error(sure, torch.arange(4)) == pytest.approx(0)
    assert calibration_error(sure, (torch.arange(4) + 1) % 4) == pytest.approx(1)


def test_a_temperature_is_where_the_likelihood_of_classes_that_weigh_the_same_is_largest():
    logits, targets = random_scores()
    weights = torch.bincount(targets)[targets].double().reciprocal()

    def loss(inverse: float) -> float:
        each = torch.nn.functional.cross_entropy(inverse * logits.double(), targets, reduction="none")
        return float(weights @ each)

    best = minimize_scalar(loss, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, targets) == pytest.approx(1 / best, rel=1e-4) != pytest.approx(1, rel=0.1)
    assert fit_temperature(logits / 500, targets) == pytest.approx(1 / best / 500, rel=1e-4)
    assert fit_temperature(torch.eye(5), torch.arange(5)) is None, "all right: ever larger is ever better"
    assert fit_temperature(logits.clone().fill_diagonal_(math.nan), targets) is None


def test_likelihood_brier_score_and_calibration_are_those_of_their_definitions():
    logits, targets = random_scores()
    scores = Scores(targets, 12, temperature=3.0)
    scores.add(logits)
    figures, shares = scores.figures(TWELVE), logits.double().softmax(dim=1)
    nll = torch.nn.functional.cross_entropy(logits.double(), targets)
    assert figures["nll"] == pytest.approx(float(nll))
    wanted = torch.nn.functional.one_hot(targets, 12)
    assert figures["brier"] == pytest.approx(float(((shares - wanted) ** 2).sum(dim=1).mean()))
    few = targets >= 8
    assert figures["calibration_error_few"] == pytest.approx(calibration_error(logits[few], targets[few]))
    scaled = pytest.approx(calibration_error(logits / 3, targets), abs=1e-6)
    assert figures["calibration_error_scaled"] == scaled != figures["calibration_error"]
    far = report(torch.tensor([[0.0, 2000.0]]), torch.tensor([0]), [9, 9])
    assert far["nll"] == 2000 and far["calibration_error_few"] == pytest.approx(1)
    assert far["calibration_error_many"] is None


# ---- balance ----


def test_f1_and_precision_are_those_of_scikit_learn_over_the_classes_with_test_images():
    logits, targets = random_scores()
    targets[targets == 5] = 4  # class 5 is predicted, and has no images
    logits[:, 7] -= 99  # class 7 is never predicted
    predicted, classes = logits.argmax(dim=1), [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    counts = [200, 150, 101, 100, 80, 60, 40, 30, 19, 10, 5, 1]
    figures = balance_figures(predicted, targets, counts)
    options = {"average": "macro", "zero_division": 0}
    for part, labels in (("", classes), ("_many", [0, 1, 2]), ("_few", [8, 9, 10, 11])):
        theirs = f1_score(targets, predicted, labels=labels, **options)
        assert figures[f"macro_f1{part}"] == pytest.approx(theirs)
        theirs = precision_score(targets, predicted, labels=labels, **options)
        assert figures[f"precision{part}"] == pytest.approx(theirs)
    assert figures["zero_classes"] == 1 and figures["harmonic_mean"] == figures["worst_class"] == 0


def test_the_worst_classes_and_the_means_that_punish_them_by_hand():
    targets = torch.arange(12).repeat_interleave(4)
    hits = [4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 2]
    predicted = torch.tensor([k if i < n else (k + 1) % 12 for k, n in enumerate(hits) for i in range(4)])
    figures = balance_figures(predicted, targets, list(range(120, 0, -10)))
    shares = [n / 4 for n in hits]
    assert figures["worst_class"] == 0.25 and figures["worst_tenth"] == (0.25 + 0.5) / 2
    assert figures["harmonic_mean"] == pytest.approx(12 / sum(1 / share for share in shares))
    assert figures["geometric_mean"] == pytest.approx(math.prod(shares) ** (1 / 12))
    assert figures["zero_classes"] == 0
    theirs = spearmanr(range(120, 0, -10), shares).statistic
    assert figures["rank_correlation"] == pytest.approx(theirs) and 0.8 < theirs < 1
    assert rank_correlation(np.array([3, 3]), np.array([1, 2])) is None


def test_accuracy_under_a_prior_is_that_of_a_test_set_with_so_many_images():
    """Classes repeated 4, 2 and 1 times are a forward set of ratio 4; the logits are corrected for it too."""
    logits, targets = random_scores(num_classes=3)
    times = torch.tensor([1, 4, 2])
    counts = [5, 300, 50]
    own = {"target": np.array([1, 4, 2]) / 7}
    support = torch.bincount(targets)
    even = int(support.min())
    keep = torch.cat([(targets == k).nonzero().flatten()[:even] for k in range(3)])
    logits, targets = logits[keep], targets[keep]
    drawn = torch.arange(len(targets)).repeat_interleave(times[targets])
    scores = Scores(targets, 3, priors=own)
    scores.add(logits)
    figures, corrected = scores.figures(counts), logits + torch.tensor(own["target"]).log()
    assert figures["target"] == pytest.approx(shot_accuracy(logits[drawn], targets[drawn], counts).overall)
    expected = shot_accuracy(corrected[drawn], targets[drawn], counts).overall
    assert figures["target_known"] == pytest.approx(expected) != figures["target"]


def test_shifted_priors_fall_by_rank_in_training_images_or_rise_the_same_way():
    counts = [5, 300, 50]
    priors = shifted_priors(counts)
    assert list(priors) == [f"{way}_{r}" for way in ("forward", "backward") for r in RATIOS]
    np.testing.assert_allclose(priors["forward_25"], np.array([1, 25, 5]) / 31)
    np.testing.assert_allclose(priors["backward_25"], np.array([25, 1, 5]) / 31)
    assert target_priors(None, counts) == {} and target_priors("known", counts).keys() == priors.keys()
    np.testing.assert_allclose(target_priors("1,2,5", counts)["target"], [1 / 8, 2 / 8, 5 / 8])


# ---- paired comparison ----


def test_the_paired_test_is_the_exact_binomial_one_on_images_that_one_of_the_two_gets_right():
    targets = torch.tensor([0] * 40)
    ours, theirs = torch.ones(2, 40, dtype=torch.int64)
    ours[:9], theirs[3:30] = 0, 0  # 3 only ours, 6 both, 21 only theirs, 10 neither
    assert mcnemar(ours, theirs, targets) == pytest.approx(binomtest(3, 24).pvalue, rel=1e-12)
    draw = torch.Generator().manual_seed(0)
    one, other, targets = torch.randint(0, 3, (3, 200), generator=draw)
    assert mcnemar(one, other, targets) == mcnemar(other, one, targets) < 1
    assert mcnemar(one, one, targets) == mcnemar(torch.tensor([1]), torch.tensor([2]), torch.tensor([0])) == 1


def test_holm_multiplies_the_smallest_by_their_number_and_keeps_the_order():
    assert holm([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, None, 0.09, 0.09, 0.5])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.8]) == [1, 1] and holm([None]) == [None]


def test_bootstrap_draws_are_of_classes_and_of_images_within_them():
    """One head is right on whole classes, one on half of each: the variances have a closed form."""
    sizes = [30, 10, 20, 40] * 5
    targets = torch.arange(20).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    whole = (targets % 2 == 0).double()
    within = (torch.arange(len(targets)) % 2).double()  # half of each class
    draws = bootstrap(torch.stack([whole, within])[:, order].numpy(), targets[order])
    assert draws.shape == (2, 2000)
    assert draws.mean(axis=1) == pytest.approx([0.5, 0.5], abs=0.01)
    assert draws[1].std() == pytest.approx(0.5 / len(targets) ** 0.5, rel=0.1)
    weights = np.array(sizes, float)
    of_ratio = weights * (np.arange(20) % 2 == 0) - weights * weights[::2].sum() / weights.sum()
    assert draws[0].std() == pytest.approx((20 * of_ratio.var()) ** 0.5 / weights.sum(), rel=0.1)
    again = bootstrap(whole[None].numpy(), targets)
    assert np.array_equal(again[0], draws[0]), "they depend neither on the heads nor on the images' order"
    with pytest.raises(UserError, match="of one class"):
        bootstrap(np.ones((2, 9)), torch.full((9,), 3))


# ---- reports ----


def test_the_result_line_has_the_published_form_with_a_dash_for_an_empty_group():
    figures = {"overall": 0.4712, "many": 1.0, "medium": 0.0, "few": None}
    line = result_line(figures, selected_on="last")
    assert line == "test overall=47.12 many=100.00 medium=0.00 few=- selected_on=last"
    assert result_line(figures, "val", label="method=los seed=1") == (
        "test method=los seed=1 overall=47.12 many=100.00 medium=0.00 few=- selected_on=val"
    )


def test_the_report_is_plain_data_that_agrees_with_the_single_figures():
    logits, targets = example()
    figures = report(logits, targets, COUNTS)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    shots = shot_accuracy(logits, targets, COUNTS)
    for name in ("overall", "many", "medium", "few", "balanced"):
        assert figures[name] == getattr(shots, name)
    assert figures["top5"] == topk_accuracy(logits, targets)
    assert figures["calibration_error"] == calibration_error(logits, targets)


def test_the_columns_of_an_epoch_carry_the_names_of_their_parts():
    logits, targets = example()
    wrong = torch.roll(logits, 1, dims=1)
    predicted = {"val": predictions(logits), "test": predictions(wrong)}
    row = epoch_figures(predicted, {"val": targets, "test": targets}, COUNTS)
    names = ("overall", "many", "medium", "few", "balanced")
    assert set(row) == {f"{part}_{name}" for part in ("val", "test") for name in names}
    assert row["val_overall"] == pytest.approx(7 / 15)
    assert row["test_overall"] == shot_accuracy(wrong, targets, COUNTS).overall != row["val_overall"]
    assert epoch_figures({}, {}, COUNTS) == {}


# ---- scores in batches ----


@pytest.mark.parametrize("sizes", [[7] * 57 + [1], [100, 250, 50]])
def test_scores_in_several_batches_are_the_report_of_all_at_once(sizes):
    logits, targets = random_scores()
    scores, whole = (Scores(targets, 12, priors=shifted_priors(TWELVE), temperature=2.0) for _ in range(2))
    for batch in logits.split(sizes):
        scores.add(batch)
    whole.add(logits)
    assert torch.equal(scores.predicted, logits.argmax(dim=1))
    ours, theirs = scores.figures(TWELVE), whole.figures(TWELVE)
    assert ours.keys() == theirs.keys() and 0 < theirs["top5"] < 1
    ours, theirs = ours | ours.pop("classes"), theirs | theirs.pop("classes")
    for name, figure in theirs.items():
        assert ours[name] == pytest.approx(figure, rel=1e-6 if name == "top5" else 1e-9), name
    without = report(logits, targets, TWELVE)
    assert without["calibration_error_scaled"] is None and "forward_2_known" not in without


def test_the_spread_is_the_deviation_of_a_figure_over_the_classes_that_have_it():
    logits, targets = random_scores(num_classes=4)
    logits, targets = logits[targets != 2], targets[targets != 2]  # class 2 has no images
    figures = report(logits, targets, [300, 50, 40, 5])
    for name in ("loma_per_sample", "rsd_per_sample", "loma_per_class", "rsd_per_class"):
        values = [value for value in figures["classes"][name] if value is not None]
        assert len(values) == 3 and figures["classes"][name][2] is None
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        assert figures[name]["all"] == pytest.approx(mean)
        assert figures[name]["spread"] == pytest.approx(spread) and spread > 0


# ---- LoMa and RSD ----


def by_hand(logits: np.ndarray, targets: np.ndarray, reading: str) -> tuple[list[float], list[float]]:
    """LoMa and RSD of each class with plain loops."""
    num_classes = logits.shape[1]
    present = sorted(set(targets.tolist()))
    magnitude, deviation = [], []
    for k in range(num_classes):
        rows = [row for row, target in zip(logits, targets, strict=True) if target == k]
        if not rows:
            magnitude.append(math.nan)
            deviation.append(math.nan)
            continue
        if reading == "per_sample":
            values = [row[k] - np.mean([row[j] for j in range(num_classes) if j != k]) for row in rows]
            loma = np.mean(values)
        else:
            values = [row[k] for row in rows]
            others = [np.mean(logits[targets == c, k]) for c in present if c != k]
            loma = np.mean(values) - np.mean(others)
        magnitude.append(loma)
        deviation.append(np.std(values) / loma if loma > 0 else math.nan)
    return magnitude, deviation


@pytest.fixture
def classes_of_all_kinds() -> tuple[torch.Tensor, torch.Tensor]:
    """60 images of 6 classes: class 4 has one image, class 5 none, and class 3 a negative LoMa."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.tensor([0] * 25 + [1] * 20 + [2] * 8 + [3] * 6 + [4])
    logits = torch.randn(60, 6, generator=generator, dtype=torch.float64) * 2
    logits += 4 * torch.nn.functional.one_hot(targets, 6)
    logits[targets == 3, 3] -= 9
    logits[targets == 4, 4] += 9
    order = torch.randperm(60, generator=generator)
    return logits[order], targets[order]


@pytest.mark.parametrize("reading", READINGS)
def test_both_figures_equal_enumeration(classes_of_all_kinds, reading):
    logits, targets = classes_of_all_kinds
    magnitude, deviation = by_hand(logits.numpy(), targets.numpy(), reading)
    assert magnitude[3] < 0 and math.isnan(deviation[3]) and deviation[4] == 0 and math.isnan(magnitude[5])
    np.testing.assert_allclose(logits_magnitude(logits, targets, reading), magnitude, rtol=1e-12)
    found = regularized_std(logits, targets, reading).numpy()
    np.testing.assert_allclose(found, deviation, rtol=1e-9, atol=1e-7)


def test_a_report_gives_both_per_class_and_group_and_leaves_out_what_cannot_be(classes_of_all_kinds):
    logits, targets = classes_of_all_kinds
    figures = report(logits, targets, [200, 150, 50, 30, 5, 2])
    magnitude = logits_magnitude(logits, targets)
    assert figures["loma_per_sample"]["many"] == pytest.approx(float(magnitude[:2].mean()))
    assert figures["loma_per_sample"]["few"] == pytest.approx(float(magnitude[4]))
    deviation = float(regularized_std(logits, targets, "per_class")[2])
    assert figures["rsd_per_class"]["medium"] == pytest.approx(deviation)
    classes = figures["classes"]
    assert classes["loma_per_sample"][5] is None and classes["rsd_per_sample"][3] is None
    assert figures["rsd_per_sample"]["left_out"] == 1, "class 3; class 5 has no images"
    assert report(torch.eye(4), torch.arange(4), [9] * 4)["rsd_per_sample"]["left_out"] == 0


def test_an_unknown_reading_is_refused(classes_of_all_kinds):
    with pytest.raises(ValueError, match="per_sample, per_class"):
        logits_magnitude(*classes_of_all_kinds, "both")


def test_percent_has_the_digits_of_the_fraction_and_becomes_it_again():
    accuracies = [hits / 10_000 for hits in range(10_001)]
    rows = in_percent({"overall": accuracies, "lr": accuracies})
    assert rows["overall"].tolist() == [hits / 100 for hits in range(10_001)]
    assert [fraction(value) for value in rows["overall"]] == rows["lr"].tolist() == accuracies
