"""How stage 2 grows: time and memory against classes, feature width, training rows and heads.

    python -m benchmarks.scaling [--repeats 3] [--out FILE] [--csv FILE] [--figure FILE]

About eight minutes on two idle cores. One factor at a time, the others as at the base point; los on random
features in a mapped fp16 file, by the code of main_stage2.py: an epoch of every head, the test rows scored,
LoMa and RSD over all training rows. Each point is a process of its own. Memory is the anonymous memory that
the epochs and the report add at their peak (Linux's RssAnon, sampled); the mapped features are not in it,
since the system takes their pages back as it likes.
"""

import csv
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import common
from benchmarks.big_pack import memory_gb, random_features
from datasets import LongTailedData
from datasets.types import ImageSet
from utils.features.frozen import Representation, StoredViews
from utils.heads.outcome import outcome
from utils.heads.plan import plan_heads
from utils.heads.stack import start_heads, train_heads
from utils.plots.drawing import LINES
from utils.settings.config import resolve
from utils.settings.parse import STAGE2

TEST_ROWS, SAMPLE_SECONDS, DPI = 10_000, 0.002, 100


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
QUICK = {"classes": (10, 40), "width": (8, 32), "rows": (500, 2000), "heads": (1, 2)}
QUICK_BASE = Point(10, 8, 1000, 1)


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


class Peak:
    """The most anonymous memory of this process within, in MB above what it had before."""

    def __enter__(self) -> "Peak":
        self._ended, self.start = threading.Event(), self._now()
        self.megabytes = 0.0
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def _now(self) -> float:
        return memory_gb("self")["RssAnon"] * 1000

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.megabytes = max(self.megabytes, self._now() - self.start)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()


def measure(point: Point, repeats: int) -> dict:
    """Seconds of `repeats` epochs with scoring and report, after one unmeasured; MB that they add."""
    given = {"num_class": point.classes, "network": "resnet32", "method": "los", "device": "cpu"}
    given |= {"dataset": "folder", "data_dir": Path("."), "finetune_epoch": repeats + 1}
    given |= {"seeds": list(range(point.heads)), "label_smooth": 0.9, "finetune_lr": 1e-4, "batch_size": 64}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        frozen, config = representation(point, Path(folder)), resolve(STAGE2, given)
        plans = [plan for plan in plan_heads(config)[0] if plan.named]
        ctypes.CDLL(None).malloc_trim(0)  # what making the features took would hide what follows
        with Peak() as peak:
            heads = start_heads(plans, frozen, ["test"], config)
            started = time.perf_counter()

            def after_epoch(_: int) -> None:
                nonlocal started
                for head in heads:
                    outcome(head)
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()

            train_heads(heads, frozen, ["test"], after_epoch)
        if failed := [head.failure for head in heads if head.failed]:
            raise SystemExit(f"{point}: {failed[0]}")
    return {"seconds": seconds[1:], "megabytes": peak.megabytes}


def in_process(point: Point, repeats: int) -> dict:
    """`measure` in a process of its own, so that nothing is left from the point before."""
    words = [f"--point={json.dumps(asdict(point))}", f"--repeats={repeats}"]
    command = [sys.executable, "-m", "benchmarks.scaling", *words]
    done = subprocess.run(command, cwd=common.ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def slope(values: Sequence[float], factor: Sequence[int]) -> float:
    """Of the straight line through the logarithms of both, by least squares: 1 is linear growth."""
    return float(np.polyfit(np.log(factor), np.log(values), 1)[0])


def rows_of(factors: dict[str, tuple[int, ...]], base: Point, repeats: int) -> list[dict]:
    """A row a factor and value; the base point is measured once."""
    known, rows = {}, []
    for name, values in factors.items():
        for value in values:
            point = replace(base, **{name: value})
            if point not in known:
                known[point] = in_process(point, repeats)
            found = known[point]
            times = {"seconds": median(found["seconds"]), "n": len(found["seconds"])}
            rows.append({"factor": name, **asdict(point), **times, "megabytes": found["megabytes"]})
    return rows


def table(rows: list[dict], factors: dict[str, tuple[int, ...]]) -> str:
    """A Markdown row a factor."""
    lines = ["| factor | values | seconds of an epoch and report | slope | MB added | slope |"]
    lines.append("|" + " --- |" * 6)
    for name, values in factors.items():
        own = [row for row in rows if row["factor"] == name]
        seconds, memory = ([row[column] for row in own] for column in ("seconds", "megabytes"))
        cells = [
            name,
            " / ".join(f"{value:,}" for value in values),
            " / ".join(f"{value:.2f}" for value in seconds),
            f"{slope(seconds, values):.2f}",
            " / ".join(f"{value:.0f}" for value in memory),
            f"{slope(memory, values):.2f}" if min(memory) > 0 else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict], factors: dict[str, tuple[int, ...]], path: Path) -> None:
    """Time above memory, a panel a factor, on logarithmic axes; dotted: linear from the first point."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(2, len(factors), sharey="row", sharex="col")
    for column, (name, values) in enumerate(factors.items()):
        own = [row for row in rows if row["factor"] == name]
        for panel, what in zip(panels[:, column], ("seconds", "megabytes"), strict=True):
            found = [row[what] for row in own]
            linear = [found[0] * value / values[0] for value in values]
            panel.plot(values, linear, color="#999999", linestyle=":", label="linear")
            panel.plot(values, found, **LINES[2], label="measured")
            panel.set(xscale="log", yscale="log")
        panels[1, column].set_xlabel(name)
    panels[0, 0].set_ylabel("an epoch and report, s")
    panels[1, 0].set_ylabel("memory added, MB")
    panels[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--repeats", type=common.positive, default=3, help="epochs of each point")
    parser.add_argument("--csv", type=Path, help="write the figures to this file too")
    parser.add_argument("--figure", type=Path, help="draw them")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--point", type=json.loads, help="measure one point, as JSON, and print it")
    args = parser.parse_args(argv)
    if args.point is not None:
        print(json.dumps(measure(Point(**args.point), args.repeats)))
        return
    factors, base = (QUICK, QUICK_BASE) if args.quick else (FACTORS, Point())
    rows = rows_of(factors, base, args.repeats)
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(args.csv, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if args.figure:
        draw(rows, factors, args.figure)
    title = f"## Stage 2 (los), one factor at a time around {base}, n = {args.repeats} epochs a point"
    common.publish([title, table(rows, factors)], args.out)


if __name__ == "__main__":
    main()
