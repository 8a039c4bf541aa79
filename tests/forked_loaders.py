"""Runs with loader processes that end badly, each in a fork of this process, which tells what came of it.

python -m tests.forked_loaders ends FOLDER
python -m tests.forked_loaders files|processes|memory FOLDER LIMIT ...
"""

import gc
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import _utils, dataloader

from datasets import CHANNELS
from datasets.images.on_disk import FileImages
from datasets.types import FileSet, FileViews, PathTable
from utils.base.errors import exit_cleanly

# torch looks for dead processes every five seconds: here more often
_utils.worker.MP_STATUS_CHECK_INTERVAL = 0.1
dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.1,)
NOBODY = 54_321
LARGE = FileViews(*CHANNELS["imagenet"])
SMALL = FileViews(*CHANNELS["imagenet"], size=32, resize=36)


def say(*words: object) -> None:
    """A line in one piece: several processes write into one pipe, and print may write word by word."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def say_goodbye() -> None:
    """A process of the user's own, which takes SIGTERM; Python sends it to a daemon at the end."""
    forking = multiprocessing.get_context("fork")
    ready = forking.Event()

    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: (say("goodbye"), sys.exit()))
        ready.set()
        while True:
            signal.pause()

    forking.Process(target=work, daemon=True).start()
    ready.wait()


def fail() -> None:
    raise RuntimeError


def keep(images: FileImages, batches: object) -> None:
    """A circle, which is not taken apart before the end."""
    sys.kept = images, batches
    images.itself = images


ENDS: tuple[Callable, ...] = (
    lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    lambda *_: os._exit(3),
    lambda *_: fail(),
    keep,
    lambda images, batches: next(batches) and keep(images, None),
    lambda *_: say_goodbye(),
)


def end_in_every_way(files: FileSet) -> None:
    """Print the loader processes of each fork, which then ends."""
    for end in ENDS:
        if not os.fork():
            images = FileImages(files, SMALL, workers=2)
            batches = images.augmented(torch.arange(len(files)).repeat(200), 4, 0, 0)
            next(batches)
            loaders = multiprocessing.active_children()
            say("ends", *(process.pid for process in loaders))
            end(images, batches)
            sys.exit()
    for _ in ENDS:
        os.wait()


def look(files: FileSet, workers: int, kind: str = "") -> None:
    images = FileImages(files, LARGE if kind == "memory" else SMALL, workers=workers)
    for _ in range(2):
        list(images.augmented(torch.arange(len(files)).repeat(2), 4, 0, 0))


def look_under_limit(files: FileSet, workers: int, kind: str, limit: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if kind == "files":
        held = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + limit, hard))
    if kind == "processes":
        os.chmod(".", 0o755)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    try:
        exit_cleanly(lambda: look(files, workers, kind))
    finally:  # torch opens files of its own when a process ends
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sys.exit(0)


def tell(files: FileSet, workers: int, kind: str, limit: int) -> None:
    """Print status, children left, number of lines and lines of a fork under the limit."""
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(saying, 2)
        os.closerange(said, saying + 1)
        look_under_limit(files, workers, kind, limit)
    os.close(saying)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.killpg(child, signal.SIGKILL)
        left = "children"
    except ProcessLookupError:
        left = "none"
    with os.fdopen(said) as lines:
        text = lines.read().splitlines()
    say(kind, workers, status, left, len(text), *text)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    paths = PathTable(sorted(map(os.fsencode, os.listdir("."))))
    files = FileSet(Path("."), paths, torch.zeros(len(paths), dtype=torch.int64))
    look(files, 2)  # nothing is left to import: nobody may not read it
    gc.freeze()  # a fork that ends does not look through all of torch for circles first
    for kind, _, limits in (word.partition(":") for word in sys.argv[2:]):
        if kind == "ends":
            end_in_every_way(files)
        for limit in limits.split(",") if limits else ():
            for workers in (0, 1, 3):
                tell(files, workers, kind, int(limit))
