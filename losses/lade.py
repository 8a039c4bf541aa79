"""LADE, label distribution disentangling (Hong et al. 2021): Balanced Softmax plus a bound on each logit.

Shapes: N batch, K classes; π_c = n_c / Σ n is the share of class c in the training set.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.balanced_softmax import log_prior
from utils.base.numbers import check_not_negative


class LADE(nn.Module):
    """CE(z + log π) + α Σ_c π_c [-z̄_c + m_c + λ m_c²].

    z̄_c is the mean of z_c over the batch's images of class c, 0 where it has none;
    m_c = log mean_i exp(z_ic - log π_c - log K) over the whole batch. α = 0 is Balanced Softmax.
    Unlike cross-entropy it pins the logits' level: λ m_c² sees a constant added to all of them.
    Raises ValueError: a class has no image, or α or λ is negative.
    """

    stacks = True

    def __init__(self, class_counts: Sequence[int] | Tensor, alpha: float = 0.1, lam: float = 0.01) -> None:
        super().__init__()
        self.alpha = check_not_negative("alpha", alpha)
        self.lam = check_not_negative("lam", lam)
        prior = log_prior(class_counts)
        self.register_buffer("log_prior", prior.to(torch.get_default_dtype()), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._parts(logits, targets)[0]

    def with_slope(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient in the logits: those of Balanced Softmax and of the bound."""
        loss, log_p, own, level, shares = self._parts(logits, targets)
        slope = (log_p.exp() - F.one_hot(targets, logits.shape[-1])) / logits.shape[-2]
        bound = shares * (1 + 2 * self.lam * level.unsqueeze(-2)) - own
        return loss, slope + self.alpha * self.log_prior.exp() * bound

    def _parts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """The loss, log p, each image's share of its class in the batch, m and the shares in exp(m)."""
        size, num_classes = logits.shape[-2:]
        onehot = F.one_hot(targets, num_classes)
        own = onehot / onehot.sum(-2, keepdim=True).clamp(min=1)
        shifted = logits - self.log_prior - math.log(num_classes)
        total = shifted.logsumexp(-2)
        level = total - math.log(size)  # m [K]
        gap = level - (own * logits).sum(-2)  # m - z̄ [K]
        bound = (self.log_prior.exp() * (gap + self.lam * level.square())).sum(-1)
        log_p = (logits + self.log_prior).log_softmax(-1)
        loss = -log_p.gather(-1, targets.unsqueeze(-1)).mean((-2, -1)) + self.alpha * bound
        return loss, log_p, own, level, (shifted - total.unsqueeze(-2)).exp()
