"""LoMa and RSD against enumeration on small sets, in both readings."""

import math

import numpy as np
import pytest
import torch

from utils.metrics import logits_magnitude, regularized_std, report
from utils.metrics.logits import READINGS, LogitStatistics


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
def example() -> tuple[torch.Tensor, torch.Tensor]:
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
def test_both_figures_equal_enumeration(example, reading):
    logits, targets = example
    magnitude, deviation = by_hand(logits.numpy(), targets.numpy(), reading)
    assert magnitude[3] < 0 and math.isnan(deviation[3]) and deviation[4] == 0 and math.isnan(magnitude[5])
    np.testing.assert_allclose(logits_magnitude(logits, targets, reading), magnitude, rtol=1e-12)
    found = regularized_std(logits, targets, reading).numpy()
    np.testing.assert_allclose(found, deviation, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("reading", READINGS)
def test_batches_of_any_size_and_order_give_the_same(example, reading):
    logits, targets = example
    whole = logits_magnitude(logits, targets, reading)
    statistics = LogitStatistics(torch.bincount(targets, minlength=6))
    for index in torch.arange(60).flip(0).split(7):
        statistics.add(logits[index], targets[index])
    np.testing.assert_allclose(statistics.magnitude(reading), whole, rtol=1e-12)


def test_a_constant_on_all_logits_changes_neither_reading_and_one_on_a_class_only_per_sample(example):
    logits, targets = example
    adjusted = logits + torch.tensor([3.0, 0, 0, 0, 0, 0])
    for reading in READINGS:
        np.testing.assert_allclose(
            logits_magnitude(logits + 5, targets, reading),
            logits_magnitude(logits, targets, reading),
            rtol=1e-9,
        )
    before, after = (logits_magnitude(z, targets, "per_class") for z in (logits, adjusted))
    np.testing.assert_allclose(before, after, rtol=1e-9)
    before, after = (logits_magnitude(z, targets, "per_sample") for z in (logits, adjusted))
    assert after[0] - before[0] == pytest.approx(3) and after[1] - before[1] == pytest.approx(-3 / 5)


def test_single_precision_logits_are_summed_in_double(example):
    logits, targets = example
    single = logits.float()
    exact = logits_magnitude(single.double(), targets)
    np.testing.assert_array_equal(logits_magnitude(single, targets), exact)


def test_a_report_gives_both_per_class_and_group_and_leaves_out_what_cannot_be(example):
    logits, targets = example
    figures = report(logits, targets, [200, 150, 50, 30, 5, 2])
    magnitude = logits_magnitude(logits, targets)
    assert figures["loma_per_sample"]["many"] == pytest.approx(float(magnitude[:2].mean()))
    assert figures["loma_per_sample"]["few"] == pytest.approx(float(magnitude[4]))
    assert figures["rsd_per_class"]["medium"] == pytest.approx(
        float(regularized_std(logits, targets, "per_class")[2])
    )
    assert (
        figures["classes"]["loma_per_sample"][5] is None and figures["classes"]["rsd_per_sample"][3] is None
    )


def test_an_unknown_reading_is_refused(example):
    with pytest.raises(ValueError, match="per_sample, per_class"):
        logits_magnitude(*example, "both")
