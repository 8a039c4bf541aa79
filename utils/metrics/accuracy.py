"""Accuracy and calibration from logits and targets: predict first, score second.

One rule, in `predictions` and `topk_hits`: of equal logits the first class wins, and an image whose logits
are not all finite has no prediction. Such an image counts as wrong, has no confidence, and what is computed
from its logits' values (the calibration error, LoMa and RSD of its class) cannot be given.

Shapes: N images, K classes. Accuracies are fractions; a group without classes, or a figure that cannot be, is
None.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import SHOTS, shot_groups
from utils.base.distributed import World
from utils.metrics.logits import READINGS, LogitStatistics

CALIBRATION_BINS = 15
GROUPS = ("many", "medium", "few")
EPOCH_FIGURES = ("overall", *GROUPS, "balanced")  # of a part, in metrics.csv


@dataclass(frozen=True)
class ShotAccuracy:
    """Overall accuracy over images; many, medium, few as the mean of their classes' accuracies."""

    overall: float
    many: float | None
    medium: float | None
    few: float | None
    balanced: float  # mean over the classes that have images
    per_class: list[float | None]
    support: list[int]


def predictions(logits: Tensor) -> Tensor:
    """logits [N, K] -> predicted classes int64 [N], the first of equals; -1 where one is not finite."""
    largest, classes = logits.max(dim=1)  # torch counts what is not a number as the largest
    return classes.masked_fill(~(largest.isfinite() & logits.amin(dim=1).isfinite()), -1)


def topk_hits(logits: Tensor, targets: Tensor, predicted: Tensor, k: int) -> Tensor:
    """bool [N]: is the image's class among the k that come first, in the order of `predictions`?"""
    own, label = logits.gather(1, targets[:, None]), targets[:, None]
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (classes < label))
    return (before.sum(dim=1) < k) & (predicted >= 0)


def confidences(logits: Tensor, predicted: Tensor) -> Tensor:
    """The largest softmax probability float64 [N]; not a number where there is no prediction."""
    return logits.double().softmax(dim=1).amax(dim=1).masked_fill(predicted < 0, torch.nan)


def shot_accuracy(
    logits: Tensor, targets: Tensor, class_counts: list[int], shots: tuple[int, int] = SHOTS
) -> ShotAccuracy:
    """Score logits [N, K] against targets [N]; groups by training counts [K], see `shot_groups`."""
    return shots_of(predictions(logits), targets, class_counts, shots)


def shots_of(
    predicted: Tensor, targets: Tensor, class_counts: list[int], shots: tuple[int, int] = SHOTS
) -> ShotAccuracy:
    """`shot_accuracy` from predicted classes [N]."""
    num_classes = len(class_counts)
    support = torch.bincount(targets, minlength=num_classes).cpu().numpy()
    hits = torch.bincount(targets[predicted == targets], minlength=num_classes).cpu().numpy()
    per_class = np.divide(hits, support, out=np.full(num_classes, np.nan), where=support > 0)
    groups = {name: _mean(per_class[mask]) for name, mask in shot_groups(class_counts, shots).items()}
    return ShotAccuracy(
        overall=float(hits.sum() / support.sum()),
        balanced=_mean(per_class),
        per_class=_plain(per_class),
        support=support.tolist(),
        **groups,
    )


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _plain(values: np.ndarray) -> list[float | None]:
    return np.where(np.isfinite(values), values, None).tolist()


def topk_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> float | None:
    """Share of images whose class is among the k largest logits; None with k classes or fewer."""
    if logits.shape[1] <= k:
        return None
    return float(topk_hits(logits, targets, predictions(logits), k).double().mean())


