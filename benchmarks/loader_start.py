"""The loader's start with as many files as iNaturalist 2018, and what a loader process holds.

    python -m benchmarks.loader_start [--repeats 5] [--out FILE]

Every path leads to one of a few photographs. Target: the first batch within 3 s. As a list of Python objects
the paths would be copied into every process by and by.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from torch import Tensor, arange

from benchmarks import common
from benchmarks.common import SEED
from benchmarks.decode import BATCH_SIZE, VIEWS, write_photographs
from benchmarks.table import spread
from datasets.images.on_disk import FileImages
from datasets.types import FileSet, PathTable
from utils.base.seeding import epoch_order

INATURALIST, FOLDERS, START_TARGET, WORKERS, PHOTOGRAPHS = 437_513, 8142, 3.0, 2, 128


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--repeats", type=common.positive, default=5, help="starts")
    args = parser.parse_args(argv)
    with common.threads(1), tempfile.TemporaryDirectory() as name:
        starts = start_rows(Path(name), write_photographs(Path(name), PHOTOGRAPHS), args.repeats)
    common.publish([f"## Loader start: {INATURALIST:,} files, {WORKERS} processes", starts], args.out)


def start_rows(folder: Path, files: FileSet, repeats: int) -> str:
    """Seconds from a list of paths to the first batch, and the memory of a loader process, as text."""
    plants = folder / "train_val2018" / "Plantae"
    plants.mkdir(parents=True)
    for k in range(FOLDERS):  # every path leads to one of the photographs
        (plants / str(k)).symlink_to("../..")
    photographs = [files.paths.raw(i) for i in range(len(files))]
    named = ((i % FOLDERS, photographs[i // FOLDERS % len(files)]) for i in range(INATURALIST))
    paths = [b"train_val2018/Plantae/%d/%s" % pair for pair in named]
    labels = arange(INATURALIST) % FOLDERS
    seconds, private = [], []
    for repeat in range(repeats):
        started = time.perf_counter()
        images = FileImages(FileSet(folder, PathTable(paths), labels), VIEWS, workers=WORKERS)
        batches = images.augmented(epoch_order(SEED, repeat, INATURALIST), BATCH_SIZE, SEED, repeat)
        next(batches)
        seconds.append(time.perf_counter() - started)
        for _ in range(3 * WORKERS):
            next(batches)
        private += [private_megabytes(process.pid) for process in multiprocessing.active_children()]
        images.close()
    verdict = "under" if max(seconds) < START_TARGET else "NOT under"
    arrays, objects = PathTable(paths).nbytes / 1e6, object_megabytes(paths, labels)
    return (
        f"First batch of {BATCH_SIZE} after {spread(seconds)} s (min / median / max of {repeats}), "
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
