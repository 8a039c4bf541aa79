"""LOS with class weights of its own: cross-entropy and a penalty on each class's logits magnitude.

Shapes: N batch, K classes; π_c is the share of class c in the training set.
"""

from collections.abc import Sequence

from losses.label_aware import ClassSmoothing
from losses.label_over_smooth import check_label_smooth
from utils.base.numbers import check_class_counts, check_not_negative


class LosWeighted(ClassSmoothing):
    """CE + δ (K - 1)/K Σ_k w_k LoMa_k over the training set, with w_k ∝ π_k^a, Σ w = 1, a = `power`.

    a = 1 is LOS, a = 0 penalises all classes alike. Of one image it is smoothing with ε_y = δ w_y / π_y. An ε
    above 1 is no label any more, but the penalty means the same: it lowers z_y - mean z at the rate ε_y. Then
    the loss has no least value, so that training needs an end, as the path of LOS does.
    Source: ours, from what LOS is exactly (losses/label_over_smooth.py).
    Raises ValueError: a class has no image, δ is not in [0, 1), or a is negative.
    """

    def __init__(self, class_counts: Sequence[int], label_smooth: float, power: float = 0.75) -> None:
        counts = check_class_counts(class_counts)
        shares = counts / counts.sum()
        relative = shares ** (check_not_negative("power", power) - 1)  # w / π, up to a factor
        super().__init__(check_label_smooth(label_smooth) * relative / (shares * relative).sum())
