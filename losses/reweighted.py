"""Cross-entropy, plain or with a weight for each class, and the two families of weights.

Shapes: N batch, K classes; n_c images of class c, π_c its share.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.base.errors import SettingError
from utils.base.numbers import check_below_one, check_class_counts, check_not_negative


def effective_number_weights(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """w_c ∝ (1 - β) / (1 - β^n_c), summing to K: float64 [K] (class-balanced loss, Cui et al. 2019).

    Raises ValueError: a class has no image, or β is not in [0, 1).
    """
    counts = check_class_counts(class_counts)
    return _sum_to_classes((1 - check_below_one("beta", beta)) / (1 - beta**counts))


def inverse_power_weights(class_counts: Sequence[int] | Tensor, rho: float = 1.2) -> Tensor:
    """w_c ∝ π_c^-ρ, summing to K: float64 [K] (DisAlign, Zhang et al. 2021; also MARC, Wang et al. 2022).

    Raises ValueError: a class has no image, or ρ is negative.
    """
    counts = check_class_counts(class_counts)
    return _sum_to_classes((counts / counts.sum()) ** -check_not_negative("rho", rho))


def _sum_to_classes(weights: Tensor) -> Tensor:
    return weights * (len(weights) / weights.sum())


class WeightedCrossEntropy(nn.Module):
    """Σ_i w_{y_i} CE_i / Σ_i w_{y_i} with `weights` [K]: the weighted mean, as torch's `weight=`.

    It is divided by the batch's own weights, so only their ratios matter: within one class they cancel.
    Raises ValueError: a weight is not a number above 0.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        weights = weights.to(torch.get_default_dtype())
        # A weight of 0 is refused too: a batch of such classes only would be 0 / 0.
        if not (weights.isfinite() & (weights > 0)).all():
            least = float(weights.min())
            raise SettingError(f"class weights must be numbers above 0, the least is {least:g}")
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, weight=self.weights.to(logits.dtype))


class CrossEntropy(nn.CrossEntropyLoss):
    """Plain cross-entropy, without options."""

    def __init__(self) -> None:
        super().__init__()


def class_balanced(class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> WeightedCrossEntropy:
    """Cross-entropy with effective-number weights (Cui et al. 2019); β = 0 is plain cross-entropy."""
    return WeightedCrossEntropy(effective_number_weights(class_counts, beta))


def inverse_power(class_counts: Sequence[int] | Tensor, rho: float = 1.2) -> WeightedCrossEntropy:
    """Cross-entropy with inverse-power weights (DisAlign, MARC); ρ = 0 is plain cross-entropy."""
    return WeightedCrossEntropy(inverse_power_weights(class_counts, rho))
