"""What the benchmarks share: data, networks with settled statistics, timing in turns, rows, the machine."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.benchmark import timer  # waits for a CUDA device, where there is one

from benchmarks import baselines
from datasets import ImageSet, LongTailedData, build_data, long_tail_counts
from datasets.cifar_lt import VIEWS
from datasets.split import cut
from models import build_model
from utils.engine.device import environment

IMB_RATIO, NUM_CLASSES, IMAGE_SHAPE, NUM_TEST = 100, 100, (3, 32, 32), 10_000
SETTLE_IMAGES, SEED, WORKER_CHOICES = 128, 0, (0, 1)
ROOT = Path(__file__).resolve().parent.parent
# a unit -> how seconds, of an image where it says so, become a figure
UNITS = {
    "images/s": lambda seconds: 1 / seconds,
    "s": lambda seconds: seconds,
    "minutes": lambda seconds: seconds / 60,
}
COLUMNS = ("what", "against", "unit", "ours", "opponent", "min", "median", "max", "n", "target", "reached")


class DiffersError(Exception):
    """What is compared does not give the same: its speed would say nothing."""


class Findings(NamedTuple):
    """What a part of the benchmark gives: rows, and lines to stand under the table."""

    rows: list[dict[str, str]]
    notes: list[str]


class Bench:
    """What a part of the table is measured with; `quick`: tiny sizes, to see that everything runs.

    `model(name)` is built once; it is to be copied, not changed.
    """

    def __init__(self, data: LongTailedData, what: str, quick: bool = False) -> None:
        self.data, self.what, self.quick = data, what, quick
        settle = SETTLE_IMAGES // 8 if quick else SETTLE_IMAGES
        self.model = cache(lambda name: fresh_model(name, data, settle))


def positive(text: str) -> int:
    """A whole number of 1 or more, as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every command of its own takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the CIFAR-100 files")
    parser.add_argument("--out", type=Path, help="write the report to this Markdown file too")
    return parser


def has_cifar100(data_dir: Path) -> bool:
    """Whether the files are here: a benchmark downloads nothing."""
    return any((folder / "train").is_file() for folder in (data_dir / "cifar-100-python", data_dir))


def load_cifar100_lt(data_dir: Path) -> tuple[LongTailedData, str]:
    """CIFAR100-LT at IR 100 and words for it; random images of the same numbers and shape if not here."""
    if has_cifar100(data_dir):
        return build_data("cifar100_lt", data_dir, IMB_RATIO), f"CIFAR100-LT, IR {IMB_RATIO}"
    counts = torch.tensor(long_tail_counts(NUM_CLASSES, 500, IMB_RATIO))
    classes = torch.arange(NUM_CLASSES)
    labels = {"train": classes.repeat_interleave(counts), "test": classes.repeat(NUM_TEST // NUM_CLASSES)}
    parts = {part: _random_images(own) for part, own in labels.items()}
    data = cut("random", parts, list(map(str, range(NUM_CLASSES))), VIEWS, None, val_source="none")
    return data, f"random images, as many and of the same shape as CIFAR100-LT's (none in {data_dir})"


def _random_images(labels: Tensor) -> ImageSet:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (len(labels), *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images, labels)


def sample(images: ImageSet, count: int) -> ImageSet:
    """`count` images drawn with a fixed seed; drawn again where the set has fewer."""
    index = torch.randint(0, len(images), (count,), generator=torch.Generator().manual_seed(SEED))
    return ImageSet(images.images[index], images.labels[index])


def fresh_model(network: str, data: LongTailedData, settle: int = SETTLE_IMAGES) -> nn.Module:
    """A network with random weights whose batch-norm statistics fit training images: no value runs away."""
    torch.manual_seed(SEED)
    model = build_model(network, NUM_CLASSES)
    update_bn(baselines.loader(sample(data.train, settle), data.views, settle), model)
    return model


def alternate(
    works: dict[str, Callable[[], object]], turns: int, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of every work, `turns` times, backwards every other time.

    Neighbours in time share the machine's state, so ratios are taken within a turn. `warm`: after a turn that
    is not measured, which processes of their own do not need.
    """
    for work in works.values() if warm else ():
        work()
    seconds = {name: [] for name in works}
    for turn in range(turns):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            started = timer()
            works[name]()
            seconds[name].append(timer() - started)
    return seconds


def fastest(works: dict[int, Callable[[], object]]) -> int:
    """The name of the work that is done first, of one turn: an opponent's setting, chosen in its favour."""
    seconds = alternate(works, 1)
    return min(seconds, key=seconds.get)


def row(
    what: str,
    against: str,
    unit: str,
    ours: Sequence[float],
    opponent: Sequence[float] | None = None,
    target: float | None = None,
) -> dict[str, str]:
    """A row from the seconds of both (of an image, where the unit is): one value a turn.

    `target`: the least ratio; without an opponent the most that ours may be.
    """
    medians = [UNITS[unit](median(seconds)) for seconds in (ours, opponent) if seconds]
    pairs = ours if opponent is None else [b / a for a, b in zip(ours, opponent, strict=True)]
    low, middle, high = min(pairs), median(pairs), max(pairs)
    reached = "-"
    if target is not None:
        reached = "yes" if (middle <= target if opponent is None else middle >= target) else "no"
    told = [what, against, unit, *map(figure, medians), *(["-"] if opponent is None else [])]
    told += [*map(figure, (low, middle, high)), str(len(pairs)), "-" if target is None else f"{target:g}"]
    return dict(zip(COLUMNS, [*told, reached], strict=True))


def each(seconds: Sequence[float], images: int) -> list[float]:
    """Seconds of one image."""
    return [value / images for value in seconds]


def figure(value: float) -> str:
    """Three digits at least, and no power of ten."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def load() -> str:
    """Processes at work, mean of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def facts() -> dict[str, str]:
    """What the figures depend on: name -> value, for people and for columns of a table."""
    cpuinfo, made = Path("/proc/cpuinfo"), environment(torch.device("cpu")) | {"cores": os.cpu_count()}
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    if found := re.search(r"^model name\s*: (.*)", text, re.MULTILINE):
        made["processor"] = found[1]
    named = ("processor", "cores", "threads", "cpu_capability", "torch", "torchvision", "numpy", "python")
    return {name: str(made[name]) for name in named} | {"date": datetime.now().strftime("%Y-%m-%d %H:%M")}


def publish(sections: list[str], out: Path | None) -> None:
    """Print the report of a command of its own, and write it where asked."""
    machine = ", ".join(f"{name} {value}" for name, value in facts().items())
    text = "\n\n".join([*sections, f"Machine: {machine}, load at the end {load()}."]) + "\n"
    print(text, end="", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
