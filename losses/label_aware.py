"""Smoothing for each class: that of MiSLAS (Zhong et al. 2021), and LOS with class weights of its own.

Shapes: N batch, K classes; n_c images of class c, π_c its share.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.label_over_smooth import check_label_smooth
from utils.base.numbers import check_below_one, check_class_counts, check_not_negative


class ClassSmoothing(nn.Module):
    """Cross-entropy against (1 - ε_y) onehot + ε_y / K, with a smoothing `eps` [K] for each class."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.register_buffer("eps", eps.to(torch.get_default_dtype()), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        true = log_p.gather(1, targets[:, None]).squeeze(1)
        eps = self.eps[targets]
        return -((1 - eps) * true + eps * log_p.mean(1)).mean()


class LabelAwareSmoothing(ClassSmoothing):
    """ε_c = ε_tail + (ε_head - ε_tail) sin(π/2 · (n_c - n_min) / (n_max - n_min)).

    ε_head is for the largest class, ε_tail for the smallest. With balanced counts, where this is 0 / 0, all
    take ε_tail: none is a head.
    Raises ValueError: a class has no image, or an ε is not in [0, 1).
    """

    def __init__(
        self, class_counts: Sequence[int] | Tensor, eps_head: float = 0.4, eps_tail: float = 0.1
    ) -> None:
        check_below_one("eps_head", eps_head)
        check_below_one("eps_tail", eps_tail)
        counts = check_class_counts(class_counts)
        above = counts - counts.min()
        # Balanced counts: 0 / 1. Any other range of counts is at least one image.
        place = above / above.max().clamp(min=1)
        super().__init__(eps_tail + (eps_head - eps_tail) * torch.sin(math.pi / 2 * place))


class LosWeighted(ClassSmoothing):
    """CE + δ (K - 1)/K Σ_k w_k LoMa_k over the training set, with w_k ∝ π_k^a, Σ w = 1, a = `power`.

    a = 1 is LOS, a = 0 penalises all classes alike. Of one image it is smoothing with ε_y = δ w_y / π_y. An ε
    above 1 is no label any more, but the penalty means the same: it lowers z_y - mean z at the rate ε_y. Then
    the loss has no least value, so that training needs an end, as the path of LOS does.
    Source: ours, from what LOS is exactly (losses/label_over_smooth.py).
    Raises ValueError: a class has no image, δ is not in [0, 1), or a is negative.
    """

    def __init__(self, class_counts: Sequence[int], label_smooth: float, power: float = 0.5) -> None:
        counts = check_class_counts(class_counts)
        shares = counts / counts.sum()
        relative = shares ** (check_not_negative("power", power) - 1)  # w / π, up to a factor
        super().__init__(check_label_smooth(label_smooth) * relative / (shares * relative).sum())
