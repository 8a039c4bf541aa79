"""Feature packs: frozen features, labels and the stage-1 classifier of a data set in one safe file.

The format is safetensors: numbers behind a JSON header, memory-mapped when read, no code inside.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from datasets import OWN_DATASETS
from models.heads.los_path import usual_path
from utils.base.digest import content_digest
from utils.base.errors import NoMemoryError, UserError, is_out_of_memory, reason
from utils.base.files import json_text, require_file, write_atomically
from utils.run.facts import OWN, PACK_FORMAT, PackFacts, problems
from utils.settings.presets import PRESETS
from utils.settings.table import FIXED_BY_CHECKPOINT, INHERITED

VERSION = 1
_MOST_FACTS = 1 << 24  # characters of JSON
_CHUNK = 1 << 20  # values looked at together
# cosine heads and class means square features in float32, whose range this leaves room in
_LARGEST, _SMALLEST = 1e15, 1e-10
_KEPT = 2**-10  # of an image's largest feature; in its normal range fp16 rounds by half of it at most
_FEATURES, _LABELS = (torch.float16, torch.float32), (torch.int64,)
_OF_AN_IMAGE = "features an image"
# tensor -> its axes, which have one size in all tensors but for views; the types that it may have
_LAYOUT = {
    "train": (("views", "training images", _OF_AN_IMAGE), _FEATURES),
    "train_labels": (("training images",), _LABELS),
    "plain": (("training images", _OF_AN_IMAGE), _FEATURES),
    "test": (("views", "test images", _OF_AN_IMAGE), _FEATURES),
    "test_labels": (("test images",), _LABELS),
    "val": (("views", "validation images", _OF_AN_IMAGE), _FEATURES),
    "val_labels": (("validation images",), _LABELS),
    "fc_weight": (("classes", _OF_AN_IMAGE), (torch.float32,)),
    "fc_bias": (("classes",), (torch.float32,)),
}
_OPTIONAL = {"plain", "test", "test_labels", "val", "val_labels"}


@dataclass(frozen=True)
class Pack:
    """N images, D features, K classes; V views. The types of numbers are those of _LAYOUT, labels int64.

    `test` and `val` hold the image, and its mirror image where they have two views; `plain` holds the
    training images as they are, where `train` has augmented views.
    """

    train: Tensor  # [V, N, D]
    train_labels: Tensor
    test: Tensor | None  # [V, N, D]
    test_labels: Tensor | None
    val: Tensor | None  # [V, N, D]
    val_labels: Tensor | None
    fc_weight: Tensor  # [K, D]
    fc_bias: Tensor
    facts: PackFacts
    plain: Tensor | None = None  # [N, D]
    path: Path | None = None
    digest: str = ""
    status: tuple = ()  # of its file when it was opened

    @property
    def identity(self) -> str | None:
        """What later steps know the stage 1 by; None of features that a user brought."""
        return self.facts["stage1_digest"]

    @property
    def state(self) -> dict[str, Tensor]:
        """The stage-1 classifier, as a checkpoint has it."""
        return {"fc.weight": self.fc_weight, "fc.bias": self.fc_bias}

    @property
    def known(self) -> dict:
        """What a later step must not contradict, or takes over; `preset`: whose defaults are for it."""
        facts = {name: self.facts[name] for name in FIXED_BY_CHECKPOINT + INHERITED if name in self.facts}
        preset = OWN
        if self.identity is not None:  # stage 2 made those that know of a stage 1, with these facts
            on_disk = "folder" if self.facts.get("image_size") else OWN
            preset = self.facts["dataset"] if self.facts["dataset"] in PRESETS else on_disk
        preset = self.facts.get("preset", preset)
        own = {"batch_size": self.facts.get("batch_size")} if preset in OWN_DATASETS else {}
        own |= {"path": usual_path(self.facts["class_counts"])} if preset == OWN else {}
        return facts | own | {"preset": preset}

    def check_unchanged(self) -> None:
        """Raise a UserError where the file, which is mapped, is not what it was when it was read."""
        if _status(self.path) == self.status:
            return
        with suppress(UserError):
            again = read_pack(self.path)
            if again.digest == self.digest:  # touched, or replaced by itself
                object.__setattr__(self, "status", again.status)
                return
        raise UserError(f"{self.path} was changed while it was in use: nothing more is written, run it again")


def _status(path: Path) -> tuple:
    """What tells a file from others without reading it; nothing of one that is gone."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return ()


