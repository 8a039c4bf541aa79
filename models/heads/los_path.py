"""The length of the way that LOS goes from the stage-1 classifier, in logits: a scale that networks share.

To first order (models.heads.linear.LosStep) LOS lowers the logit of the most frequent class, 1, at its own
mean feature μ_1 by s δ (π_1 (‖μ_1‖² + 1) - (μ·μ_1 + 1)/K), with s = lr · schedule_sum / (1 - momentum).

Shapes: N training images, D feature, K classes.
"""

import math

from torch import Tensor

from losses.label_over_smooth import check_label_smooth
from models.heads.means import class_means
from utils.base.errors import SettingError
from utils.base.numbers import check_above_zero, check_below_one

_ROUNDING = 1e-12
_LEAST_PATH = 0.01  # of LOS, where all classes have as many images


def path_strength(path: float, features: Tensor, labels: Tensor, num_classes: int) -> float:
    """The `strength` of LosStep, s δ, whose drop is `path`; features [N, D], labels int64 [N].

    Raises ValueError: the path is not above 0, or the step lowers nothing.
    """
    check_above_zero("path", path)
    means, shares = class_means(features, labels, num_classes)
    first = int(shares.argmax())
    own = float(means[first].square().sum() + 1)
    drop = float(shares[first]) * own - float((shares @ means) @ means[first] + 1) / num_classes
    if drop <= _ROUNDING * own:
        why = "its step does not lower the logit of the most frequent class at that class's mean feature"
        raise SettingError(f"LOS has no first-order path here: {why}")
    return path / drop


def los_path_lr(strength: float, label_smooth: float, schedule_sum: float, momentum: float) -> float:
    """The peak learning rate at which training goes the way of LosStep's `strength`, to first order.

    `schedule_sum` is Σ over the optimiser's steps of lr / peak lr.
    """
    if check_label_smooth(label_smooth) == 0:
        raise SettingError("--path has no meaning at δ = 0, plain cross-entropy: give --finetune_lr")
    steps = check_above_zero("schedule_sum", schedule_sum) / (1 - check_below_one("momentum", momentum))
    return strength / (label_smooth * steps)


def usual_path(class_counts: list[int]) -> float:
    """The default path of LOS on features of one's own, to two digits: (1 - π)² log r.

    π is the share of the most frequent class, r its ratio to the rarest. Ours, chosen on validation
    (docs/features.md).
    """
    share, ratio = max(class_counts) / sum(class_counts), max(class_counts) / min(class_counts)
    return max(_LEAST_PATH, float(f"{(1 - share) ** 2 * math.log(ratio):.2g}"))
