"""Image files, decoded and cropped by loader processes, normalised on the device a batch at a time.

A view of an image depends on (seed, view, image) and the size of the set alone: all draws are made in the
main process, so neither the number of loader processes nor batch size and order change a bit of it. A loader
process holds the paths as two arrays, shared with the main process where that can fork, and no other table.

Shapes: n images of a batch, S = `size` pixels of a side.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.images.decode import MAX_PIXELS, read_image
from datasets.images.draws import crop_box, crop_rows, jitter_rows
from datasets.images.in_memory import Batches, DeviceImages, Normalise, batch_indices, resized
from datasets.images.processes import Processes
from datasets.types import FileSet, FileViews, ImageSet, ViewSpec
from utils.base.errors import UserError

# indices of images, and for each its row of `draws.crop_rows`; None: the test view
Request = tuple[np.ndarray, np.ndarray | None]


class FileImages:
    """A FileSet that yields normalised channels_last batches of float32 [n, 3, S, S] on `device`.

    `workers` loader processes start with the first batch and stay until `close`; 0 reads in this process. A
    new pass ends the one before. An image that cannot be read ends it too, with a UserError, unless there is
    a `broken`: that takes in why, by image, whose pixels are 0 then.
    """

    broken: dict[int, str] | None = None

    def __init__(
        self, data: FileSet, views: FileViews, device: torch.device | str = "cpu", workers: int = 0
    ) -> None:
        self.labels, self.mirror, self._views = data.labels.to(device), views.mirror, views
        import torchvision.transforms.v2  # noqa: F401  it takes seconds, so once, before processes fork

        self._processes = Processes(ViewedFiles(data, views), workers, pin=self.device.type == "cuda")
        self._normalise = Normalise(views.mean, views.std, views.size, device)
        self._drawn: tuple = (None, None, None)  # (seed, view) and their rows, the latest alone

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def augmented(self, order: Tensor, batch_size: int, seed: int, view: int) -> Batches:
        """Batches of view `view` in the order given (int64, indices of images)."""
        if self._drawn[0] != (seed, view):
            rows = (draw(self._views, len(self), seed, view) for draw in (crop_rows, jitter_rows))
            self._drawn = ((seed, view), *rows)
        yield from self._pass(batch_indices(order.cpu(), batch_size), *self._drawn[1:])

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Batches of the test view of images `start` to `stop`, in file order."""
        yield from self._pass(batch_indices(torch.arange(len(self))[start:stop], batch_size), None, None)

    def close(self) -> None:
        """End the loader processes; a later pass starts new ones."""
        self._processes.close()

    def _pass(self, parts: tuple[Tensor, ...], rows: Tensor | None, jitter: Tensor | None) -> Batches:
        if not parts:
            return
        requests = ((index.numpy(), None if rows is None else rows[index].numpy()) for index in parts)
        for index, (pixels, problems) in zip(parts, self._processes.answers(requests), strict=True):
            for place, problem in problems.items():
                if self.broken is None:
                    raise UserError(problem)
                self.broken[int(index[place])] = problem
            draws = None if jitter is None else jitter[index]
            inputs = self._normalise(pixels.to(self.device, non_blocking=True), draws)
            yield inputs, self.labels[index.to(self.device)]


class ViewedFiles(Dataset):
    """The views of a FileSet's images before normalising: all that a loader process holds."""

    def __init__(self, data: FileSet, views: FileViews) -> None:
        self.root, self.paths, self.views = str(data.root), data.paths, views

    def __getitem__(self, request: Request) -> tuple[Tensor, dict[int, str]]:
        """Views uint8 [n, S, S, 3] of the images asked for; what is wrong with those that are 0, by place."""
        index, rows = request
        size, problems = self.views.size, {}
        batch = torch.empty(len(index), size, size, 3, dtype=torch.uint8)
        for i, image in enumerate(index.tolist()):
            path = f"{self.root}/{self.paths[image]}"
            row = None if rows is None else rows[i].tolist()
            try:
                batch[i] = self._view(read_image(path), row, path).permute(1, 2, 0)
            except UserError as error:
                batch[i], problems[i] = 0, str(error)
        return batch, problems

    def _view(self, image: Tensor, row: list[float] | None, path: str) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, S, S]: the training view of a row of draws, or the test view."""
        from torchvision.transforms.v2 import functional as F

        if row is None:
            return plain_view(image, self.views, path)
        size, how = self.views.size, self.views.interpolation
        if self.views.augment == "pad_crop":
            image = F.pad(resized(image, [size, size], how), self.views.padding)
            image = F.crop(image, int(row[0]), int(row[1]), size, size)
        else:
            top, left, height, width = crop_box(row, *image.shape[1:])
            part = image.permute(1, 2, 0)[top : top + height, left : left + width]
            # where the three values of a pixel lie together, resizing and collecting take half the time
            image = resized(part.contiguous().permute(2, 0, 1), [size, size], how)
        return image.flip(-1) if row[-1] else image


def plain_view(image: Tensor, views: FileViews, path: str) -> Tensor:
    """The view of an image without labels, uint8 [3, H, W] -> uint8 [3, S, S].

    Raises UserError, of `path`: enlarged it would take all memory.
    """
    from torchvision.transforms.v2 import functional as F  # here, since it takes seconds

    if views.augment == "pad_crop":
        return resized(image, [views.size, views.size], views.interpolation)
    short, long = sorted(image.shape[1:])
    if views.resize**2 * long / short > MAX_PIXELS:
        shape = f"{long} x {short} pixels: with {views.resize} on the shorter side"
        raise UserError(f"{path} is {shape} more than {MAX_PIXELS:,}; leave it out of the data set")
    return F.center_crop(resized(image, [views.resize], views.interpolation), [views.size, views.size])


# what the loops take: `labels`, len(), `augmented(order, batch_size, seed, view)`, `batches(batch_size, ...)`
Images = DeviceImages | FileImages


def open_images(part: ImageSet | FileSet, views: ViewSpec, device: torch.device, workers: int = 0) -> Images:
    """The whole part on the device, or its files through `workers` loader processes."""
    if isinstance(part, FileSet):
        return FileImages(part, views, device, workers)
    return DeviceImages(part, views, device)