def write_pack(path: Path, pack: Pack) -> str:
    """Check, then write atomically, labels as int32. Returns the digest.

    Raises UserError, see `check`; or the file cannot be written, and an older one is then untouched.
    """
    check(replace(pack, path=None))
    facts = json_text(pack.facts)
    tensors = {name: getattr(pack, name) for name in _LAYOUT if getattr(pack, name) is not None}
    tensors = {
        name: (value.int() if value.dtype == torch.int64 else value).detach().cpu().contiguous()
        for name, value in tensors.items()
    }
    digest = content_digest({"facts": facts} | tensors)
    header = {"format": PACK_FORMAT, "version": str(VERSION), "facts": facts, "digest": digest}

    def write(handle: BinaryIO) -> None:
        try:
            save_file({name: value.numpy() for name, value in tensors.items()}, handle.name, header)
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from error

    def check_written(written: Path) -> None:
        found, stored = _open(written)
        if content_digest({"facts": found["facts"]} | stored) != digest:
            raise UserError(f"{path} does not read back as it was written: look after the disk")

    write_atomically(path, write, check_written)
    return digest


def read_pack(path: Path | str) -> Pack:
    """Read a pack; its features stay on disk and are mapped into memory (see `Pack.check_unchanged`).

    Raises UserError: missing, truncated, altered, of a later version, not a pack, or see `check`.
    """
    path = Path(path)
    require_file(path)
    status = _status(path)
    try:
        header, tensors = _open(path)
        if content_digest({"facts": header["facts"]} | tensors) != header["digest"]:
            raise UserError(f"{path} is damaged: its content does not match the digest inside; remake it")
        facts = json.loads(header["facts"])
        values = {name: tensors.get(name) for name in _LAYOUT}
        for name, value in values.items():
            if value is not None and value.dtype == torch.int32:
                values[name] = value.long()
        pack = Pack(**values, facts=facts, path=path, digest=header["digest"], status=status)
        check(pack)
    except UserError:
        raise
    except Exception as error:  # a broken file can raise nearly anything
        if is_out_of_memory(error):
            raise NoMemoryError(f"{path} cannot be read, memory has run out: {reason(error):.200}") from error
        raise UserError(f"{path} is damaged or not a feature pack: {reason(error):.200}") from error
    if len(pack.train) > 1:  # several processes once stored augmented views as plain ones
        pack.facts["train_views"] = "augmented"
    return pack


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's own entries and the mapped tensors of a pack of this version."""
    with open(path, "rb") as handle:
        if handle.read(4) == b"PK\x03\x04":
            raise UserError(f"{path} is a checkpoint (.pth) or another zip file, not a feature pack")
        try:
            name = str(path).encode().decode()
        except UnicodeEncodeError:  # safetensors takes UTF-8 alone
            name = f"/proc/self/fd/{handle.fileno()}"
            if not os.path.exists(name):
                raise UserError(f"{path} has a name that is no UTF-8: rename it") from None
        with safe_open(name, framework="pt") as file:
            header, names = file.metadata() or {}, list(file.keys())
            if header.get("format") != PACK_FORMAT:
                raise UserError(f"{path} is a safetensors file, but not a feature pack of this project")
            version = int(header["version"])
            missing = [name for name in _LAYOUT if name not in _OPTIONAL.union(names)]
            for wrong, problem in (
                (version != VERSION, f"has format version {version}, this code reads {VERSION}"),
                (len(header["facts"]) > _MOST_FACTS, f"has facts of more than {_MOST_FACTS >> 20} MiB"),
                (missing, f"has no tensor {' and no '.join(missing)}; remake it"),
            ):
                if wrong:
                    raise UserError(f"{path} {problem}")
            return header, {name: file.get_tensor(name) for name in names}


def check(pack: Pack) -> None:
    """Raise a UserError, with the file's name where there is one, on the first thing that is wrong."""
    for problem in _problems(pack):
        raise UserError(f"{pack.path}: {problem}" if pack.path else problem)


