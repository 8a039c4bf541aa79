"""Losses by name. A loss is one small file and one line in `LOSSES`."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from utils.base.lazy import Registry, face

if TYPE_CHECKING:
    from torch import nn

# A builder's parameters are the loss's options; one named class_counts says that the loss needs them.
LOSSES = Registry(
    {
        "ce": "losses.reweighted:CrossEntropy",
        "los": "losses.label_over_smooth:LabelOverSmooth",
        "focal": "losses.focal:FocalLoss",
        "cb": "losses.reweighted:class_balanced",
        "power": "losses.reweighted:inverse_power",
        "bsce": "losses.balanced_softmax:BalancedSoftmax",
        "ldam": "losses.ldam:LDAM",
        "lade": "losses.lade:LADE",
        "label_aware": "losses.label_aware:LabelAwareSmoothing",
        "wb": "losses.weight_balance:WeightBalancing",
        "los_weighted": "losses.label_aware:LosWeighted",
    }
)
__getattr__, __all__ = face(
    __name__,
    {
        "balanced_softmax": "BalancedSoftmax",
        "focal": "FocalLoss",
        "gaps": "label_smooth_for_gap logit_gap",
        "label_aware": "LabelAwareSmoothing LosWeighted",
        "label_over_smooth": "LabelOverSmooth",
        "lade": "LADE",
        "ldam": "LDAM",
        "reweighted": "CrossEntropy WeightedCrossEntropy class_balanced effective_number_weights "
        "inverse_power inverse_power_weights",
        "weight_balance": "WeightBalancing max_norm_ max_norm_limit",
    },
)


def build_loss(
    name: str | Callable[..., "nn.Module"], class_counts: Sequence[int] | None = None, **options: float
) -> "nn.Module":
    """A module with `loss(logits [N, K], targets int64 [N])` -> mean over the batch, a scalar.

    `name` is one of LOSSES, or a builder like those there. Losses that need no class counts ignore them.

    Raises ValueError: the name or an option is unknown, an option is missing or out of range, or the loss
    needs the class counts and there are none.
    """
    if not callable(name) and name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}, known: {', '.join(LOSSES)}")
    builder = name if callable(name) else LOSSES[name]
    found = inspect.signature(builder).parameters.values()
    parameters = {one.name: one for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    counted = parameters.pop("class_counts", None) is not None
    if counted and class_counts is None:
        raise ValueError(f"loss {name!r} needs class_counts, the number of training images of each class")
    for option in (option for option in options if option not in parameters):
        known = ", ".join(parameters) or "none"
        raise ValueError(f"loss {name!r} has no option {option!r}, known: {known}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"loss {name!r} needs the option {option!r}")
    return builder(class_counts, **options) if counted else builder(**options)
