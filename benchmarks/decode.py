"""Decode, random resized crop, flip: an image on one thread, Pillow + transforms v1 against FileImages.

In this process, without the overhead of a DataLoader: JPEGs of ImageNet's usual size, 500 x 375, quality 90,
cut and scaled from scikit-learn's two photographs. Ours includes what a run does on its device, here the same
CPU: normalising and colour jitter. Checks first that the same crops give the same pixels, to the rounding of
the two resizes.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms

from benchmarks import common
from benchmarks.common import SEED, Bench, DiffersError
from benchmarks.table import Findings, each, row
from datasets.images.draws import crop_box, crop_rows
from datasets.images.on_disk import FileImages
from datasets.types import CHANNELS, FileSet, FileViews, PathTable
from utils.base.seeding import epoch_order

PHOTO, QUALITY, BATCH_SIZE = (500, 375), 90, 64
VIEWS = FileViews(*CHANNELS["imagenet"])
JITTER, IMAGES, IMAGES_QUICK = 0.4, 128, 8
TARGET, LEVELS = 1.3, 2


def run(bench: Bench, network: str | None, turns: int) -> Findings:
    """The rows; there is no network in it."""
    with common.threads(1), tempfile.TemporaryDirectory() as name:
        files = write_photographs(Path(name), IMAGES_QUICK if bench.quick else IMAGES)
        worst, mean = check_same(files)
        timed = time_both(files, turns, bench.tick)
    seconds = {name: each(values, len(files)) for name, values in timed.items()}
    rows = [
        row(
            f"JPEG {PHOTO[0]}x{PHOTO[1]} to view of {VIEWS.size}{suffix}, 1 thread",
            "Pillow + torchvision v1",
            "µs an image",
            *(seconds[f"{who}{suffix}"] for who in ("ours", "plain")),
            TARGET,
        )
        for suffix in ("", " + jitter")
    ]
    note = (
        f"decode: the same crops of {len(files)} images differ by {worst:.1f} of 255 at most (tolerance "
        f"{LEVELS}: two ways to round a resize), {mean:.3f} in mean"
    )
    return Findings(rows, [note])


def write_photographs(folder: Path, count: int) -> FileSet:
    """JPEGs of parts of the photographs at several scales; one in four is upright."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = torch.Generator().manual_seed(SEED)
    for i in range(count):
        scale, right, down = torch.rand(3, generator=generator).tolist()
        source = photographs[i % 2]
        width = round(300 + 260 * scale)
        height = width * PHOTO[1] // PHOTO[0]
        left, top = round(right * (source.width - width)), round(down * (source.height - height))
        image = source.crop((left, top, left + width, top + height)).resize(PHOTO)
        image = image.transpose(Image.Transpose.ROTATE_90) if i % 4 == 3 else image
        image.save(folder / f"{i:032x}.jpg", quality=QUALITY)
    return FileSet(folder, PathTable([b"%032x.jpg" % i for i in range(count)]), torch.arange(count) % 10)


def path_of(files: FileSet, index: int) -> Path:
    return files.root / files.paths[index]


def load(path: Path) -> Image.Image:
    """As torchvision's ImageFolder does."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def plain_transform(jitter: bool) -> Callable[[Image.Image], Tensor]:
    """The Decoupling protocol's training transform."""
    colour = [transforms.ColorJitter(JITTER, JITTER, JITTER)] if jitter else []
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(VIEWS.size),
            transforms.RandomHorizontalFlip(),
            *colour,
            transforms.ToTensor(),
            transforms.Normalize(VIEWS.mean, VIEWS.std),
        ]
    )


def time_both(files: FileSet, repeats: int, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds in which each makes batches of all files, others every time."""
    paths = [path_of(files, i) for i in range(len(files))]
    epochs = iter(range(4 * (repeats + 1)))

    def plain(jitter: bool) -> Callable[[], None]:
        transform = plain_transform(jitter)

        def run() -> None:
            for index in epoch_order(SEED, next(epochs), len(paths)).split(BATCH_SIZE):
                torch.stack([transform(load(paths[i])) for i in index.tolist()])

        return run

    def ours(jitter: bool) -> Callable[[], None]:
        images = FileImages(files, replace(VIEWS, jitter=JITTER if jitter else 0.0))

        def run() -> None:
            epoch = next(epochs)
            for _ in images.augmented(epoch_order(SEED, epoch, len(paths)), BATCH_SIZE, SEED, epoch):
                pass

        return run

    works = {
        "ours": ours(False),
        "plain": plain(False),
        "ours + jitter": ours(True),
        "plain + jitter": plain(True),
    }
    return common.alternate(works, repeats, tick)


def check_same(files: FileSet) -> tuple[float, float]:
    """Largest and mean difference, of 255, from torchvision v1's operations on the same crops by Pillow.

    Raises:
        DiffersError: a value differs by more than LEVELS.
    """
    rows = crop_rows(VIEWS, len(files), SEED, 0).tolist()
    made = torch.cat(
        [batch for batch, _ in FileImages(files, VIEWS).augmented(torch.arange(len(files)), 64, SEED, 0)]
    )
    std = torch.tensor(VIEWS.std)[:, None, None]
    worst, total = 0.0, 0.0
    for i, draws in enumerate(rows):
        image = load(path_of(files, i))
        image = TF.resized_crop(image, *crop_box(draws, image.height, image.width), [VIEWS.size] * 2)
        image = TF.hflip(image) if draws[-1] else image
        levels = (TF.normalize(TF.to_tensor(image), VIEWS.mean, VIEWS.std) - made[i]).mul(std).abs() * 255
        worst, total = max(worst, float(levels.max())), total + float(levels.mean())
    if worst > LEVELS + 0.01:
        raise DiffersError(f"the same crop differs by {worst:.2f} levels from torchvision's")
    return worst, total / len(files)
