"""What tells whether plain data and tensors are what they were: a digest, and a comparison to the bit."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from datasets.types import FileSet, ImageSet
from utils.files import open_regular

_PLAIN = (str, int, float, bool, type(None))
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def content_digest(content: object) -> str:
    """Hex sha256 over names, plain values and tensor bytes of nested containers, in any order of keys."""
    state = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            state.update(f"<{value.dtype}{tuple(value.shape)}>".encode())
            state.update(value.flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            state.update(f"<dict {len(value)}>".encode())
            for key in sorted(value, key=str):
                state.update(json.dumps(str(key)).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            state.update(f"<list {len(value)}>".encode())
            for item in value:
                add(item)
        elif type(value) in _PLAIN:
            state.update(json.dumps(value).encode())
        else:
            raise TypeError(f"a checkpoint holds tensors and plain data, not a {type(value).__name__}")

    add(content)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a small file's bytes."""
    with open_regular(path) as handle:
        return hashlib.sha256(handle.read()).hexdigest()


def compared(facts: dict, images: ImageSet | FileSet) -> tuple[str | None, str]:
    """How training images differ from those of a checkpoint's facts; what of their files was compared.

    None: in nothing that was compared. Other times of change alone are those of a copy.
    """
    if facts.get("train_digest") != images.digest():
        return "the images, their labels or their order are others", ""
    before, now = facts.get("train_files"), images.contents
    if now is None:
        return None, ""
    if before is None:
        return None, "by their names alone, it was made before more was noted"
    same_sample = before["bytes"].shape == now["bytes"].shape
    count = int((before["bytes"] != now["bytes"]).sum()) if same_sample else 0
    looked = f"by all names and sizes and by bytes of {len(now['bytes']):,} of {len(images):,} files"
    if whole := "all" in before and "all" in now:
        looked = "by all names and all bytes"
    if before["times"] != now["times"] and not whole:
        looked += "; their times of change are others, as those of a copy are"
    if before["sizes"] != now["sizes"] or count or (whole and before["all"] != now["all"]):
        what = f"{count:,} of {len(now['bytes']):,} that were looked at" if count else "some"
        return f"files were replaced under their names, {what}", looked
    return None, looked


def changes(value: object) -> list[int]:
    """How often each tensor in nested containers was changed in place, by torch's own count."""
    if isinstance(value, Tensor):
        return [0 if value.is_inference() else value._version]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [version for one in inner for version in changes(one)]


def same_bits(ours: object, found: object) -> bool:
    """Are two contents the same to the bit? As their digests say, at the speed of memory."""
    if isinstance(ours, dict):
        fits = isinstance(found, dict) and list(ours) == list(found)
        return fits and all(same_bits(value, found[key]) for key, value in ours.items())
    if isinstance(ours, list | tuple):
        fits = type(found) is type(ours) and len(ours) == len(found)
        return fits and all(map(same_bits, ours, found))
    if isinstance(ours, Tensor) and isinstance(found, Tensor) and ours.element_size() in _BITS:
        bits = _BITS[ours.element_size()]  # as numbers 0 equals -0, and NaN not even itself
        return ours.dtype == found.dtype and torch.equal(ours.detach().cpu().view(bits), found.view(bits))
    return content_digest(ours) == content_digest(found)
