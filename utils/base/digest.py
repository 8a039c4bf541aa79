"""What tells whether plain data and tensors are what they were: a digest, and a comparison to the bit."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from utils.base.files import open_regular

_PLAIN = (str, int, float, bool, type(None))
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def content_digest(content: object) -> str:
    """Hex sha256 over names, plain values and tensor bytes of nested containers, in any order of keys.

    It is made to see damage: numbers of a list follow each other, so [1, 23] and [12, 3] have the same one.
    """
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


def changes(value: object) -> list[int]:
    """How often each tensor in nested containers was changed in place, by torch's own count."""
    if isinstance(value, Tensor):
        return [0 if value.is_inference() else value._version]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [version for one in inner for version in changes(one)]


def same_bits(ours: object, found: object) -> bool:
    """Are two contents the same to the bit, in the same order? At the speed of memory, unlike digests."""
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
