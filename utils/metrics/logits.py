"""Logits Magnitude (LoMa) and Regularised Standard Deviation (RSD) of each class, in one streaming pass.

Source: the LOS paper (ICLR 2025) for the two ideas; where it leaves the averaging open, two readings are
named:

- `per_sample` (default): LoMa of k is the mean of z_k - mean_{j != k} z_j over the samples of class k.
- `per_class`: the mean of z_k over the samples of class k, minus the mean of z_k over the other classes, each
  of them weighing the same. It cannot see a constant added to one class's logit.

RSD of k is the standard deviation (ddof 0) over the samples of class k of that very quantity (per_class: of
z_k), divided by LoMa of k. Shapes: N images, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

READINGS = ("per_sample", "per_class")


@dataclass
class LogitStatistics:
    """Sums over logits that LoMa and RSD need: vectors of K values in float64, whatever the number of images.

    All batches together must hold exactly `support` int64 [K] images of each class.
    """

    support: Tensor

    def __post_init__(self) -> None:
        empty = torch.zeros(len(self.support), dtype=torch.float64, device=self.support.device)
        self._own, self._own_square = empty.clone(), empty.clone()  # z_k over class k
        self._gap, self._gap_square = empty.clone(), empty.clone()  # z_k - mean of the others over class k
        self._class_means = empty.clone()  # sum over classes c of the mean of z_k over class c

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """What adds up over batches, and so over processes."""
        return self._own, self._own_square, self._gap, self._gap_square, self._class_means

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch of logits [N, K] with targets int64 [N]."""
        logits = logits.double()
        own = logits.gather(1, targets[:, None]).squeeze(1)
        gap = own - (logits.sum(dim=1) - own) / (logits.shape[1] - 1)
        for total, values in zip(self.sums, (own, own**2, gap, gap**2), strict=False):
            total.index_add_(0, targets, values)
        self._class_means += self.support[targets].double().reciprocal() @ logits

    def magnitude(self, reading: str = "per_sample") -> Tensor:
        """LoMa, float64 [K]; not a number for a class without images.

        Raises:
            ValueError: the reading is unknown.
        """
        if reading not in READINGS:
            raise ValueError(f"unknown reading {reading!r} of LoMa, known: {', '.join(READINGS)}")
        if reading == "per_sample":
            return self._gap / self.support
        present = (self.support > 0).sum()
        own = self._own / self.support
        return own - (self._class_means - own) / (present - 1)

    def regularized_std(self, reading: str = "per_sample") -> Tensor:
        """RSD, float64 [K]; not a number where LoMa is not above 0 or the class has no images."""
        magnitude = self.magnitude(reading)
        own, own_square, gap, gap_square, _ = self.sums
        total, square = (gap, gap_square) if reading == "per_sample" else (own, own_square)
        variance = square / self.support - (total / self.support) ** 2
        return torch.where(magnitude > 0, variance.clamp(min=0).sqrt() / magnitude, torch.nan)


def logit_statistics(logits: Tensor, targets: Tensor) -> LogitStatistics:
    """The statistics of logits [N, K] with targets [N] in one go."""
    statistics = LogitStatistics(torch.bincount(targets, minlength=logits.shape[1]))
    statistics.add(logits, targets)
    return statistics


def logits_magnitude(logits: Tensor, targets: Tensor, reading: str = "per_sample") -> Tensor:
    """LoMa of each class, float64 [K], from logits [N, K] and targets [N]."""
    return logit_statistics(logits, targets).magnitude(reading)


def regularized_std(logits: Tensor, targets: Tensor, reading: str = "per_sample") -> Tensor:
    """RSD of each class, float64 [K], from logits [N, K] and targets [N]."""
    return logit_statistics(logits, targets).regularized_std(reading)
