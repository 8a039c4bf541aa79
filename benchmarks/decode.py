"""Decode, random resized crop, flip: microseconds an image, Pillow + transforms v1 against FileImages.

    python -m benchmarks.decode

About a minute. One thread each, in this process, without the overhead of a DataLoader: JPEGs of ImageNet's
usual size, 500 x 375, quality 90, cut and scaled from scikit-learn's two photographs. Ours includes what a
run does on its device, here the same CPU: normalising and colour jitter. Checks first that the same crops
give the same pixels, to the rounding of the two resizes. Target: 1.3x a core. Then the loader's start with
as many files as iNaturalist 2018, target 3 s, and what a loader process holds.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms

from benchmarks import common
from datasets.draws import crop_box, crop_rows
from datasets.file_images import FileImages
from datasets.types import CHANNELS, FileSet, FileViews, PathTable
from utils.seeding import epoch_order

PHOTO, QUALITY, BATCH_SIZE = (500, 375), 90, 64
VIEWS = FileViews(*CHANNELS["imagenet"])
JITTER = 0.4
SEED, TARGET, LEVELS = 0, 1.3, 2
INATURALIST, FOLDERS, START_TARGET, WORKERS = 437_513, 8142, 3.0, 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="write the report to this Markdown file too")
    parser.add_argument("--images", type=common.positive, default=128, help="images of a timing")
    parser.add_argument("--repeats", type=common.positive, default=15, help="pairs of timings")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        files = write_photographs(Path(name), args.images)
        worst, mean = same_pixels(files)
        seconds = time_both(files, args.repeats)
        starts = start_rows(Path(name), files, min(args.repeats, 5))
    rows, reached = [], []
    for what, suffix in (("µs an image", ""), ("with ColorJitter", " jitter")):
        ours, plain = seconds[f"ours{suffix}"], seconds[f"plain{suffix}"]
        ratios = common.ratios(plain, ours)
        micros = (f"{median(times) / len(files) * 1e6:.0f}" for times in (ours, plain))
        rows.append(common.Row(what, *micros, ratios))
        reached.append(f"{sum(ratio >= TARGET for ratio in ratios)} of {len(ratios)}")
    sections = [
        f"## Decoding: {len(files)} JPEGs of {PHOTO[0]} x {PHOTO[1]}, one thread each",
        common.table(rows, "Pillow + transforms v1"),
        f"Batches of {BATCH_SIZE}. The same crops differ by {worst:.0f} of 255 at most, {mean:.3f} in mean. "
        f"{TARGET:g}x or more in {reached[0]} pairs, with ColorJitter in {reached[1]}.",
        f"## Loader start: {INATURALIST:,} files, {WORKERS} processes",
        starts,
    ]
    common.publish(sections, args.out)


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
    return FileSet(folder, PathTable.of([b"%032x.jpg" % i for i in range(count)]), torch.arange(count) % 10)


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


def time_both(files: FileSet, repeats: int) -> dict[str, list[float]]:
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
        "ours jitter": ours(True),
        "plain jitter": plain(True),
    }
    return common.alternate(works, repeats)


def same_pixels(files: FileSet) -> tuple[float, float]:
    """Largest and mean difference, of 255, from torchvision v1's operations on the same crops by Pillow.

    Raises:
        SystemExit: a value differs by more than LEVELS.
    """
    rows = crop_rows(VIEWS, len(files), SEED, 0).tolist()
    made = torch.cat(
        [batch for batch, _ in FileImages(files, VIEWS).augmented(torch.arange(len(files)), 64, SEED, 0)]
    )
    std = torch.tensor(VIEWS.std)[:, None, None]
    worst, total = 0.0, 0.0
    for i, row in enumerate(rows):
        image = load(path_of(files, i))
        image = TF.resized_crop(image, *crop_box(row, image.height, image.width), [VIEWS.size] * 2)
        image = TF.hflip(image) if row[-1] else image
        levels = (TF.normalize(TF.to_tensor(image), VIEWS.mean, VIEWS.std) - made[i]).mul(std).abs() * 255
        worst, total = max(worst, float(levels.max())), total + float(levels.mean())
    if worst > LEVELS + 0.01:
        raise SystemExit(f"the same crop differs by {worst:.2f} levels from torchvision's")
    return worst, total / len(files)


def start_rows(folder: Path, files: FileSet, repeats: int) -> str:
    """Seconds from a list of paths to the first batch, and the memory of a loader process, as text."""
    plants = folder / "train_val2018" / "Plantae"
    plants.mkdir(parents=True)
    for k in range(FOLDERS):  # every path leads to one of the photographs
        (plants / str(k)).symlink_to("../..")
    photographs = [files.paths.raw(i) for i in range(len(files))]
    named = ((i % FOLDERS, photographs[i // FOLDERS % len(files)]) for i in range(INATURALIST))
    paths = [b"train_val2018/Plantae/%d/%s" % pair for pair in named]
    labels = torch.arange(INATURALIST) % FOLDERS
    seconds, private = [], []
    for repeat in range(repeats):
        started = time.perf_counter()
        images = FileImages(FileSet(folder, PathTable.of(paths), labels), VIEWS, workers=WORKERS)
        batches = images.augmented(epoch_order(SEED, repeat, INATURALIST), BATCH_SIZE, SEED, repeat)
        next(batches)
        seconds.append(time.perf_counter() - started)
        for _ in range(3 * WORKERS):
            next(batches)
        private += [private_megabytes(process.pid) for process in multiprocessing.active_children()]
        images.close()
    verdict = "under" if max(seconds) < START_TARGET else "NOT under"
    arrays, objects = PathTable.of(paths).nbytes / 1e6, object_megabytes(paths, labels)
    return (
        f"First batch of {BATCH_SIZE} after {common.spread(seconds)} s (min / median / max of {repeats}), "
        f"{verdict} {START_TARGET:g} s. The paths are arrays of {arrays:.1f} MB, shared by all processes; as "
        f"Python objects, with labels, {objects:.0f} MB, copied into each by and by. A loader process "
        f"has {median(private):.0f} MB of its own, for Python and its images."
    )


def object_megabytes(paths: list[bytes], labels: Tensor) -> float:
    """The same as a list of (path, label), as torchvision's ImageFolder keeps it."""
    pairs = [(path.decode(), label) for path, label in zip(paths, labels.tolist(), strict=True)]
    names = sum(sys.getsizeof(path) for path, _ in pairs)
    return (sys.getsizeof(pairs) + sum(map(sys.getsizeof, pairs)) + names) / 1e6


def private_megabytes(pid: int) -> float:
    """Memory of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


if __name__ == "__main__":
    main()
