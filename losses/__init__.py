"""Losses by name. A loss is one small file and one line in `LOSSES`."""

from collections.abc import Sequence

from torch import nn

from losses.label_over_smooth import LabelOverSmooth, label_smooth_for_gap, logit_gap, smooth_labels

__all__ = ["LOSSES", "LabelOverSmooth", "build_loss", "label_smooth_for_gap", "logit_gap", "smooth_labels"]


def _cross_entropy(class_counts: Sequence[int] | None) -> nn.Module:
    return nn.CrossEntropyLoss()


def _label_over_smooth(class_counts: Sequence[int] | None, label_smooth: float) -> nn.Module:
    return LabelOverSmooth(label_smooth)


LOSSES = {"ce": _cross_entropy, "los": _label_over_smooth}


def build_loss(name: str, class_counts: Sequence[int] | None = None, **options: float) -> nn.Module:
    """A module with `loss(logits [N, K], targets [N])` -> scalar.

    Raises:
        ValueError: the name is unknown, or an option is out of range.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}, known: {', '.join(LOSSES)}")
    return LOSSES[name](class_counts, **options)
