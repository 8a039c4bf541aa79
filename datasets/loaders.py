"""The whole set on the device as uint8; crops, flips and normalises a batch at a time.

The law is that of torchvision's RandomCrop(size, padding), RandomHorizontalFlip, ToTensor, Normalize: zero
padding before normalising, every one of the (2p + 1)^2 offsets equally likely, flips with probability 1/2,
each image with draws of its own. The draws of a view depend on (seed, view, image) alone: not on batch size,
order or device.

Shapes: N batch, C channels, H, W; p padding.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.types import ImageSet, ViewSpec
from utils.seeding import generator_for


class DeviceImages:
    """An ImageSet on `device` that yields normalised channels_last batches of float32 [N, C, H, W]."""

    def __init__(self, data: ImageSet, views: ViewSpec, device: torch.device | str = "cpu") -> None:
        self.size = data.images.shape[-1]
        self.padding = views.padding
        self.mirror = views.mirror
        self.labels = data.labels.to(device)
        pad = views.padding
        padded = F.pad(data.images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).contiguous().to(device)
        # view [N, 2p + 1, 2p + 1, H, W, C] of every crop: one gather reads a batch
        self._crops = padded.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        self._mean = torch.tensor(views.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(views.std, device=device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def crop(self, index: Tensor, top: Tensor, left: Tensor, flip: Tensor | None) -> Tensor:
        """Images `index` [N] cropped at `top`, `left` [N] (0..2p), mirrored where `flip` [N] is true."""
        images = self._crops[index, top, left].permute(0, 3, 1, 2)
        if flip is not None:
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return self._normalise(images)

    def plain(self, index: Tensor) -> Tensor:
        """Images `index` [N] as they are, normalised."""
        return self._normalise(self._crops[index, self.padding, self.padding].permute(0, 3, 1, 2))

    def _normalise(self, images: Tensor) -> Tensor:
        # torchvision's operations in torchvision's order: equal to the last bit
        return images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)

    def draws(self, seed: int, view: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Crop offsets (top, left) int64 and flips bool of augmented view `view`, each [N], by image."""
        generator = generator_for(seed, "view", view)
        offsets = torch.randint(0, 2 * self.padding + 1, (2, len(self)), generator=generator)
        flips = torch.rand(len(self), generator=generator) < 0.5
        top, left = offsets.to(self.device)
        return top, left, flips.to(self.device) if self.mirror else None

    def augmented(
        self, order: Tensor, batch_size: int, seed: int, view: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images, labels) of view `view` in the order given (int64, indices of images)."""
        top, left, flip = self.draws(seed, view)
        for index in order.to(self.device).split(batch_size):
            chosen = None if flip is None else flip[index]
            yield self.crop(index, top[index], left[index], chosen), self.labels[index]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images, labels) of the plain images in file order."""
        for index in torch.arange(len(self), device=self.device).split(batch_size):
            yield self.plain(index), self.labels[index]
