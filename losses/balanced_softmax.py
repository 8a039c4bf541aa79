"""Balanced Softmax, the trained form of logit adjustment: the class prior, added to the logits in training.

Shapes: N batch, K classes; π_c = n_c / Σ n is the share of class c in the training set.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.base.numbers import check_class_counts, check_not_negative


class BalancedSoftmax(nn.Module):
    """Cross-entropy of z + τ log π.

    τ = 1 is Balanced Softmax (Ren et al. 2020), written there with log n: the two differ by a constant, which
    cross-entropy does not see. Another τ is the trained form of logit adjustment (Menon et al. 2021), τ = 0
    plain cross-entropy.
    Raises ValueError: a class has no image, or τ is negative.
    """

    def __init__(self, class_counts: Sequence[int] | Tensor, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = check_not_negative("tau", tau)
        shift = self.tau * log_prior(class_counts)
        self.register_buffer("shift", shift.to(torch.get_default_dtype()), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift, targets)


def log_prior(class_counts: Sequence[int] | Tensor) -> Tensor:
    """log π, float64 [K]."""
    counts = check_class_counts(class_counts)
    return counts.log() - counts.sum().log()
