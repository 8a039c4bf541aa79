"""What every data set hands to the rest of the project."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import SHOTS, shot_groups
from utils.base.errors import UserError
from utils.base.files import open_regular

SAMPLED = 1024  # files of a set whose bytes are looked at
PIECE = 4096  # bytes at the start, and at the end, of such a file


@dataclass(frozen=True)
class ImageSet:
    """images uint8 [N, C, H, W] and labels int64 [N], in memory."""

    images: Tensor
    labels: Tensor
    contents = None  # there are no files, and `digest` covers every pixel

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "ImageSet":
        """The images `index` int64 [n], in that order."""
        return ImageSet(self.images[index], self.labels[index])

    def digest(self) -> str:
        """Hex sha256 of pixels and labels, in order."""
        state = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        state.update(self.images.numpy().tobytes())
        state.update(self.labels.numpy().tobytes())
        return state.hexdigest()

    def stamp(self, start: int, stop: int) -> bytes:
        """Nothing that could change: see `contents`."""
        return b""


class PathTable:
    """N relative paths as two arrays, which a forked loader process shares: no reference count is touched.

    `block` holds all bytes, `ends` int64 [N] says where in it each path ends.
    """

    def __init__(self, paths: Sequence[bytes]) -> None:
        """Paths as the file system spells them."""
        self.block = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self.ends = np.fromiter(map(len, paths), dtype=np.int64, count=len(paths)).cumsum()

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, index: int) -> bytes:
        start = self.ends[index - 1] if index else 0
        return self.block[start : self.ends[index]].tobytes()

    def __getitem__(self, index: int) -> str:
        """The path as text; bytes that are no UTF-8 are escaped as the file system's calls expect."""
        return self.raw(index).decode("utf-8", "surrogateescape")

    def every(self) -> Iterator[bytes]:
        """All paths, as the file system spells them."""
        block, ends = self.block.tobytes(), self.ends.tolist()
        return (block[start:end] for start, end in zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class FileSet:
    """Images on disk: `root` / paths[i], labels int64 [N]."""

    root: Path
    paths: PathTable
    labels: Tensor
    passed_over: tuple[bytes, ...] = ()  # other files that lie beside them
    full: bool = False  # `contents` reads every byte, not a sample
    source: str = ""  # the list or folder that named them, for messages

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Hex sha256 of relative paths and labels, in order: of the list, not of what the files hold."""
        state = hashlib.sha256(f"{len(self)} files".encode())
        for array in (self.paths.block, self.paths.ends, self.labels.numpy()):
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    @cached_property
    def names(self) -> Tensor:
        """A fingerprint of every relative path, int64 [N]: which images these are, whatever their order."""
        return torch.tensor([_fingerprint(path) for path in self.paths.every()], dtype=torch.int64)

    @cached_property
    def sampled(self) -> Tensor:
        """The images whose bytes are looked at, int64 [n]: of many `SAMPLED`, from every large class."""
        return evenly(min(len(self), SAMPLED), len(self))

    @cached_property
    def contents(self) -> dict:
        """What the files were like, for a checkpoint: whether others lie under these names now shows by it.

        A copy has other times and nothing else. A file of the same size that is not in the sample shows by
        its time alone, or where `full` by the digest of all bytes. One that cannot be read counts as empty.
        """
        status = np.array([self._status(i) for i in range(len(self))], dtype=np.int64).reshape(-1, 2)
        sizes, times = (hashlib.sha256(np.ascontiguousarray(row).data).hexdigest() for row in status.T)
        found = {"names": self.names, "sizes": sizes, "times": times, "bytes": self.bytes_of(self.sampled)}
        if self.full:
            every = b"".join(self._read(i, -1) for i in range(len(self)))
            found["all"] = hashlib.sha256(every).hexdigest()
        return found

    def bytes_of(self, index: Tensor) -> Tensor:
        """Fingerprints int64 [n] of the first and last `PIECE` bytes of the files `index`, int64 [n]."""
        return torch.tensor([_fingerprint(self._read(i, PIECE)) for i in index.tolist()], dtype=torch.int64)

    def stamp(self, start: int, stop: int) -> bytes:
        """What the files `start` to `stop` are like, as `contents` but without times, and no sample: each."""
        piece = -1 if self.full else PIECE
        read = [(self._status(i)[0], _fingerprint(self._read(i, piece))) for i in range(start, stop)]
        return np.array(read, dtype=np.int64).tobytes()

    def path(self, index: int) -> str:
        """Where an image lies."""
        return f"{self.root}/{self.paths[index]}"

    def _status(self, index: int) -> tuple[int, int]:
        """Size and time of change of a file."""
        with suppress(OSError):
            status = os.stat(self.path(index))
            return status.st_size, status.st_mtime_ns
        return -1, 0

    def _read(self, index: int, piece: int) -> bytes:
        """The first and last `piece` bytes of a file; -1: the digest of all."""
        with suppress(OSError, UserError), open_regular(self.path(index)) as handle:
            if piece < 0:
                return hashlib.file_digest(handle, "sha256").digest()
            start = handle.read(piece)
            handle.seek(max(os.fstat(handle.fileno()).st_size - piece, 0))
            return start + handle.read(piece)
        return b""

    def take(self, index: np.ndarray) -> "FileSet":
        """The images `index` int64 [n], in that order."""
        paths = PathTable([self.paths.raw(i) for i in index.tolist()])
        return replace(self, paths=paths, labels=self.labels[index])


def evenly(count: int, number: int) -> Tensor:
    """`count` of the positions 0 to `number` - 1, int64 [count], at even distances."""
    return torch.arange(count) * number // max(count, 1)


def _fingerprint(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class ViewSpec:
    """How an image becomes a network input: random crop after zero padding, flip, (x / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    mirror: bool = True  # flips in training

    @property
    def mirror_test(self) -> bool:
        """Is the mirror image averaged in at test?"""
        return self.mirror


@dataclass(frozen=True)
class FileViews(ViewSpec):
    """How an image file becomes a network input of `size` x `size` pixels.

    In training by `augment`: torchvision's RandomResizedCrop; `pad_crop` resizes to size x size, pads with
    `padding` zeros, crops; `plain` is the test view. That resizes the shorter side to `resize` and crops the
    centre (`pad_crop`: resizes to size x size). `jitter`: strength of torchvision's ColorJitter, without hue.
    `interpolation`: torchvision's word for how images are resized.
    """

    size: int = 224
    resize: int = 256
    augment: str = "resized_crop"
    jitter: float = 0.0
    mirror_test: bool = False
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set with its validation and test parts, in memory or on disk.

    Without a `test` part, because its labels are missing, the validation part is what is reported.
    `class_counts`, of the long-tailed set itself, define the shot groups by the limits `shots`;
    `train_counts` are what is left for training after a hold-out.
    """

    name: str
    class_names: list[str]
    class_counts: list[int]
    train: ImageSet | FileSet
    val: ImageSet | FileSet | None
    val_source: str
    test: ImageSet | FileSet | None
    views: ViewSpec
    notes: list[str] = field(default_factory=list)
    shots: tuple[int, int] = SHOTS

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)

    @property
    def parts(self) -> dict[str, ImageSet | FileSet]:
        """The parts that exist, by name: train, val, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def judged(self) -> str:
        """The part whose figures are reported."""
        return "val" if self.test is None else "test"

    @property
    def groups(self) -> list[str]:
        """The shot group of each class: many, medium or few."""
        masks = shot_groups(self.class_counts, self.shots)
        return [next(name for name, mask in masks.items() if mask[k]) for k in range(self.num_classes)]

    @property
    def in_channels(self) -> int:
        return 3 if isinstance(self.train, FileSet) else self.train.images.shape[1]

    @property
    def train_counts(self) -> list[int]:
        return torch.bincount(self.train.labels, minlength=self.num_classes).tolist()
