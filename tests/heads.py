"""The stage-1 classifier, training set and heads that the tests of the classifier heads share."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import build_head

D, K = 7, 5
COUNTS = [12, 8, 5, 2, 1]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stage1_classifier() -> nn.Linear:
    """A frozen stage-1 classifier in float64, with rows of unlike length."""
    classifier = nn.Linear(D, K, dtype=torch.float64).requires_grad_(False)
    classifier.weight.copy_(torch.randn(K, D, generator=seeded(1), dtype=torch.float64))
    classifier.weight.mul_(torch.tensor([[3.0], [2], [1], [0.5], [0.1]]))
    classifier.bias.copy_(torch.randn(K, generator=seeded(2), dtype=torch.float64))
    return classifier


def inputs() -> torch.Tensor:
    return torch.randn(9, D, generator=seeded(3), dtype=torch.float64)


def training_set() -> tuple[torch.Tensor, torch.Tensor]:
    """28 features in mixed order; class 4 has one image."""
    labels = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))
    features = torch.randn(len(labels), D, generator=seeded(4), dtype=torch.float64) + labels[:, None]
    order = torch.randperm(len(labels), generator=seeded(5))
    return features[order], labels[order]


def made(kind: str, fc: nn.Linear, **options: float) -> nn.Module:
    """A head at its start, given all that any head could need."""
    features, labels = training_set()
    return build_head(kind, fc, COUNTS, seeded(6), features, labels, **options)


def stirred(kind: str, fc: nn.Linear, **options: float) -> nn.Module:
    """A head whose learned parameters are away from their start."""
    head, generator = made(kind, fc, **options), seeded(7)
    with torch.no_grad():
        for value in head.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return head


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().numpy()


class _Sizes(TorchDispatchMode):
    """Notes the number of elements of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            self.largest = max(self.largest, made.numel() if isinstance(made, torch.Tensor) else 0)
        return out


def largest_tensor(work: Callable[[], object]) -> int:
    """Elements of the largest tensor that `work` makes."""
    with _Sizes() as sizes:
        work()
    return sizes.largest
