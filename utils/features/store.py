"""Features on disk: extracted in blocks by any number of processes, gone on with after a stop, mapped.

A folder holds NAME.bin, the raw array [V, N, D], and NAME.done, for every finished block a digest of its
values and of what the images were like: a block that is not what it was, or whose images were replaced, is
made again.

Shapes: V views, N images, D feature.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.base.distributed import World
from utils.base.errors import UserError, reason
from utils.base.files import open_regular, read_text, sweep, write_atomically
from utils.engine.scoring import EVAL_BATCH
from utils.packs.pack import narrowed

FORMAT = 2  # of the folder
_DTYPES = {torch.float16: np.float16, torch.float32: np.float32}
# images that are finished together: a batch, so that its bits do not depend on who extracts it
BLOCK = EVAL_BATCH
Views = tuple[int, int]  # first and behind the last view of a pass over the images
# gives the features [v, n, D] of images start..stop, a block after another: (views, start, stop) -> blocks
Extract = Callable[[Views, int, int], Iterable[Tensor]]
# what images start..stop are like
Stamp = Callable[[int, int], bytes]


class FeatureStore:
    """The arrays in `folder`, made from what `identity` (plain data) names.

    Raises UserError where the folder holds features of something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict, dtype: torch.dtype, world: World) -> None:
        self.folder, self.world, self.dtype = folder, world, _DTYPES[dtype]
        self._filled: list[Path] = []
        identity = identity | {"dtype": str(dtype), "block": BLOCK, "format": FORMAT}
        self._note, self._text = folder / "identity.json", json.dumps(identity, indent=1, sort_keys=True)
        if world.main:
            try:
                self._claim()
            except OSError as error:
                raise UserError(f"{folder} cannot be written: {reason(error)}") from error
        world.wait()

    def _claim(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self._note.exists()
        other = "move it away, or give --save_features another name"
        if begun and not self._is_ours():
            raise UserError(f"{self.folder} holds features of another backbone, data set or setting: {other}")
        sweep(self.folder, older_than=0)
        if not begun and os.listdir(self.folder):
            raise UserError(f"{self.folder} is to take the features, but holds something else: {other}")
        write_atomically(self._note, lambda handle: handle.write(self._text.encode()))

    def _is_ours(self) -> bool:
        return read_text(self._note) == self._text

    def remove(self) -> None:
        """Take away what was written here, file by file, if the folder is still its own; the rest stays."""
        with suppress(OSError):
            if self.world.main and self._is_ours():
                for path in (*self._filled, self._note):
                    os.unlink(path)
                os.rmdir(self.folder)

    def fill(
        self, name: str, shape: tuple[int, int, int], passes: list[Views], extract: Extract, stamp: Stamp
    ) -> Tensor:
        """The array `name` of `shape` [V, N, D], mapped; what it lacks is extracted, each process a share.

        `passes`: the views that are extracted together, in order.
        """
        images, blocks = shape[1], -(-shape[1] // BLOCK)
        array = self._made(f"{name}.bin", self.dtype, shape)
        done = self._made(f"{name}.done", np.uint8, (len(passes) * blocks, hashlib.sha256().digest_size))

        def place(number: int) -> tuple[Views, int, int]:
            """Which views of which images a block holds; they are numbered pass by pass."""
            start = number % blocks * BLOCK
            return passes[number // blocks], start, min(start + BLOCK, images)

        def digest(number: int) -> np.ndarray:
            views, start, stop = place(number)
            state = hashlib.sha256(np.ascontiguousarray(array[slice(*views), start:stop]).data)
            state.update(stamp(start, stop))
            return np.frombuffer(state.digest(), np.uint8)

        def is_done(number: int) -> bool:
            return done[number].any() and np.array_equal(done[number], digest(number))

        numbers = range(len(done)) if self.world.main else ()
        lacking = self.world.agree([number for number in numbers if not is_done(number)])
        share = enumerate(lacking[slice(*self.world.block(len(lacking)))])
        # blocks of the same views that follow each other are one pass over the images
        for _, run in groupby(share, key=lambda one: (one[1] // blocks, one[1] - one[0])):
            own = [number for _, number in run]
            views, start, _ = place(own[0])
            found = extract(views, start, place(own[-1])[2])
            for number, features in zip(own, found, strict=True):
                _, start, stop = place(number)
                what = f"the backbone's output of images {start} to {stop - 1}"
                stored = narrowed(features.cpu().numpy(), self.dtype, what, "take --pack_dtype fp32")
                array[slice(*views), start:stop] = stored
                done[number] = digest(number)
        self.world.wait()
        return torch.from_numpy(self._mapped(self.folder / f"{name}.bin", "c", self.dtype, shape))

    def _made(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        """A file of this size, mapped to be written to in all processes; one of another size is replaced."""
        path, size = self.folder / name, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._filled.append(path)
        if self.world.main:
            free = shutil.disk_usage(self.folder).free
            try:
                present = path.stat().st_size if path.exists() else 0
                if present != size:
                    if size - present > free:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    with open_regular(path, "wb") as handle:
                        _allocate(handle.fileno(), size)
            except OSError as error:
                has = f"its disk has {free / 2**30:.2f} GiB free ({error.strerror})"
                advice = "take fewer --views, or another folder (--out, --save_features)"
                raise UserError(f"{path} needs {size / 2**30:.2f} GiB, {has}: {advice}") from error
        self.world.wait()
        return self._mapped(path, "r+", dtype, shape)

    def _mapped(self, path: Path, mode: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.memmap(path, dtype, mode, shape=shape)
        except OSError as error:
            advice = "all processes must see its file system"
            raise UserError(f"{path} cannot be read ({reason(error)}): {advice}") from error


def _allocate(file: int, size: int) -> None:
    """Take the room now: a mapped file that finds the disk full while it is written kills its process."""
    allocate = getattr(os, "posix_fallocate", None)
    allocate(file, 0, size) if allocate else os.truncate(file, size)
