"""Accuracy and calibration from logits and targets: predict first, score second.

Shapes: N images, K classes. Accuracies are fractions; a group without classes, or a figure that cannot be, is
None.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import shot_groups
from utils.logit_metrics import READINGS, logit_statistics, logits_magnitude, regularized_std

__all__ = [
    "ShotAccuracy",
    "calibration_error",
    "logits_magnitude",
    "regularized_std",
    "report",
    "shot_accuracy",
    "topk_accuracy",
]

CALIBRATION_BINS = 15
GROUPS = ("many", "medium", "few")


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


def shot_accuracy(logits: Tensor, targets: Tensor, class_counts: list[int]) -> ShotAccuracy:
    """Score logits [N, K] against targets [N]; groups by training counts [K].

    Source: Liu et al. 2019: many above 100, medium 20 to 100, few below 20. Ties go to the first class, as
    argmax gives it. Not-a-number logits count as wrong.
    """
    correct = (logits.argmax(dim=1) == targets) & ~logits.isnan().any(dim=1)
    num_classes = len(class_counts)
    support = torch.bincount(targets, minlength=num_classes).cpu().numpy()
    hits = torch.bincount(targets[correct], minlength=num_classes).cpu().numpy()
    per_class = np.divide(hits, support, out=np.full(num_classes, np.nan), where=support > 0)
    groups = {name: _mean(per_class[mask]) for name, mask in shot_groups(class_counts).items()}
    return ShotAccuracy(
        overall=float(hits.sum() / support.sum()),
        balanced=_mean(per_class),
        per_class=[None if np.isnan(value) else float(value) for value in per_class],
        support=support.tolist(),
        **groups,
    )


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def topk_accuracy(logits: Tensor, targets: Tensor, k: int = 5) -> float | None:
    """Share of images whose class is among the k largest logits; None with k classes or fewer."""
    if logits.shape[1] <= k:
        return None
    return float((logits.topk(k, dim=1).indices == targets[:, None]).any(dim=1).float().mean())


def calibration_error(logits: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of equal-width bins, weighted by their images.

    Source: Guo et al. 2017; confidence is the largest softmax probability.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    correct = (predicted == targets).double()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gap.index_add_(0, index, correct - confidence)
    return float(gap.abs().sum() / len(targets))


def report(logits: Tensor, targets: Tensor, class_counts: list[int]) -> dict:
    """Every figure of a report, as plain data ready for JSON.

    Scalars at the top; LoMa and RSD, in both readings, as the mean over all classes and over those of each
    shot group; under `classes` the lists [K] of every per-class figure.
    """
    shots = shot_accuracy(logits, targets, class_counts)
    statistics = logit_statistics(logits, targets)
    classes = {"test_images": shots.support, "accuracy": shots.per_class}
    by_group = {}
    for reading in READINGS:
        for name, found in (
            (f"loma_{reading}", statistics.magnitude(reading)),
            (f"rsd_{reading}", statistics.regularized_std(reading)),
        ):
            values = found.cpu().numpy()
            groups = {group: _mean(values[mask]) for group, mask in shot_groups(class_counts).items()}
            by_group[name] = {"all": _mean(values), **groups}
            classes[name] = [None if np.isnan(value) else float(value) for value in values]
    return {
        **{name: getattr(shots, name) for name in ("overall", *GROUPS, "balanced")},
        "top5": topk_accuracy(logits, targets),
        "calibration_error": calibration_error(logits, targets),
        **by_group,
        "classes": classes,
    }


def percent(value: float | None) -> str:
    """0.4712 -> '47.12'; None -> '-'."""
    return "-" if value is None else f"{100 * value:.2f}"


def result_line(figures: dict, selected_on: str, split: str = "test") -> str:
    """The line that each script ends with, for people and programs alike."""
    shares = " ".join(f"{name}={percent(figures[name])}" for name in ("overall", *GROUPS))
    return f"{split} {shares} selected_on={selected_on}"


def epoch_figures(logits: dict[str, Tensor], targets: dict[str, Tensor], class_counts: list[int]) -> dict:
    """The columns of metrics.csv for the scored parts, by name: logits [N, K] against targets [N]."""
    row = {}
    for part, values in logits.items():
        shots = shot_accuracy(values, targets[part], class_counts)
        row |= {f"{part}_{name}": getattr(shots, name) for name in ("overall", *GROUPS, "balanced")}
    return row
