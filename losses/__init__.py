"""Losses by name. A loss is one small file and one line in `LOSSES`."""

import difflib
import inspect
from collections.abc import Callable, Sequence

from torch import nn

from losses.balanced_softmax import BalancedSoftmax, logit_adjustment
from losses.focal import FocalLoss
from losses.label_aware import LabelAwareSmoothing
from losses.label_over_smooth import LabelOverSmooth, label_smooth_for_gap, logit_gap, smooth_labels
from losses.lade import LADE
from losses.ldam import LDAM
from losses.reweighted import (
    WeightedCrossEntropy,
    class_balanced,
    effective_number_weights,
    inverse_power,
    inverse_power_weights,
)
from losses.weight_balance import WeightBalancing, max_norm_, max_norm_limit

__all__ = [
    "LADE",
    "LDAM",
    "LOSSES",
    "BalancedSoftmax",
    "FocalLoss",
    "LabelAwareSmoothing",
    "LabelOverSmooth",
    "WeightBalancing",
    "WeightedCrossEntropy",
    "build_loss",
    "class_balanced",
    "effective_number_weights",
    "inverse_power",
    "inverse_power_weights",
    "label_smooth_for_gap",
    "logit_adjustment",
    "logit_gap",
    "max_norm_",
    "max_norm_limit",
    "smooth_labels",
]


def _cross_entropy() -> nn.Module:
    return nn.CrossEntropyLoss()


# A builder's parameters are the loss's options; one named class_counts says that the loss needs them.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": _cross_entropy,
    "los": LabelOverSmooth,
    "focal": FocalLoss,
    "cb": class_balanced,
    "power": inverse_power,
    "bsce": BalancedSoftmax,
    "ldam": LDAM,
    "lade": LADE,
    "label_aware": LabelAwareSmoothing,
    "wb": WeightBalancing,
}


def build_loss(name: str, class_counts: Sequence[int] | None = None, **options: float) -> nn.Module:
    """A module with `loss(logits [N, K], targets int64 [N])` -> mean over the batch, a scalar.

    Losses that need no class counts ignore them.

    Raises:
        ValueError: the name or an option is unknown, an option is missing or out of range, or the loss needs
            the class counts and there are none.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}, known: {', '.join(LOSSES)}")
    parameters = dict(inspect.signature(LOSSES[name]).parameters)
    counted = parameters.pop("class_counts", None) is not None
    if counted and class_counts is None:
        raise ValueError(f"loss {name!r} needs class_counts, the number of training images of each class")
    for option in options:
        if option not in parameters:
            raise ValueError(f"loss {name!r} has no option {option!r}, {_known(option, list(parameters))}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"loss {name!r} needs the option {option!r}")
    return LOSSES[name](class_counts, **options) if counted else LOSSES[name](**options)


def _known(option: str, known: list[str]) -> str:
    if not known:
        return "it takes none"
    close = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
    return f"known: {', '.join(known)}" + (f"; did you mean {close[0]!r}?" if close else "")
