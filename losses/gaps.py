"""How far over-smoothed labels let the logits grow: δ and the gap, in plain numbers and without torch."""

import math


def logit_gap(label_smooth: float, num_classes: int) -> float:
    """Gap of the true to any other logit at the loss's optimum: log(1 + K (1 - δ) / δ); inf at δ = 0."""
    if label_smooth == 0:
        return math.inf
    return math.log1p(num_classes * (1 - label_smooth) / label_smooth)


def label_smooth_for_gap(gap: float, num_classes: int) -> float:
    """The δ whose optimum has this logit gap: the inverse of `logit_gap`. One gap serves any K; inf is δ = 0.

    Raises ValueError: the gap is not a positive number (a gap of 0 would be δ = 1).
    """
    if not gap > 0:
        raise ValueError(f"logit_gap must be above 0, got {gap:g}")
    if gap > 700:
        return 0.0
    return num_classes / (num_classes + math.expm1(gap))
