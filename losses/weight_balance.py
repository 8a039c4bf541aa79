"""Weight Balancing (Alshammari et al. 2022): class-balanced binary cross-entropy, and MaxNorm of the rows.

Shapes: N batch, K classes, D features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.reweighted import effective_number_weights
from utils.base.errors import SettingError
from utils.base.numbers import check_above_zero


class WeightBalancing(nn.Module):
    """-Σ_i w_{y_i} [log p_{i,y_i} + Σ_{c≠y_i} log(1 - p_ic)] / (N K), with p the softmax probabilities.

    w are the effective-number weights, summing to K; an image's weight is that of its class. A plain mean
    over N x K, so about K below cross-entropy in scale: the source's weight decay, .1, is meant for that.
    Raises ValueError: a class has no image, or β is not in [0, 1).
    """

    stacks = True

    def __init__(self, class_counts: Sequence[int] | Tensor, beta: float = 0.9999) -> None:
        super().__init__()
        weights = effective_number_weights(class_counts, beta)
        self.register_buffer("weights", weights.to(torch.get_default_dtype()), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [..., N, K], targets int64 [..., N] -> weighted loss averaged over N x K, [...]."""
        return self._parts(logits, targets)[0]

    def with_slope(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient in the logits."""
        loss, log_p, log_not_p, true = self._parts(logits, targets)
        # Slopes of the log-likelihood in log p: 1 at the true class, -p / (1 - p) at the others. Of a wrong
        # class with p near 1 that has no bound. Its product with another class's p has one, and is `wrong`.
        top = log_p.argmax(-1, keepdim=True)
        odds = (log_p - log_not_p).exp().scatter(-1, top, 0.0)
        wrong = (log_p - log_not_p.gather(-1, top)).exp().scatter(-1, top, 0.0)
        in_log_p = torch.where(true, 1.0, -odds) + wrong * (top != targets.unsqueeze(-1))
        slope = log_p.exp() * in_log_p.sum(-1, keepdim=True) - in_log_p
        size, num_classes = logits.shape[-2:]
        return loss, slope * (self.weights[targets] / (size * num_classes)).unsqueeze(-1)

    def _parts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_p = logits.log_softmax(-1)
        # Only the largest probability can be above 1/2 and so round to 1: its log(1 - p) is summed from the
        # others' probabilities. Below 1/2, log1p is exact.
        top = log_p.argmax(-1, keepdim=True)
        others = log_p.scatter(-1, top, float("-inf"))
        log_not_p = torch.log1p(-others.exp()).scatter(-1, top, others.logsumexp(-1, keepdim=True))
        true = F.one_hot(targets, logits.shape[-1]).bool()
        each = torch.where(true, log_p, log_not_p).mean(-1)
        return -(self.weights[targets] * each).mean(-1), log_p, log_not_p, true


@torch.no_grad()
def max_norm_(weight: Tensor, limit: float) -> Tensor:
    """Shrink in place the rows of weight [K, D] with a norm above `limit`, which is above 0."""
    norms = weight.norm(dim=1, keepdim=True)
    return weight.mul_((check_above_zero("limit", limit) / norms).clamp(max=1))


@torch.no_grad()
def max_norm_limit(weight: Tensor, share: float = 0.1) -> float:
    """min‖w‖ + share (max‖w‖ - min‖w‖) of the rows of weight [K, D]: a limit for `max_norm_`."""
    if not 0 <= share <= 1:
        raise SettingError(f"share must be in [0, 1], got {share:g}")
    norms = weight.norm(dim=1)
    return float(norms.min() + share * (norms.max() - norms.min()))
