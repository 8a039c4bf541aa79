"""How stage 2 grows: time and memory against classes, feature width, training rows and heads.

    python -m benchmarks.scaling [--repeats 3] [--out FILE] [--csv FILE]

About eight minutes on two idle cores. One factor at a time, the others as at the base point; los on random
features in a mapped fp16 file, by the code of main_stage2.py: an epoch of every head, the test rows scored,
LoMa and RSD over all training rows. Each point is a process of its own. Memory is the anonymous memory that
the epochs and the report add at their peak (Linux's RssAnon, sampled); the mapped features are not in it,
since the system takes their pages back as it likes.
"""

import ctypes
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.heads import trained
from datasets import LongTailedData
from datasets.types import ImageSet
from utils.features.frozen import Representation, StoredViews
from utils.heads.outcome import outcome
from utils.heads.plan import plan_heads
from utils.report.table import markdown_lines
from utils.settings.config import resolve
from utils.settings.parse import STAGE2

TEST_ROWS, CHUNK, SAMPLE_SECONDS = 10_000, 8192, 0.002


@dataclass(frozen=True)
class Point:
    """Where stage 2 is measured; the base point by default."""

    classes: int = 100
    width: int = 64
    rows: int = 100_000
    heads: int = 1


FACTORS = {
    "classes": (100, 1000, 8142),
    "width": (64, 512, 2048),
    "rows": (10_000, 100_000, 1_000_000),
    "heads": (1, 4, 16, 64),
}
BASE = Point()


def random_features(path: Path, rows: int, seed: int, width: int) -> Tensor:
    """float16 [1, rows, width] in a file of its own, mapped into memory."""
    features = torch.from_file(str(path), shared=True, size=rows * width, dtype=torch.float16)
    generator = torch.Generator().manual_seed(seed)
    for part in features.view(rows, width).split(CHUNK):
        part.copy_(torch.randn(part.shape, generator=generator))
    return features.view(1, rows, width)


def representation(point: Point, folder: Path) -> Representation:
    """Random features in mapped files, and a classifier for them."""
    arrays = {}
    for seed, (name, rows) in enumerate((("train", point.rows), ("test", min(TEST_ROWS, point.rows)))):
        arrays[name] = random_features(folder / f"{name}.bin", rows, seed, point.width)
    labels = {name: torch.arange(array.shape[1]) % point.classes for name, array in arrays.items()}
    counts = torch.bincount(labels["train"], minlength=point.classes).tolist()
    parts = {name: ImageSet(array[0], labels[name]) for name, array in arrays.items()}
    names = list(map(str, range(point.classes)))
    data = LongTailedData("random", names, counts, parts["train"], None, "none", parts["test"], None)
    fc = torch.nn.Linear(point.width, point.classes)
    train = StoredViews(arrays["train"], labels["train"])
    return Representation(fc, train, lambda name: arrays[name], {"test": labels["test"]}, data)


def anonymous_mb() -> float:
    """The anonymous memory of this process: Linux's RssAnon."""
    [kibibytes] = re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(kibibytes) * 1024 / 1e6


@contextmanager
def peak_added() -> Iterator[list[float]]:
    """A list that is told, within, of the anonymous memory in MB above what this process had before."""
    ended, before, found = threading.Event(), anonymous_mb(), [0.0]

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            found.append(anonymous_mb() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield found
    finally:
        ended.set()
        sampler.join()


def measure(point: Point, repeats: int) -> dict:
    """Seconds of an epoch with the report, median of `repeats` after one unmeasured; MB that they add."""
    words = {"num_class": point.classes, "network": "resnet32", "method": "los", "device": "cpu"}
    words |= {"dataset": "folder", "data_dir": Path("."), "finetune_epoch": repeats + 1}
    words |= {"seeds": list(range(point.heads)), "label_smooth": 0.9, "finetune_lr": 1e-4, "batch_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        frozen, config = representation(point, Path(folder)), resolve(STAGE2, words)
        plans = [plan for plan in plan_heads(config)[0] if plan.named]
        ctypes.CDLL(None).malloc_trim(0)  # what making the features took would hide what follows
        with peak_added() as added:
            ends = []
            heads = trained(plans, frozen, config, ["test"], lambda *_: ends.append(time.perf_counter()))
            reported = time.perf_counter()
            for head in heads:
                outcome(head)
            report = time.perf_counter() - reported
    return {"seconds": median(np.diff(ends) + report), "n": repeats, "megabytes": max(added)}


def slope(values: Sequence[float], factor: Sequence[int]) -> float:
    """Of the straight line through the logarithms of both, by least squares: 1 is linear growth."""
    return float(np.polyfit(np.log(factor), np.log(values), 1)[0])


def rows_of(repeats: int) -> pd.DataFrame:
    """A row a factor and value; each point is measured once, in a process in which nothing was before."""
    points = [(name, replace(BASE, **{name: value})) for name, values in FACTORS.items() for value in values]
    found = {}
    for point in dict.fromkeys(point for _, point in points):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[point] = pool.submit(measure, point, repeats).result()
    return pd.DataFrame([{"factor": name, **asdict(point), **found[point]} for name, point in points])


def table(rows: pd.DataFrame) -> str:
    """A Markdown row a factor."""
    lines = [["factor", "values", "seconds of an epoch and report", "slope", "MB added", "slope"]]
    for name, own in rows.groupby("factor", sort=False):
        values, seconds, memory = (own[column].tolist() for column in (name, "seconds", "megabytes"))
        told = ((values, ","), (seconds, ".2f"), (memory, ".0f"))
        texts = [" / ".join(f"{value:{form}}" for value in column) for column, form in told]
        grows = f"{slope(memory, values):.2f}" if min(memory) > 0 else "-"
        lines.append([name, texts[0], texts[1], f"{slope(seconds, values):.2f}", texts[2], grows])
    return markdown_lines(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--repeats", type=common.positive, default=3, help="epochs of each point")
    parser.add_argument("--csv", type=Path, help="write the figures to this file too")
    args = parser.parse_args(argv)
    rows = rows_of(args.repeats)
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(args.csv, index=False)
    title = f"## Stage 2 (los), one factor at a time around {BASE}, n = {args.repeats} epochs a point"
    common.publish([title, table(rows)], args.out)


if __name__ == "__main__":
    main()
