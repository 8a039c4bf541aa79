"""Features on disk: extracted in blocks by any number of processes, gone on with after a stop, mapped.

A folder holds NAME.bin, the raw array [V, N, D], and NAME.done/, a file for every finished block with a
digest of its values and of what the images were like: a block whose images were replaced is made again.

Shapes: V views, N images, D feature.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.base.distributed import World
from utils.base.errors import UserError
from utils.base.files import open_regular, read_text, sweep
from utils.engine.scoring import EVAL_BATCH
from utils.packs.pack import narrowed
from utils.run.checkpoint import write_atomically

# images that are finished together: a batch, so that its bits do not depend on who extracts it
BLOCK = EVAL_BATCH
Views = tuple[int, int]  # first and behind the last view of a pass over the images
# gives the features [v, n, D] of images start..stop, a block after another: (views, start, stop) -> blocks
Extract = Callable[[Views, int, int], Iterable[Tensor]]
# what images start..stop are like
Stamp = Callable[[int, int], bytes]


class FeatureStore:
    """The arrays in `folder`, made from what `identity` (plain data) names.

    Raises:
        UserError: the folder holds features of something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict, dtype: torch.dtype, world: World) -> None:
        self.folder, self.world, self._filled = folder, world, []
        self.dtype = {torch.float16: np.float16, torch.float32: np.float32}[dtype]
        identity = identity | {"dtype": str(dtype), "block": BLOCK}
        self._note, self._text = folder / "identity.json", json.dumps(identity, indent=1, sort_keys=True)
        if world.main:
            try:
                self._claim()
            except OSError as error:
                raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
        world.wait()

    def _claim(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._note.exists() and not self._is_ours():
            raise UserError(
                f"{self.folder} holds features of another backbone, data set or setting: remove it, or give "
                "--save_features another name"
            )
        sweep(self.folder, older_than=0)
        if not self._note.exists() and os.listdir(self.folder):
            raise UserError(
                f"{self.folder} is to take the features for a while, but holds something else: move it away, "
                "or give --save_features another name"
            )
        write_atomically(self._note, lambda handle: handle.write(self._text.encode()))

    def _is_ours(self) -> bool:
        return read_text(self._note) == self._text

    def remove(self) -> None:
        """Take away what was written here, file by file, if the folder is still its own; the rest stays."""
        with suppress(OSError):
            if not self.world.main or not self._is_ours():
                return
            for name in self._filled:
                _clear(self.folder / f"{name}.done")
                os.unlink(self.folder / f"{name}.bin")
            os.unlink(self._note)
            os.rmdir(self.folder)

    def fill(
        self,
        name: str,
        shape: tuple[int, int, int],
        passes: list[Views],
        extract: Extract,
        stamp: Stamp,
    ) -> Tensor:
        """The array `name` of `shape` [V, N, D], mapped; what it lacks is extracted, each process a share.

        `passes`: the views that are extracted together, in order.

        Raises:
            UserError: the disk has no room for it.
        """
        path, done = self.folder / f"{name}.bin", self.folder / f"{name}.done"
        self._filled.append(name)
        todo = self.world.agree(self._todo(path, done, shape, passes, stamp) if self.world.main else None)
        array = self._mapped(path, "r+", shape)
        for views, start, stop in _runs(todo[slice(*self.world.block(len(todo)))]):
            first = start
            for features in extract(views, start, stop):
                block = slice(first, first + features.shape[1])
                array[views[0] : views[1], block] = self._stored(features, block)
                _mark(done, array, views, block, stamp)
                first = block.stop
        self.world.wait()
        return torch.from_numpy(self._mapped(path, "c", shape))

    def _mapped(self, path: Path, mode: str, shape: tuple[int, int, int]) -> np.ndarray:
        try:
            return np.memmap(path, self.dtype, mode, shape=shape)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror or error}): all processes must see its file system"
            ) from error

    def _todo(
        self, path: Path, done: Path, shape: tuple[int, int, int], passes: list[Views], stamp: Stamp
    ) -> list:
        """The blocks that are not finished, (views, start, stop), of a file that has room for all."""
        self._reserve(path, done, shape)
        array = self._mapped(path, "r", shape)
        blocks = [(views, *block) for views in passes for block in _blocks(shape[1])]
        return [block for block in blocks if not _is_done(done, array, *block, stamp)]

    def _stored(self, features: Tensor, block: slice) -> np.ndarray:
        what = f"the backbone's output of images {block.start} to {block.stop - 1}"
        return narrowed(features.cpu().numpy(), self.dtype, what, "take --pack_dtype fp32")

    def _reserve(self, path: Path, done: Path, shape: tuple[int, int, int]) -> None:
        needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        present = path.stat().st_size if path.exists() else 0
        free = shutil.disk_usage(self.folder).free
        try:
            if present != needed:  # a file of another size is of no use
                if needed - present > free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _clear(done)
                with open_regular(path, "wb") as handle:
                    _allocate(handle.fileno(), needed)
            done.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path} needs {needed / 2**30:.2f} GiB, its disk has {free / 2**30:.2f} GiB free "
                f"({error.strerror}): take fewer --views, or another folder (--out, --save_features)"
            ) from error


def _allocate(file: int, size: int) -> None:
    """Take the room now: a mapped file that finds the disk full while it is written kills its process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _blocks(images: int) -> Iterator[Views]:
    for start in range(0, images, BLOCK):
        yield start, min(start + BLOCK, images)


def _runs(blocks: list[tuple[Views, int, int]]) -> Iterator[tuple[Views, int, int]]:
    """Blocks of the same views that follow each other, joined: one pass over the images for each run."""
    run = None
    for views, start, stop in blocks:
        if run and run[0] == views and run[2] == start:
            run = (views, run[1], stop)
            continue
        if run:
            yield run
        run = (views, start, stop)
    if run:
        yield run


def _marker(done: Path, views: Views, start: int) -> Path:
    return done / f"{views[0]}-{views[1]}_{start}"


def _clear(done: Path) -> None:
    """Remove a folder of markers, and nothing else that may be in it."""
    with suppress(OSError):
        for name in os.listdir(done):
            if re.fullmatch(r"\d+-\d+_\d+", name):
                os.unlink(done / name)
        os.rmdir(done)


def _digest(array: np.ndarray, views: Views, start: int, stop: int, stamp: Stamp) -> str:
    state = hashlib.sha256(np.ascontiguousarray(array[views[0] : views[1], start:stop]).data)
    state.update(stamp(start, stop))
    return state.hexdigest()


def _mark(done: Path, array: np.ndarray, views: Views, block: slice, stamp: Stamp) -> None:
    marker = _marker(done, views, block.start)
    try:
        with open_regular(marker, "wb") as handle:
            handle.write(_digest(array, views, block.start, block.stop, stamp).encode())
    except OSError as error:
        raise UserError(f"{marker} cannot be written: {error.strerror or error}") from error


def _is_done(done: Path, array: np.ndarray, views: Views, start: int, stop: int, stamp: Stamp) -> bool:
    """Was the block finished, and is it still what it was?"""
    marker = _marker(done, views, start)
    return marker.is_file() and read_text(marker) == _digest(array, views, start, stop, stamp)
