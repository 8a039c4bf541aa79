"""The images of a part, ready for a network: from memory or from files, behind one interface."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from datasets.images.in_memory import DeviceImages
from datasets.listed.own import image_paths
from datasets.types import FileSet, FileViews, ImageSet, PathTable, ViewSpec
from utils.base.errors import UserError, raise_problem

if TYPE_CHECKING:
    from datasets.images.on_disk import FileImages

# what the loops take: `labels`, len(), `augmented(order, batch_size, seed, view)`, `batches(batch_size, ...)`
Images: TypeAlias = "DeviceImages | FileImages"


def open_images(
    part: ImageSet | FileSet, views: ViewSpec | FileViews, device: torch.device, workers: int = 0
) -> Images:
    """The whole part on the device, or its files through `workers` loader processes."""
    if isinstance(part, FileSet):
        from datasets.images.on_disk import FileImages  # here: to import torchvision takes seconds

        return FileImages(part, views, device, workers)
    return DeviceImages(part, views, device)


def images_below(folder: Path) -> FileSet:
    """Every image file below `folder`, by name; nothing is known of their labels, which are 0."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    found = image_paths(folder, ".", raise_problem)
    paths, others = ([path.removeprefix(b"./") for path in part] for part in found)
    return FileSet(folder, PathTable(paths), torch.zeros(len(paths), dtype=torch.int64), tuple(others))
