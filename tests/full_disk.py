"""Saves that run into a limit on a file's size, or into a full disk."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from tests.helpers import HANG, checkpoint_content
from utils.base.errors import UserError
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent
UNDER_A_LIMIT = """
import resource, signal, sys, torch
from pathlib import Path
from utils.base.errors import UserError
from utils.base.safe_load import load_plain
from utils.run import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, in_place = Path(sys.argv[1]), sys.argv[2] == "in place"
content = torch.load(sys.argv[3], weights_only=True)
refused = 0
for limit in map(int, sys.argv[4:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        torch.save(content, path) if in_place else checkpoint.save(path, content)
    except UserError as error:
        assert "x.pth cannot be written: File too large" in str(error), error
        refused += 1
    except RuntimeError:
        refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if load_plain(path)["epoch"] != 3 or len(list(path.parent.iterdir())) != 1:
        sys.exit("the old file is not what it was")
print(refused)
"""


def content(size: int = 60_000, **facts) -> dict:
    draw = torch.Generator().manual_seed(size)
    return checkpoint_content({"fc.weight": torch.randn(size, generator=draw)}, **facts)


def limits_below(size: int, count: int) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(size) for _ in range(count)]


def save_under_limits(folder: Path, how: str, count: int) -> subprocess.CompletedProcess:
    """Save at so many limits on a file's size, `how`: atomically or in place; prints how many failed."""
    place = folder / "place"
    checkpoint.save(place / "x.pth", content())
    torch.save(content(epoch=4), folder / "new")
    limits = map(str, limits_below((place / "x.pth").stat().st_size, count))
    words = [sys.executable, "-c", UNDER_A_LIMIT, place / "x.pth", how, folder / "new", *limits]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG)


@contextmanager
def mounted(place: Path) -> Iterator[Path | None]:
    """A real disk of 1 MiB; None where we may not mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave about `left` bytes on the disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - left)))


def full_disks(disk: Path, count: int) -> int:
    """Save onto a disk that is full after some random bytes; how often of `count` the old file stays."""
    path, kept = disk / "x.pth", 0
    digest = checkpoint.save(path, content())
    for left in limits_below(path.stat().st_size, count):
        fill(disk, left)
        try:
            checkpoint.save(path, content(epoch=4))
        except UserError as error:
            assert "x.pth cannot be written: No space left on device" in str(error)
            (disk / "filler").unlink()
            kept += [entry.name for entry in disk.iterdir()] == ["x.pth"]
            assert checkpoint.read(path).digest == digest
    path.unlink()
    return kept


def spoilt_in_place(disk: Path) -> bool:
    """The control: does a file that is written in place become unreadable?"""
    path = disk / "x.pth"
    checkpoint.save(path, content())
    fill(disk, 0)
    with suppress(OSError, RuntimeError):
        torch.save(content(size=120_000), path)
    try:
        checkpoint.read(path)
    except UserError:
        return True
    return False