def _problems(pack: Pack) -> Iterator[str]:
    """What is wrong; each step takes for granted that those before it found nothing."""
    if not isinstance(pack.facts, dict):
        yield f"the facts are a {type(pack.facts).__name__}, not a dict"
    yield from problems(pack.facts, PackFacts)
    yield from _problems_of_shapes(pack)
    yield from _problems_of_labels(pack)
    for name in ("fc_weight", "fc_bias", "train", "plain", "test", "val"):
        size = 0.0 if getattr(pack, name) is None else _largest(getattr(pack, name))
        if not math.isfinite(size):
            yield f"{name} holds values that are not finite"
        if not name.startswith("fc") and size and not _SMALLEST <= size <= _LARGEST:
            yield f"{name} reaches {size:.0e}, whose square float32 cannot hold: scale the features"


def _problems_of_shapes(pack: Pack) -> Iterator[str]:
    sizes = {"classes": ("num_class", pack.facts["num_class"])}  # of an axis, and whose
    for name, (axes, dtypes) in _LAYOUT.items():
        tensor = getattr(pack, name)
        if tensor is None:
            if name not in _OPTIONAL:
                yield f"{name} is missing"
            continue
        found, *kinds = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *dtypes))
        found = f"{found} {list(tensor.shape)}"
        if tensor.ndim != len(axes) or tensor.dtype not in dtypes:
            yield f"{name} is {found}, expected {' or '.join(kinds)} [{', '.join(axes)}]"
        if 0 in tensor.shape:
            yield f"{name} is empty: {found}"
        for axis, size in zip(axes, tensor.shape, strict=True):
            other, known = sizes.setdefault(axis, (name, size))
            if size != known and axis != "views":
                yield f"{name} has {size} {axis}, {known} are those of {other}"
    if (pack.test is None) != (pack.test_labels is None) or (pack.test is None and pack.val is None):
        yield "test and test_labels are missing or one of them: without both, val and val_labels are needed"
    source = pack.facts["val_source"]
    if (pack.val is None, pack.val_labels is None) != (source == "none",) * 2:
        yield f"val_source is {source!r}: val and val_labels go with every source but 'none'"


def _problems_of_labels(pack: Pack) -> Iterator[str]:
    num_class, counts = pack.facts["num_class"], pack.facts["class_counts"]
    for name in ("train_labels", "test_labels", "val_labels"):
        labels = getattr(pack, name)
        wrong = [] if labels is None else labels[(labels < 0) | (labels >= num_class)].tolist()
        if wrong:
            yield f"{name} holds {wrong[0]}: labels must be 0 to {num_class - 1}"
    found = torch.bincount(pack.train_labels, minlength=num_class).tolist()
    held_out = pack.facts["val_source"] == "heldout"
    if 0 in found:
        yield f"class {found.index(0)} has no training image: labels count from 0, every class needs one"
    for label, (count, stated) in enumerate(zip(found, counts, strict=True)):
        if count > stated or (count < stated and not held_out):
            yield f"class {label} has {count} training images, class_counts says {stated}"


def _largest(tensor: Tensor) -> float:
    """Of the magnitudes; a chunk at a time: mapped features need not fit in memory."""
    chunks = tensor.detach().flatten().split(_CHUNK)
    return float(np.max([abs(float(end)) for chunk in chunks for end in chunk.aminmax()]))


def narrowed(features: np.ndarray, dtype: type, what: str, advice: str) -> np.ndarray:
    """Floats [..., D] as `dtype`, mapped still where they have it.

    Raises UserError, of `what` and with the `advice`, where a value is not finite, or not kept to a
    thousandth of the largest one of its image.
    """
    with np.errstate(over="ignore", under="ignore"):
        kept = features.astype(dtype, copy=False)
    shape = (1,) * (3 - features.ndim) + features.shape
    rows = max(1, _CHUNK // max(shape[2], 1))
    for whole, part in zip(features.reshape(shape), kept.reshape(shape), strict=True):
        for start in range(0, len(whole), rows):
            exact, stored = (array[start : start + rows].astype(np.float64) for array in (whole, part))
            largest = np.abs(exact).max(axis=1, initial=0)
            if not np.isfinite(largest).all():
                raise UserError(f"{what} holds values that are not finite")
            if not np.isfinite(stored).all():
                raise UserError(f"{what} holds values beyond {np.finfo(dtype).max:g}: {advice}")
            if (np.abs(exact - stored).max(axis=1, initial=0) > _KEPT * largest).any():
                name = np.dtype(dtype).name
                raise UserError(f"{what} holds features too small for {name}, it would lose them: {advice}")
    return kept
