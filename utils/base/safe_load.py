"""Reading torch's files without trust: no code, no more memory than the file is long, no endless walk.

A file is opened once and read by this module alone; torch only holds the numbers. The limits:
MAX_PICKLE_BYTES of plain data, MAX_VALUES values up to MAX_DEPTH deep, tensors no larger than what the file
holds, nothing compressed, and nothing that another reader could take for another file.
"""

import io
import math
import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from utils.base import plain_pickle
from utils.base.errors import NoMemoryError, UserError, is_out_of_memory, reason
from utils.base.files import open_regular, require_file

MAX_PICKLE_BYTES = 16 << 20
MAX_DIRECTORY_BYTES = 8 << 20  # of names and places of records in a zip file
MAX_TRAILER_BYTES = 24  # of sizes and a checksum behind a record
MAX_VALUES, MAX_DEPTH = 2_000_000, 32
MAX_SHARED = 8  # times that the bytes of a file may be named by tensors: tied weights share theirs
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # the two numbers with which the format of before 2020 begins
_KINDS = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8},
    **{"Short": torch.int16, "Int": torch.int32, "Long": torch.int64},
}
_STORAGES = {f"torch {kind}Storage": dtype for kind, dtype in _KINDS.items()}


class _RefusedError(Exception):
    """Why a file is not loaded: what follows its name."""


