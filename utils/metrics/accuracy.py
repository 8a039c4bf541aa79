"""Accuracy and calibration from logits and targets: predict first, score second.

One rule, in `predictions` and `topk_hits`: of equal logits the first class wins, and an image whose logits
are not all finite has no prediction. Such an image counts as wrong, has no confidence, and what is computed
from its logits' values (the calibration error, LoMa and RSD of its class) cannot be given.

Shapes: N images, K classes. Accuracies are fractions; a group without classes, or a figure that cannot be, is
None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import SHOTS, shot_groups
from utils.base.distributed import World
from utils.metrics.balance import balance_figures, mean_of, under_prior
from utils.metrics.logits import READINGS, LogitStatistics

CALIBRATION_BINS = 15
GROUPS = ("many", "medium", "few")
PARTS = {"val": "validation", "test": "test"}  # what can be scored -> in words
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


def first_classes(logits: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """logits [N, K] -> the `count` classes that come first, in the order of `predictions`: int64 [N, count].

    And their softmax probabilities float64 [N, count]. -1 and not a number where there is no prediction.
    """
    left, found, lost = logits.clone(), [], predictions(logits)[:, None] < 0
    for _ in range(min(count, logits.shape[1])):
        found.append(left.max(dim=1).indices)
        left.scatter_(1, found[-1][:, None], -torch.inf)
    classes = torch.stack(found, dim=1)
    shares = logits.double().softmax(dim=1).gather(1, classes)
    return classes.masked_fill(lost, -1), shares.masked_fill(lost, torch.nan)


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
    groups = {name: mean_of(per_class[mask]) for name, mask in shot_groups(class_counts, shots).items()}
    return ShotAccuracy(
        overall=float(hits.sum() / support.sum()),
        balanced=mean_of(per_class),
        per_class=_plain(per_class),
        support=support.tolist(),
        **groups,
    )


def _plain(values: np.ndarray) -> list[float | None]:
    return np.where(np.isfinite(values), values, None).tolist()


def calibration_error(logits: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> float | None:
    """Expected calibration error: |accuracy - confidence| of equal-width bins, weighted by their images.

    Source: Guo et al. 2017; confidence is the largest softmax probability. None where an image has none.
    """
    predicted = predictions(logits)
    confidence = logits.double().softmax(dim=1).amax(dim=1).masked_fill(predicted < 0, torch.nan)
    return _calibration_error(confidence, predicted == targets, bins)


def _calibration_error(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> float | None:
    """The same of confidences and hits [N]; None too where there are no images."""
    index = (confidence * bins).ceil().nan_to_num().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, index, correct.double() - confidence)
    return _finite(gap.abs().sum() / len(correct)) if len(correct) else None


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


class Scores:
    """Every figure of a report from batches of logits in one pass: no [N, K] is kept, only [N], [K], [P, K].

    `targets` [N] are those of all images, the batches to come begin with image `first`. They fill in
    `predicted`, int64 [N], and `confidence`, float64 [N], the largest softmax probability. `priors` are P
    class priors [K] of test sets by name. Logits are corrected for each by its logarithm, which takes a head
    at its word as one for a balanced test set: right for heads that were balanced, not for `stage1` and `ce`,
    whose logits hold the training prior (`la` is `stage1` without it). With `temperature` there is a
    calibration error of the logits divided by it as well.
    """

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        first: int = 0,
        priors: Mapping[str, np.ndarray] | None = None,
        temperature: float | None = None,
    ) -> None:
        self.targets, self.num_classes = targets, num_classes
        self.priors, self.temperature = priors or {}, temperature
        self._first = self._next = first
        self.predicted = torch.full_like(targets, -1)
        self.confidence = torch.zeros_like(targets, dtype=torch.float64)
        self._scaled = torch.zeros_like(targets, dtype=torch.float64)  # confidence at the temperature
        self._statistics = LogitStatistics(torch.bincount(targets, minlength=num_classes))
        # over images: hits among the first five, negative log-likelihood, Brier score
        self._sums = torch.zeros(3, dtype=torch.float64, device=targets.device)
        self._log_priors = [torch.from_numpy(p).log().to(targets.device) for p in self.priors.values()]
        self._hits_under = torch.zeros(len(self.priors), num_classes, device=targets.device)

    def add(self, logits: Tensor) -> None:
        """Take in the next batch of logits [n, K]."""
        own = slice(self._next, self._next + len(logits))
        self._next, targets = own.stop, self.targets[own]
        predicted, given, logits = predictions(logits), logits, logits.double()
        shares = logits.softmax(dim=1)
        confidence = shares.amax(dim=1).masked_fill(predicted < 0, torch.nan)
        self.predicted[own], self.confidence[own] = predicted, confidence
        largest, label = logits.amax(dim=1), targets[:, None]
        # -log p of the label, which is finite where p itself has become 0
        likelihood = largest - logits.gather(1, label).squeeze(1) - confidence.log()
        brier = 1 + shares.norm(dim=1) ** 2 - 2 * shares.gather(1, label).squeeze(1)
        sums = (topk_hits(logits, targets, predicted, 5), likelihood, brier)
        self._sums += torch.stack([values.sum(dtype=torch.float64) for values in sums])
        self._statistics.add(logits, targets)
        if self.temperature is not None:
            scaled = (given / self.temperature).softmax(dim=1).amax(dim=1)
            self._scaled[own] = scaled.double().masked_fill(predicted < 0, torch.nan)
        for place, log_prior in enumerate(self._log_priors):
            hit = ((logits + log_prior).argmax(dim=1) == targets) & (predicted >= 0)
            self._hits_under[place] += torch.bincount(targets[hit], minlength=self.num_classes)

    def of_all(self, world: World) -> "Scores":
        """Take in what the other processes have scored, in the order of their ranks; returns itself."""
        if world.size > 1:
            own = slice(self._first, self._next)
            for name in ("predicted", "confidence", "_scaled"):
                setattr(self, name, world.gather(getattr(self, name)[own]))
            for sums in (self._sums, self._hits_under, *self._statistics.sums):
                world.total(sums)
        return self

    def figures(self, class_counts: list[int], shots: tuple[int, int] = SHOTS) -> dict:
        """Plain data ready for JSON: scalars, LoMa and RSD by group, and under `classes` lists [K].

        `without_prediction` is the number of images whose logits are not finite, where there are any;
        `NAME_known` the accuracy under the prior NAME with logits corrected for it. A calibration error of a
        shot group is over the images of its classes. The other scalars are those of `balance_figures`.
        """
        accuracy = shots_of(self.predicted, self.targets, class_counts, shots)
        classes = {"test_images": accuracy.support, "accuracy": accuracy.per_class}
        by_group, logit_classes = logit_figures(self._statistics, class_counts, shots)
        images, lost = len(self.targets), int((self.predicted < 0).sum())
        top5, likelihood, brier = self._sums / images
        correct, device = self.predicted == self.targets, self.targets.device
        of_groups = {
            f"calibration_error_{name}": _calibration_error(self.confidence[own], correct[own])
            for name, mask in shot_groups(class_counts, shots).items()
            for own in [torch.from_numpy(mask).to(device)[self.targets]]
        }
        scaled = None if self.temperature is None else _calibration_error(self._scaled, correct)
        plain = torch.bincount(self.targets[correct], minlength=self.num_classes).cpu().numpy()
        under = zip(self.priors, self._hits_under.cpu().numpy(), strict=True)
        support = np.array(accuracy.support)
        return {
            **{name: getattr(accuracy, name) for name in EPOCH_FIGURES},
            "top5": None if self.num_classes <= 5 else float(top5),
            "calibration_error": _calibration_error(self.confidence, correct),
            **of_groups,
            "calibration_error_scaled": scaled,
            "temperature": self.temperature,
            "nll": _finite(likelihood),
            "brier": _finite(brier),
            **balance_figures(self.predicted, self.targets, class_counts, shots),
            **{n: under_prior(plain, support, prior) for n, prior in self.priors.items()},
            **{f"{n}_known": under_prior(hits, support, self.priors[n]) for n, hits in under},
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
            by_group[name] = {g: mean_of(values[mask]) for g, mask in ({"all": ...} | masks).items()}
            by_group[name]["spread"] = float(known.std()) if len(known) else None
            if metric == "rsd":  # which a class has only where its LoMa is above 0
                by_group[name]["left_out"] = int((statistics.support > 0).sum()) - len(known)
            classes[name] = _plain(values)
    return by_group, classes


def percent(value: float | None) -> str:
    """0.4712 -> '47.12'; None -> '-'."""
    return "-" if value is None else f"{100 * value:.2f}"


def lost_images(count: int, label: str = "") -> str:
    """The warning of a report over images that have no prediction; `label` tells heads apart."""
    whose = f"{label}: " if label else ""
    return f"{whose}{count} image(s) have no prediction, their logits are not finite: they count as wrong"


def result_line(figures: dict, selected_on: str, label: str = "", part: str = "test") -> str:
    """The line that each script ends with, for people and programs alike; `label` tells heads apart."""
    shares = " ".join(f"{name}={percent(figures[name])}" for name in ("overall", *GROUPS))
    return f"{part} {label}{' ' if label else ''}{shares} selected_on={selected_on}"


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
