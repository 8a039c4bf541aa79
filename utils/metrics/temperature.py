"""Temperature scaling (Guo et al. 2017): one number by which logits are divided, fitted on validation images.

Shapes: N images, K classes.
"""

import math

import torch
from torch import Tensor

_STEPS, _LARGEST_STEP, _LIMIT = 50, 4.0, 1e4


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """The T that minimises the negative log-likelihood of logits [N, K] / T; None: it has no minimum.

    Each class weighs the same, as on the test set. The likelihood is convex in 1/T, which Newton's method
    finds; a step changes it by a factor of 4 at most. It has no minimum where every image is right.
    """
    logits = logits - logits.amax(dim=1, keepdim=True)
    weights = torch.bincount(targets)[targets].to(logits.dtype).reciprocal()
    own, inverse = logits.gather(1, targets[:, None]).squeeze(1), 1.0
    if not own.any():
        return None
    for _ in range(_STEPS):
        shares = (inverse * logits).softmax(dim=1)
        weighted = shares * logits
        mean = weighted.sum(dim=1)
        slope = float(weights @ (mean - own))
        curve = float(weights @ ((weighted * logits).sum(dim=1) - mean**2))
        wanted = inverse - slope / curve if curve > 0 else math.nan
        if not math.isfinite(wanted):
            return None
        before, inverse = inverse, min(max(wanted, inverse / _LARGEST_STEP), inverse * _LARGEST_STEP)
        if not 1 / _LIMIT < inverse < _LIMIT:
            return None
        if abs(inverse - before) < 1e-5 * before:
            break
    return 1 / inverse
