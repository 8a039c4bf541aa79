"""What the benchmarks share: the data, networks with settled statistics, timing in alternation."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks import baselines
from benchmarks.machine import machine_line
from datasets import ImageSet, LongTailedData, ViewSpec, build_data, long_tail_counts
from datasets.cifar_lt import VIEWS
from models import build_model

IMB_RATIO, NUM_CLASSES, IMAGE_SHAPE, NUM_TEST = 100, 100, (3, 32, 32), 10_000
SETTLE_IMAGES, SEED = 128, 0
ROOT = Path(__file__).resolve().parent.parent


class DiffersError(Exception):
    """What is compared does not give the same: its speed would say nothing."""


@dataclass(frozen=True)
class Bench:
    """What a part of the table is measured with; `quick`: tiny sizes, to see that everything runs."""

    data: LongTailedData
    what: str
    quick: bool = False
    compile: bool = False
    tick: Callable[[], None] = lambda: None  # told of every measured turn
    model: Callable[[str], nn.Module] = field(init=False)  # by name, built once; to be copied, not changed

    def __post_init__(self) -> None:
        images = SETTLE_IMAGES // 8 if self.quick else SETTLE_IMAGES
        build = cache(lambda name: fresh_model(name, self.data.train, self.data.views, images))
        object.__setattr__(self, "model", build)


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
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (len(labels), *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet(images, labels)


def sample(images: ImageSet, count: int) -> ImageSet:
    """`count` images drawn with a fixed seed; drawn again where the set has fewer."""
    index = torch.randint(0, len(images), (count,), generator=torch.Generator().manual_seed(SEED))
    return ImageSet(images.images[index], images.labels[index])


def fresh_model(network: str, images: ImageSet, views: ViewSpec, settle: int = SETTLE_IMAGES) -> nn.Module:
    """A network with random weights whose batch-norm statistics fit `settle` of the images: no value runs
    away."""
    torch.manual_seed(SEED)
    model = build_model(network, NUM_CLASSES)
    loader = baselines.test_loader(sample(images, settle), views, settle)
    update_bn(loader, model)
    return model


def alternate(
    works: dict[str, Callable[[], object]], repeats: int, tick: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every work, `repeats` times in turn, backwards every other time, after one turn unmeasured.

    Neighbours in time share the machine's state, so ratios are taken within a turn. `tick` is told of every
    measured one.
    """
    for work in works.values():
        work()
    return turns_of(works, repeats, tick)


def turns_of(
    works: dict[str, Callable[[], object]], repeats: int, tick: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """The same where nothing needs a turn to warm up, as with processes."""
    seconds = {name: [] for name in works}
    for turn in range(repeats):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - started)
        tick()
    return seconds


def fastest(works: dict[int, Callable[[], object]], warm: bool = True) -> int:
    """The name of the work that is done first, of one turn: an opponent's setting, chosen in its favour.

    `warm`: after one turn unmeasured.
    """
    seconds = alternate(works, 1) if warm else turns_of(works, 1)
    return min(seconds, key=lambda name: seconds[name])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads of torch in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def publish(sections: list[str], out: Path | None) -> None:
    """Print the report of a command of its own, and write it where asked."""
    text = "\n\n".join([*sections, f"Machine: {machine_line()}."]) + "\n"
    print(text, end="", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
