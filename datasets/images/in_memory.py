"""The whole set on the device as uint8; crops, flips and normalises a batch at a time.

The law is that of torchvision's RandomCrop(size, padding), RandomHorizontalFlip, ToTensor, Normalize, with
draws of its own for every image. The draws of a view depend on (seed, view, image) and the size of the set
alone: not on batch size, order or device.

Shapes: N batch, C channels, H, W; p padding.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.images.draws import crop_draws
from datasets.images.jitter import jittered
from datasets.types import FileViews, ImageSet, ViewSpec
from utils.base.seeding import generator_for

Batches = Iterator[tuple[Tensor, Tensor]]  # images float32 [n, C, H, W], labels int64 [n]


class Normalise:
    """(x / 255 - mean) / std on `device`, of images that are `width` pixels wide."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device | str
    ) -> None:
        # for a row of pixels: both run over contiguous memory
        self._mean = torch.tensor(mean, device=device).repeat(width)
        self._std = torch.tensor(std, device=device).repeat(width)

    def __call__(self, images: Tensor, jitter: Tensor | None = None) -> Tensor:
        """uint8 [N, H, W, C] -> float32 [N, C, H, W], channels_last.

        `jitter`: rows of `draws.jitter_draws`, on the CPU, for a colour jitter beforehand.
        """
        # torchvision's operations in torchvision's order: equal to the last bit
        values = images.to(torch.float32).div_(255) if jitter is None else jittered(images, jitter)
        rows = values.flatten(2).sub_(self._mean).div_(self._std)
        return rows.unflatten(2, images.shape[2:]).permute(0, 3, 1, 2)


def batch_indices(indices: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Indices [n] a batch at a time; no batch where there are none."""
    return indices.split(batch_size) if len(indices) else ()


def resized(images: Tensor, size: list[int], interpolation: str) -> Tensor:
    """uint8 [..., C, H, W] -> uint8 [..., C, *size]; of one number that is the shorter side."""
    from torchvision.transforms.v2 import InterpolationMode  # here, since it takes seconds
    from torchvision.transforms.v2 import functional as F

    return F.resize(images, size, InterpolationMode(interpolation), antialias=True)


class DeviceImages:
    """An ImageSet on `device` that yields normalised channels_last batches of float32 [N, C, H, W]."""

    def __init__(self, data: ImageSet, views: ViewSpec, device: torch.device | str = "cpu") -> None:
        self.padding = views.padding
        self.mirror = views.mirror
        self.labels = data.labels.to(device)
        self._images = data.images.permute(0, 2, 3, 1).contiguous().to(device)  # [N, H, W, C]
        width = self._images.shape[2]
        self._side = views.size if isinstance(views, FileViews) else None
        self._how = views.interpolation if self._side else ""
        self._normalise = Normalise(views.mean, views.std, self._side or width, device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @cached_property
    def _crops(self) -> Tensor:
        """View [N or 2N, 2p+1, 2p+1, H, W, C] of every crop, mirror images behind: one gather a batch."""
        pad = self.padding
        padded, (height, width) = F.pad(self._images, (0, 0, pad, pad, pad, pad)), self._images.shape[1:3]
        if self.mirror:
            padded = torch.cat([padded, padded.flip(2)])
        return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

    def crop(self, index: Tensor, top: Tensor, left: Tensor, flip: Tensor | None) -> Tensor:
        """Images `index` [N] cropped at `top`, `left` [N] (0..2p), then mirrored where `flip` [N] is true."""
        if flip is not None:
            # the crop's mirror image is a crop of the mirror image, counted from the other side
            index = index + len(self) * flip
            left = torch.where(flip, 2 * self.padding - left, left)
        return self._normalise(self._crops[index, top, left])

    def plain(self, index: Tensor) -> Tensor:
        """Images `index` [N] as they are, normalised; views of files are of their size, in three channels."""
        images = self._images[index]
        if self._side:
            images = resized(images.permute(0, 3, 1, 2), [self._side] * 2, self._how)
            images = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        return self._normalise(images)

    def draws(self, seed: int, view: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Crop offsets (top, left) int64 and flips bool of augmented view `view`, each [N], by image."""
        top, left, flip = crop_draws(len(self), self.padding, generator_for(seed, "view", view))
        return top.to(self.device), left.to(self.device), flip.to(self.device) if self.mirror else None

    def augmented(self, order: Tensor, batch_size: int, seed: int, view: int) -> Batches:
        """Batches of view `view` in the order given (int64, indices of images)."""
        top, left, flip = self.draws(seed, view)
        for index in batch_indices(order.to(self.device), batch_size):
            chosen = None if flip is None else flip[index]
            yield self.crop(index, top[index], left[index], chosen), self.labels[index]

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Batches of the plain images `start` to `stop`, in file order."""
        for index in batch_indices(torch.arange(len(self), device=self.device)[start:stop], batch_size):
            yield self.plain(index), self.labels[index]