def load_plain(path: Path, mapped: bool = False) -> object:
    """What torch.save wrote: tensors on the CPU, in plain containers. `mapped`: tensors stay in the file."""
    require_file(path)
    try:
        with open_regular(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            start = handle.read(4)
            handle.seek(0)
            if start == b"PK\x03\x04":
                content = _read_zip(handle, size, mapped)
            elif start[:1] == b"\x80":
                content = _read_stream(handle, size)
            else:
                raise _RefusedError(f"is {'damaged or' if start else 'empty:'} not a checkpoint")
        _check_values(content, size)
    except _RefusedError as error:
        raise UserError(f"{path} {error}") from error
    except plain_pickle.UnwantedError as error:
        problem = f"holds Python objects and may run code: {error}; save model.state_dict() instead"
        raise UserError(f"{path} {problem}") from error
    except Exception as error:  # a broken file can raise nearly anything
        if is_out_of_memory(error):
            raise NoMemoryError(f"{path} cannot be read, memory has run out: {reason(error):.200}") from error
        raise UserError(f"{path} is damaged or not a checkpoint: {reason(error):.200}") from error
    return content


# ---- what pickles say of weights


class _Storages(dict[str, Tensor]):
    """The numbers that tensors share, by key: `fetch(key, dtype, count)` gives each [count], once."""

    def __init__(self, fetch: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__()
        self._fetch = fetch

    def find(self, said: object) -> Tensor:
        """The numbers of which a pickle says so. Raises ValueError: not as torch writes it."""
        kind, name, key, _, count, *part = said
        known = kind == "storage" and isinstance(name, plain_pickle.Name) and name in _STORAGES
        if not (known and isinstance(key, str) and plain_pickle.are_lengths((count,))) or any(part):
            raise ValueError("a storage is described as torch.save never does with plain weights")
        if key not in self:
            self[key] = self._fetch(key, _STORAGES[name], count)
        if (self[key].dtype, len(self[key])) != (_STORAGES[name], count):
            raise ValueError(f"storage {key!r:.40} is described twice and differently")
        return self[key]


def _tensor(
    numbers: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> Tensor:
    lengths = all(map(plain_pickle.are_lengths, ((offset,), size, stride)))
    if metadata or not (isinstance(numbers, Tensor) and lengths and len(size) == len(stride)):
        raise ValueError("a tensor is described as torch.save never does with plain weights")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # torch would let the numbers grow to where a tensor ends
    if count and max(count - 1, last) >= len(numbers):
        raise _RefusedError(f"declares a tensor {list(size)!s:.200} larger than what the file holds")
    place, all_numbers = offset if count else 0, numbers.untyped_storage()
    return torch.empty(0, dtype=numbers.dtype).set_(all_numbers, place, size, stride)


_MAKERS = {
    **plain_pickle.PLAIN,
    **dict.fromkeys((*_STORAGES, *(str(dtype).replace(".", " ") for dtype in _KINDS.values()))),
    "torch Size": lambda lengths=(): lengths,
    "torch device": lambda kind, index=None: kind,
    **dict.fromkeys(("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"), _tensor),
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch.nn.parameter Parameter": lambda data, *_: data,
}


def _check_values(content: object, size: int) -> None:
    """Raise _RefusedError: too many values, too deep (a circle is), or tensors beyond the file's `size`."""
    pending, seen, total = [(content, 0)], 0, 0
    while pending:
        value, depth = pending.pop()
        seen += 1 + len(value) // 64 if isinstance(value, str | bytes | bytearray) else 1  # a text may recur
        inner = value if isinstance(value, dict | list | tuple | set) else ()
        if depth > MAX_DEPTH or seen + len(inner) + len(pending) > MAX_VALUES:
            raise _RefusedError(f"nests its data over {MAX_DEPTH} deep or holds over {MAX_VALUES} values")
        pending += [(one, depth + 1) for one in (inner.values() if isinstance(inner, dict) else inner)]
        total += value.nbytes if isinstance(value, Tensor) else 0
        if total > MAX_SHARED * size:
            raise _RefusedError(f"declares tensors of {MAX_SHARED} times what the file holds")


def _read_numbers(handle: BinaryIO, numbers: Tensor) -> Tensor:
    if handle.readinto(memoryview(numbers.view(torch.uint8).numpy())) != numbers.nbytes:
        raise ValueError("it ends early")
    return numbers


def _check_byte_order(order: object) -> None:
    if order != sys.byteorder:
        raise _RefusedError("was written on a machine of another byte order: save it again on one like this")


# ---- the zip files of today


def _read_zip(handle: BinaryIO, size: int, mapped: bool) -> object:
    table = _directory(handle, size)
    with zipfile.ZipFile(handle) as file:
        places = _places(handle, file, *table)
        prefix = next(iter(places), "").partition("/")[0]
        start, length = places.get(f"{prefix}/data.pkl", (0, 0))
        if not start:
            raise _RefusedError("is a zip file without a checkpoint in it")
        if length > MAX_PICKLE_BYTES:
            raise _RefusedError(f"holds {length} bytes of plain data, more than {MAX_PICKLE_BYTES}")
        if f"{prefix}/byteorder" in places:
            _check_byte_order(file.read(f"{prefix}/byteorder").decode())
        pickled = file.read(f"{prefix}/data.pkl")
    buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None

    def fetch(key: str, dtype: torch.dtype, count: int) -> Tensor:
        start, length = places[f"{prefix}/data/{key}"]
        if length != count * dtype.itemsize:
            raise _RefusedError(f"is damaged: storage {key!r:.40} has not the {count} numbers declared")
        if buffer is None or not count:
            handle.seek(start)
            return _read_numbers(handle, torch.empty(count, dtype=dtype))
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start)

    return plain_pickle.load(io.BytesIO(pickled), length, _MAKERS, _Storages(fetch).find)


def _places(handle: BinaryIO, file: zipfile.ZipFile, start: int, count: int) -> dict[str, tuple[int, int]]:
    """Where the bytes of each of `count` records begin and how many they are, by name.

    The records lie one behind the other, nothing between them but their heads, up to their table at `start`.
    """
    records = {record.filename: record for record in file.infolist()}
    different = {name.lower() for name in records}
    if file.start_dir != start or not len(different) == len(file.infolist()) == count:
        raise _RefusedError("holds two tables or two records of one name: it can be read in two ways")
    if any(name.endswith("/constants.pkl") for name in records):
        raise _RefusedError("is a TorchScript program: save its state_dict() by torch.save")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        raise _RefusedError("is a compressed zip file, not a checkpoint: torch.save compresses nothing")
    places, end = {}, 0
    for name, record in sorted(records.items(), key=lambda item: item[1].header_offset):
        handle.seek(record.header_offset)
        mark, *lengths = struct.unpack("<4s22xHH", handle.read(30))  # of its name and of more about it
        if mark != b"PK\x03\x04" or not 0 <= record.header_offset - end <= MAX_TRAILER_BYTES:
            raise _RefusedError(f"is damaged: record {name!r:.80} is not where it should be")
        places[name] = record.header_offset + 30 + sum(lengths), record.file_size
        end = sum(places[name])
    if not 0 <= start - end <= MAX_TRAILER_BYTES:
        raise _RefusedError("is damaged: bytes that belong to no record lie before its table of records")
    return places


def _directory(handle: BinaryIO, size: int) -> tuple[int, int]:
    """Where the one table of a zip file begins, which ends where the file does; how many records it has."""
    handle.seek(max(0, size - 98))
    tail = handle.read(98).rjust(98, b"\0")
    signature, *_, count, length, start, comment = struct.unpack("<4s4H2LH", tail[76:])
    end, stated = size - 22, (count, length, start)
    if tail[56:60] == b"PK\x06\x07":  # as torch writes it: with numbers of 64 bits before those of 32
        end, (mark, *_, count, length, start) = size - 98, struct.unpack("<4sQ2H2L4Q", tail[:56])
        pairs = zip(stated, (count, length, start), (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        fits = all(small in (large, limit) for small, large, limit in pairs)
        if mark != b"PK\x06\x06" or struct.unpack("<Q", tail[64:72]) != (end,) or not fits:
            raise _RefusedError("is damaged, or built so that it can be read in two ways")
    if signature != b"PK\x05\x06" or comment or start + length != end:
        raise _RefusedError("is damaged or not a checkpoint: a zip file that was cut off or continued")
    if length > MAX_DIRECTORY_BYTES:
        raise _RefusedError(f"has {count} records: not a checkpoint")
    return start, count


# ---- the streams of before 2020


def _read_stream(handle: BinaryIO, size: int) -> object:
    """Five pickles one behind the other, then the numbers, then nothing."""
    left = size

    def reserve(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        left -= count * dtype.itemsize
        if left < 0:
            raise _RefusedError(f"declares a tensor [{count}] larger than what the file holds")
        return torch.empty(count, dtype=dtype)

    def load(*how: object) -> object:
        return plain_pickle.load(handle, min(size, handle.tell() + MAX_PICKLE_BYTES), *how)

    if load() != _LEGACY[0] or load() != _LEGACY[1]:
        raise ValueError("a pickle that torch.save did not write")
    _check_byte_order("little" if load()["little_endian"] else "big")
    storages = _Storages(reserve)
    content, keys = load(_MAKERS, storages.find), load()
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its numbers are not those that its tensors need")
    for key in keys:
        if handle.read(8) != struct.pack("<q", len(storages[key])):
            raise ValueError(f"storage {key!r:.40} has not the length declared")
        _read_numbers(handle, storages[key])
    if more := size - handle.tell():
        raise _RefusedError(f"goes on for {more} bytes behind its weights: save it again where you trust it")
    return content
