"""Focal loss (Lin et al. 2017): cross-entropy that turns away from what is already learned.

Shapes: N batch, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.base.numbers import check_not_negative


class FocalLoss(nn.Module):
    """(1 - p)^γ CE with p the softmax probability of the true class; γ = 0 is plain cross-entropy.

    Raises ValueError: γ is negative.
    """

    stacks = True

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = check_not_negative("gamma", gamma)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._parts(logits, targets)[0]

    def with_slope(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient in the logits, q^γ (γ p log p - q) / N in the margin, q = 1 - p."""
        loss, others, log_p, log_not_p = self._parts(logits, targets)
        in_margin = (self.gamma * log_not_p).exp() * (self.gamma * log_p.exp() * log_p - log_not_p.exp())
        in_margin = (in_margin / targets.shape[-1]).unsqueeze(-1)
        slope = -in_margin * (logits - others.unsqueeze(-1)).exp()
        return loss, slope.scatter(-1, targets.unsqueeze(-1), in_margin)

    def _parts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        true = targets.unsqueeze(-1)
        others = logits.scatter(-1, true, float("-inf")).logsumexp(-1)
        margin = logits.gather(-1, true).squeeze(-1) - others
        # p = sigmoid(margin). Staying in logs keeps 1 - p from rounding to 0, where for γ < 1 the power has
        # an infinite slope and the gradient would be NaN.
        log_p, log_not_p = F.logsigmoid(margin), F.logsigmoid(-margin)
        return -((self.gamma * log_not_p).exp() * log_p).mean(-1), others, log_p, log_not_p
