"""Look at every image of a data set before training on it, and list everything that is wrong.

    python -m datasets.check --dataset folder --data_dir my_images

Problems of the lists, files that cannot be read as images, test images that are training images too: exit
status 2. What a decoder complains of but reads is listed as a warning. About 1,000 photographs of ImageNet's
size a second and core.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from progress.bar import Bar
from torch.utils.data import Dataset

from datasets.images.decode import NOT_READ, decode_image, is_deep, read_bytes
from datasets.images.processes import Processes
from datasets.types import FileSet, LongTailedData
from utils.base.errors import UserError, exit_cleanly, say
from utils.settings.config import resolve
from utils.settings.data import load_data
from utils.settings.parse import CHECK, parse

CHUNK = 64  # images a request
STDERR = 2  # the descriptor that C libraries write to


@dataclass(frozen=True)
class Finding:
    """Images looked at, and what is wrong with them."""

    images: int
    problems: list[str]
    warnings: list[str]
    deep: list[str] = field(default_factory=list)  # those with more than 8 bits


def scan(parts: dict[str, FileSet], workers: int) -> Iterator[Finding]:
    """Decode every image of the parts in `workers` processes (0: in this one), in order.

    Raises:
        UserError: a process died.
    """
    processes, deep = Processes(_Scanned(parts), workers), []
    digests = {name: np.zeros(len(part), dtype=np.uint64) for name, part in parts.items()}
    requests = [(name, at) for name, part in parts.items() for at in range(0, len(part), CHUNK)]
    for (name, at), (finding, found) in zip(requests, processes.answers(requests), strict=True):
        digests[name][at : at + CHUNK] = found
        deep += finding.deep
        yield finding
    processes.close()
    others = (f"{part.root}/{os.fsdecode(path)}" for part in parts.values() for path in part.passed_over)
    warnings = [f"{path} is passed over: {NOT_READ}" for path in others]
    if deep:
        warnings.append(
            f"{len(deep):,} image(s) have more than 8 bits a channel, {deep[0]} first: what is above "
            "255 becomes white, and fractions below 1 black; convert them to 8 bits"
        )
    yield Finding(0, list(_leaks(parts, digests)), warnings)


class _Scanned(Dataset):
    """What a scanning process holds; a request is the name of a part and the first image of a chunk."""

    def __init__(self, parts: dict[str, FileSet]) -> None:
        self.parts = {name: (str(part.root), part.paths) for name, part in parts.items()}

    def __getitem__(self, request: tuple[str, int]) -> tuple[Finding, np.ndarray]:
        """What is found, and a digest uint64 of every file, 0 where it cannot be read."""
        name, first = request
        root, paths = self.parts[name]
        finding, digests = Finding(min(CHUNK, len(paths) - first), [], []), []
        with _messages() as message:
            for image in range(first, first + finding.images):
                path, digest = f"{root}/{paths[image]}", 0
                try:
                    data = read_bytes(path)
                    decode_image(data, path)
                    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
                    finding.deep.extend([path] * is_deep(data))
                except UserError as error:
                    finding.problems.append(str(error))
                complaint = message()
                if complaint and digest:
                    finding.warnings.append(f"{path} may be damaged ({complaint}); it is read anyway")
                digests.append(digest)
        return finding, np.array(digests, dtype=np.uint64)


@contextmanager
def _messages() -> Iterator[Callable[[], str]]:
    """Within, standard error leads to a file: there libjpeg and its like say what they overlooked.

    Gives what reads the first line that has been written there since it was last called.
    """

    def message() -> str:
        text = os.pread(STDERR, os.fstat(STDERR).st_size, 0).decode(errors="replace")
        os.ftruncate(STDERR, 0)
        os.lseek(STDERR, 0, os.SEEK_SET)
        return " ".join(text.split("\n", 1)[0].split())

    with tempfile.TemporaryFile() as file:
        before = os.dup(STDERR)
        os.dup2(file.fileno(), STDERR)
        try:
            yield message
        finally:
            os.dup2(before, STDERR)
            os.close(before)


def _leaks(parts: dict[str, FileSet], digests: dict[str, np.ndarray]) -> Iterator[str]:
    """Images that hold the same bytes as a training image, though under another name."""
    train = parts["train"]
    known, first = np.unique(digests["train"], return_index=True)
    for name in (name for name in parts if name != "train"):
        part, found = parts[name], digests[name]
        for image in np.flatnonzero(np.isin(found, known[known > 0])).tolist():
            original = int(first[np.searchsorted(known, found[image])])
            ours, theirs = (
                f"{files.root}/{files.paths[i]}" for files, i in ((part, image), (train, original))
            )
            if ours != theirs:
                yield f"{ours} ({name}) holds the same bytes as {theirs} (train): leave one out"


def _print_findings(parts: dict[str, FileSet], workers: int) -> tuple[int, int]:
    """Scan with a bar on standard error where that is a terminal; the numbers of problems and warnings."""
    total, problems, warnings = sum(map(len, parts.values())), 0, 0
    suffix = "%(index)d/%(max)d eta %(eta_td)s"
    bar = Bar("images", max=total, suffix=suffix, file=sys.stderr, hide_cursor=False)
    for finding in scan(parts, workers):
        lines = finding.problems + [f"warning: {text}" for text in finding.warnings]
        if lines:
            _clear(bar)
            say(*lines)
        problems, warnings = problems + len(finding.problems), warnings + len(finding.warnings)
        bar.next(finding.images)
    _clear(bar)
    return problems, warnings


def _clear(bar: Bar) -> None:
    if bar.is_tty():
        bar.writeln("")
        print("\r", end="", file=bar.file, flush=True)


def summary(data: LongTailedData, images: int, problems: int, warnings: int) -> str:
    """The closing line."""
    fewest, most = min(data.class_counts, default=0), max(data.class_counts, default=0)
    counts = {"image": images, "problem": problems, "warning": warnings}
    listed = ", ".join(f"{number:,} {word}{'s' * (number != 1)}" for word, number in counts.items())
    return f"{data.name}: {listed}; {data.num_classes:,} classes of {fewest:,} to {most:,} training images"


def main(argv: Sequence[str] | None = None) -> None:
    config = resolve(CHECK, parse(CHECK, __doc__.splitlines()[0], argv))
    listed: list[str] = []
    try:
        data = load_data(config, report=listed.append)
    finally:  # what was found before something that ends the reading
        for problem in listed:
            say(problem)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    parts = {name: part for name, part in parts.items() if isinstance(part, FileSet)}
    if not parts:
        raise UserError(f"{data.name} is held in memory, its files were checked as they were read")
    problems, warnings = _print_findings(parts, config.workers)
    problems += len(listed)
    say(summary(data, sum(map(len, parts.values())), problems, warnings))
    if problems:
        sys.exit(2)


if __name__ == "__main__":
    exit_cleanly(main)
