"""What every data set hands to the rest of the project."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """images uint8 [N, C, H, W] and labels int64 [N], in memory."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def from_numpy(images: np.ndarray, labels: np.ndarray) -> "ImageSet":
        """images uint8 [N, C, H, W], labels int64 [N]; both are copied."""
        return ImageSet(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))

    def digest(self) -> str:
        """Hex sha256 of pixels and labels: tells whether two runs saw the same images in the same order."""
        state = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        state.update(self.images.numpy().tobytes())
        state.update(self.labels.numpy().tobytes())
        return state.hexdigest()


@dataclass(frozen=True)
class ViewSpec:
    """How an image becomes a network input: random crop after zero padding, flip, (x / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    mirror: bool  # flips in training, and the mirror image averaged in at test


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set with its validation and test parts.

    `class_counts` are those of the long-tailed set itself and define the shot groups; `train_counts` are what
    is left for training after a hold-out. `val` is None where no validation images exist.
    """

    name: str
    class_names: list[str]
    class_counts: list[int]
    train: ImageSet
    val: ImageSet | None
    val_source: str
    test: ImageSet
    views: ViewSpec
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def train_counts(self) -> list[int]:
        return torch.bincount(self.train.labels, minlength=self.num_classes).tolist()
