"""What the losses refuse, in one place."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.base.errors import SettingError


def check_class_counts(class_counts: Sequence[int] | Tensor) -> Tensor:
    """Training images of each class, as float64 [K]: two classes or more, each with an image."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.ndim != 1 or len(counts) < 2:
        raise SettingError(f"class_counts must list two classes or more, got shape {list(counts.shape)}")
    for k, count in enumerate(counts.tolist()):
        if not 0 < count < math.inf:
            raise SettingError(f"class_counts must be above 0, class {k} has {count:g}")
    return counts


def check_not_negative(name: str, value: float) -> float:
    """Return a finite value of at least 0."""
    if not 0 <= value < math.inf:
        raise SettingError(f"{name} must be a number of at least 0, got {value:g}")
    return float(value)


def check_above_zero(name: str, value: float) -> float:
    """Return a finite value above 0."""
    if not 0 < value < math.inf:
        raise SettingError(f"{name} must be a number above 0, got {value:g}")
    return float(value)


def check_below_one(name: str, value: float) -> float:
    """Return a value in [0, 1)."""
    if not 0 <= value < 1:
        raise SettingError(f"{name} must be in [0, 1), got {value:g}")
    return float(value)
