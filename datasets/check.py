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

from progress.bar import Bar
from torch.utils.data import Dataset

from datasets.images.decode import NOT_READ, decode_image, is_deep, read_bytes
from datasets.images.processes import Processes
from datasets.types import FileSet
from utils.base.errors import UserError, exit_cleanly, say
from utils.settings.config import asked_for, resolve
from utils.settings.data import load_data
from utils.settings.parse import CHECK

CHUNK = 64  # images a request
STDERR = 2  # the descriptor that C libraries write to


@dataclass
class Finding:
    """What is wrong with some images, and a digest of the bytes of each, 0 where it is unreadable."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)  # those with more than 8 bits
    digests: list[int] = field(default_factory=list)


class Scanned(Dataset):
    """What a scanning process holds; a request is the name of a part and the first image of a chunk."""

    def __init__(self, parts: dict[str, FileSet]) -> None:
        self.parts = parts

    def __getitem__(self, request: tuple[str, int]) -> Finding:
        name, first = request
        part, finding = self.parts[name], Finding()
        with _complaints() as complaint:
            for image in range(first, min(first + CHUNK, len(part))):
                path, digest = part.path(image), 0
                try:
                    data = read_bytes(path)
                    decode_image(data, path)
                    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
                    finding.deep.extend([path] * is_deep(data))
                except UserError as error:
                    finding.problems.append(str(error))
                said = complaint()
                if said and digest:
                    finding.warnings.append(f"{path} may be damaged ({said}); it is read anyway")
                finding.digests.append(digest)
        return finding


@contextmanager
def _complaints() -> Iterator[Callable[[], str]]:
    """Within, standard error leads to a file: there libjpeg and its like say what they overlooked.

    Gives what reads the first line that has been written there since it was last called.
    """

    def complaint() -> str:
        text = os.pread(STDERR, os.fstat(STDERR).st_size, 0).decode(errors="replace")
        os.ftruncate(STDERR, 0)
        os.lseek(STDERR, 0, os.SEEK_SET)
        return " ".join(text.split("\n", 1)[0].split())

    with tempfile.TemporaryFile() as file:
        before = os.dup(STDERR)
        os.dup2(file.fileno(), STDERR)
        try:
            yield complaint
        finally:
            os.dup2(before, STDERR)
            os.close(before)


def scan(parts: dict[str, FileSet], workers: int) -> Iterator[Finding]:
    """Decode every image in `workers` processes (0: in this one); the last finding is of whole parts.

    Among its problems are images that hold the same bytes as a training image, though under another name; of
    two training images it warns where their classes differ.
    """
    processes, last = Processes(Scanned(parts), workers), Finding()
    known: dict[int, tuple[str, int]] = {}  # digest of a training image -> its path and label
    requests = [(name, at) for name, part in parts.items() for at in range(0, len(part), CHUNK)]
    for (name, first), finding in zip(requests, processes.answers(requests), strict=True):
        last.deep += finding.deep
        for image, digest in enumerate(finding.digests, first):
            own = parts[name].path(image), int(parts[name].labels[image])
            met = known.setdefault(digest, own) if name == "train" and digest else known.get(digest, own)
            if name != "train" and met[0] != own[0]:
                same = f"{own[0]} ({name}) holds the same bytes as {met[0]} (train)"
                last.problems.append(f"{same}: leave one out")
            elif met[1] != own[1]:
                last.warnings.append(f"{own[0]} holds the same bytes as {met[0]}, of another class")
        yield finding
    processes.close()
    # parts that were taken from one folder have what is passed over there in common
    found = (f"{part.root}/{os.fsdecode(path)}" for part in parts.values() for path in part.passed_over)
    others = dict.fromkeys(found)
    last.warnings += [f"{path} is passed over: {NOT_READ}" for path in others]
    if last.deep:
        of_what = f"{len(last.deep):,} image(s) have more than 8 bits a channel, {last.deep[0]} first"
        last.warnings.append(
            f"{of_what}: what is above 255 becomes white, fractions below 1 black; convert them"
        )
    yield last


def main(argv: Sequence[str] | None = None) -> None:
    config = resolve(CHECK, asked_for(CHECK, __doc__, argv))
    listed: list[str] = []
    try:
        data = load_data(config, report=listed.append)
    finally:  # what was found before something that ends the reading
        for problem in listed:
            say(problem)
    if not isinstance(data.train, FileSet):
        raise UserError(f"{data.name} is held in memory, its files were checked as they were read")
    counts = {"image": sum(map(len, data.parts.values())), "problem": len(listed), "warning": 0}
    suffix = "%(index)d/%(max)d eta %(eta_td)s"
    bar = Bar("images", max=counts["image"], suffix=suffix, file=sys.stderr, hide_cursor=False)
    for finding in scan(data.parts, config.workers):
        lines = finding.problems + [f"warning: {text}" for text in finding.warnings]
        if lines:
            _clear(bar)
            say(*lines)
        counts["problem"] += len(finding.problems)
        counts["warning"] += len(finding.warnings)
        bar.next(len(finding.digests))
    _clear(bar)
    found = ", ".join(f"{number:,} {word}{'s' * (number != 1)}" for word, number in counts.items())
    fewest, most = min(data.class_counts, default=0), max(data.class_counts, default=0)
    say(f"{data.name}: {found}; {data.num_classes:,} classes of {fewest:,} to {most:,} training images")
    if counts["problem"]:
        sys.exit(2)


def _clear(bar: Bar) -> None:
    if bar.file and bar.is_tty():
        bar.writeln("")
        print("\r", end="", file=bar.file, flush=True)


if __name__ == "__main__":
    exit_cleanly(main)
