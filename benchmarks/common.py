"""What the benchmarks share: the data, timing in alternation, tables, the line that names the machine."""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks import baselines
from datasets import ImageSet, LongTailedData, ViewSpec, build_data, long_tail_counts
from datasets.cifar_lt import VIEWS
from models import build_model

IMB_RATIO, NUM_CLASSES, IMAGE_SHAPE, NUM_TEST = 100, 100, (3, 32, 32), 10_000
SETTLE_IMAGES = 128


@dataclass(frozen=True)
class Row:
    """A line of a table: one figure of ours, where measured the opponent's, and the ratio of every pair."""

    what: str
    ours: str
    opponent: str = "-"
    ratios: list[float] | None = None

    def cells(self) -> list[str]:
        if self.ratios is None:
            return [self.what, self.ours, self.opponent, "-", "-"]
        return [self.what, self.ours, self.opponent, spread(self.ratios), str(len(self.ratios))]


def positive(text: str) -> int:
    """A whole number of 1 or more, as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark takes."""
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
    counts = long_tail_counts(NUM_CLASSES, 500, IMB_RATIO)
    classes = torch.arange(NUM_CLASSES)
    data = LongTailedData(
        name="random",
        class_names=[str(k) for k in range(NUM_CLASSES)],
        class_counts=counts,
        train=_random_images(classes.repeat_interleave(torch.tensor(counts))),
        val=None,
        val_source="none",
        test=_random_images(classes.repeat(NUM_TEST // NUM_CLASSES)),
        views=VIEWS,
    )
    return data, f"random images, as many and of the same shape as CIFAR100-LT's (none in {data_dir})"


def _random_images(labels: Tensor) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images, labels)


def sample(images: ImageSet, count: int) -> ImageSet:
    """`count` images drawn with a fixed seed; drawn again where the set has fewer."""
    index = torch.randint(0, len(images), (count,), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.images[index], images.labels[index])


def fresh_model(network: str, images: ImageSet, views: ViewSpec) -> nn.Module:
    """A network with random weights whose batch-norm statistics fit `images`, so that no value runs away."""
    torch.manual_seed(0)
    model = build_model(network, NUM_CLASSES)
    loader = baselines.test_loader(sample(images, SETTLE_IMAGES), views, SETTLE_IMAGES)
    update_bn(loader, model)
    return model


def alternate(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every work, `repeats` times in turn, backwards every other time, after one turn unmeasured.

    Neighbours in time share the machine's state, so ratios are taken within a turn.
    """
    for work in works.values():
        work()
    seconds = {name: [] for name in works}
    for turn in range(repeats):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(slower: Iterable[float], faster: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


def spread(values: list[float]) -> str:
    """min / median / max"""
    return " / ".join(f"{value:.2f}" for value in (min(values), median(values), max(values)))


def rate(images: int, seconds: list[float]) -> str:
    """Images a second at the median time."""
    return f"{images / median(seconds):.1f}"


def table(rows: Iterable[Row], opponent: str = "plain") -> str:
    """A Markdown table."""
    header = ["", "ours", opponent, "ratio min / median / max", "n"]
    cells = [header, ["---"] * len(header), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def machine_line() -> str:
    """Processor, cores, threads, load and versions: what the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}, load at the end "
        f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def publish(sections: Iterable[str], out: Path | None) -> None:
    """Print the report, and write it where asked."""
    text = "\n\n".join([*sections, f"Machine: {machine_line()}."]) + "\n"
    print(text, end="", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
