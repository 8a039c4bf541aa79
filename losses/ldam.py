"""Label-distribution-aware margin loss, LDAM (Cao et al. 2019): rarer classes must win by more.

Shapes: N batch, K classes; n_c images of class c.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.base.numbers import check_above_zero, check_class_counts, check_not_negative


class LDAM(nn.Module):
    """Cross-entropy of s (cos - Δ_y onehot) with the margins Δ_c = C / n_c^(1/4).

    C is such that the largest margin, that of the rarest class, is `max_margin`. The logits must be s cos,
    those of a normalised linear classifier with the same scale s; for a plain one (stage 1) s is 1.
    Raises ValueError: a class has no image, the margin is negative or the scale not above 0.
    """

    def __init__(
        self, class_counts: Sequence[int] | Tensor, max_margin: float = 0.5, scale: float = 30.0
    ) -> None:
        super().__init__()
        self.max_margin = check_not_negative("max_margin", max_margin)
        self.scale = check_above_zero("scale", scale)
        counts = check_class_counts(class_counts)
        margins = self.scale * self.max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", margins.to(torch.get_default_dtype()), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        onehot = F.one_hot(targets, logits.shape[1])
        return F.cross_entropy(logits - onehot * self.margins, targets)