def calibration_error(logits: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> float | None:
    """Expected calibration error: |accuracy - confidence| of equal-width bins, weighted by their images.

    Source: Guo et al. 2017; confidence is the largest softmax probability. None where an image has none.
    """
    predicted = predictions(logits)
    gaps = _calibration_gaps(confidences(logits, predicted), predicted == targets, bins)
    return _mean_gap(gaps, len(targets))


def _calibration_gaps(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Hits minus confidence, summed in each bin of confidence: float64 [bins]."""
    index = (confidence * bins).ceil().nan_to_num().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    return gap.index_add_(0, index, correct.double() - confidence)


def _mean_gap(gaps: Tensor, images: int) -> float | None:
    error = float(gaps.abs().sum()) / images
    return error if math.isfinite(error) else None


class Scores:
    """Every figure of a report from batches of logits in one pass: no [N, K] is kept, only [N] and [K].

    `targets` [N] are those of all images, the batches to come begin with image `first`. They fill in
    `predicted`, int64 [N], and `confidence`, float32 [N], the largest softmax probability.
    """

    def __init__(self, targets: Tensor, num_classes: int, first: int = 0) -> None:
        self.targets, self.num_classes = targets, num_classes
        self._first = self._next = first
        self.predicted = torch.full_like(targets, -1)
        self.confidence = torch.zeros_like(targets, dtype=torch.float32)
        self._statistics = LogitStatistics(torch.bincount(targets, minlength=num_classes))
        self._gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=targets.device)
        self._top5_hits = torch.zeros(1, dtype=torch.float64, device=targets.device)

    def add(self, logits: Tensor) -> None:
        """Take in the next batch of logits [n, K]."""
        own = slice(self._next, self._next + len(logits))
        self._next, targets = own.stop, self.targets[own]
        predicted, logits = predictions(logits), logits.double()
        confidence = confidences(logits, predicted)
        self.predicted[own], self.confidence[own] = predicted, confidence
        self._top5_hits += topk_hits(logits, targets, predicted, 5).sum()
        self._gaps += _calibration_gaps(confidence, predicted == targets, CALIBRATION_BINS)
        self._statistics.add(logits, targets)

    def of_all(self, world: World) -> "Scores":
        """Take in what the other processes have scored, in the order of their ranks; returns itself."""
        if world.size > 1:
            own = slice(self._first, self._next)
            self.predicted, self.confidence = map(world.gather, (self.predicted[own], self.confidence[own]))
            for sums in (self._gaps, self._top5_hits, *self._statistics.sums):
                world.total(sums)
        return self

    def figures(self, class_counts: list[int], shots: tuple[int, int] = SHOTS) -> dict:
        """Plain data ready for JSON: scalars, LoMa and RSD by group, and under `classes` lists [K].

        `without_prediction` is the number of images whose logits are not finite, where there are any.
        """
        accuracy = shots_of(self.predicted, self.targets, class_counts, shots)
        classes = {"test_images": accuracy.support, "accuracy": accuracy.per_class}
        by_group, logit_classes = logit_figures(self._statistics, class_counts, shots)
        images, lost = len(self.targets), int((self.predicted < 0).sum())
        return {
            **{name: getattr(accuracy, name) for name in EPOCH_FIGURES},
            "top5": None if self.num_classes <= 5 else float(self._top5_hits) / images,
            "calibration_error": _mean_gap(self._gaps, images),
            **({"without_prediction": lost} if lost else {}),
            **by_group,
            "classes": classes | logit_classes,
        }


def logit_figures(
    statistics: LogitStatistics, class_counts: list[int], shots: tuple[int, int] = SHOTS
) -> tuple[dict, dict]:
    """LoMa and RSD in both readings: group means with `spread`, the deviation over classes; lists [K]."""
    by_group, classes, masks = {}, {}, shot_groups(class_counts, shots)
    for reading in READINGS:
        for metric, found in (("loma", statistics.magnitude), ("rsd", statistics.regularized_std)):
            values, name = found(reading).cpu().numpy(), f"{metric}_{reading}"
            known = values[np.isfinite(values)]
            by_group[name] = {"all": _mean(values)} | {g: _mean(values[mask]) for g, mask in masks.items()}
            by_group[name]["spread"] = float(known.std()) if len(known) else None
            classes[name] = _plain(values)
    return by_group, classes


def report(logits: Tensor, targets: Tensor, class_counts: list[int]) -> dict:
    """The figures of `Scores` for logits [N, K] that are all there."""
    scores = Scores(targets, len(class_counts))
    scores.add(logits)
    return scores.figures(class_counts)


def percent(value: float | None) -> str:
    """0.4712 -> '47.12'; None -> '-'."""
    return "-" if value is None else f"{100 * value:.2f}"


def lost_images(count: int, label: str = "") -> str:
    """The warning of a report over images that have no prediction; `label` tells heads apart."""
    whose = f"{label}: " if label else ""
    return f"{whose}{count} image(s) have no prediction, their logits are not finite: they count as wrong"


def result_line(figures: dict, selected_on: str, label: str = "") -> str:
    """The line that each script ends with, for people and programs alike; `label` tells heads apart."""
    shares = " ".join(f"{name}={percent(figures[name])}" for name in ("overall", *GROUPS))
    return f"test {label}{' ' if label else ''}{shares} selected_on={selected_on}"


def epoch_columns(parts: Iterable[str]) -> list[str]:
    """The names of the figures of `epoch_figures` for these parts, in its order."""
    return [f"{part}_{name}" for part in parts for name in EPOCH_FIGURES]


def epoch_figures(
    predicted: dict[str, Tensor],
    targets: dict[str, Tensor],
    class_counts: list[int],
    shots: tuple[int, int] = SHOTS,
) -> dict:
    """The columns of metrics.csv for the scored parts, by name: predicted classes [N] against targets [N]."""
    row = {}
    for part, classes in predicted.items():
        accuracy = shots_of(classes, targets[part], class_counts, shots)
        row |= {f"{part}_{name}": getattr(accuracy, name) for name in EPOCH_FIGURES}
    return row
