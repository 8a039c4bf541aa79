"""Reading torch's files without trust: no code, no more memory than the file is long, no endless walk.

What a file declares is looked at before torch reads it. The limits: MAX_PICKLE_BYTES of plain data,
MAX_VALUES values up to MAX_DEPTH deep, tensors no larger than what the file holds, nothing compressed.
"""

import io
import mmap
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import NoMemoryError, UserError, is_out_of_memory
from utils.files import require_file

MAX_PICKLE_BYTES = 16 << 20
MAX_VALUES, MAX_DEPTH = 2_000_000, 32
MAX_RECORDS = 200_000
MAX_SHARED = 8  # times that the bytes of a file may be named by tensors: tied weights share theirs
_GLOBALS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ_EX")
_ADMITTED = {
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Bool")),
    *(f"torch {kind}Storage" for kind in ("Byte", "Char", "Short", "Int", "Long")),
    *(f"torch {kind}" for kind in ("float16", "float32", "float64", "bfloat16", "bool", "Size", "device")),
    *(f"torch {kind}" for kind in ("uint8", "int8", "int16", "int32", "int64")),
    *(f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
    *("torch.nn.parameter Parameter", "_codecs encode"),
    *("collections OrderedDict", "collections Counter", "builtins set", "__builtin__ set"),
    *("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar"),  # as _Passed
}


class _RefusedError(Exception):
    """Why a file is not loaded."""


class _Passed:
    """In the place of a NumPy scalar or type, which figures beside weights are: nobody reads them."""

    def __init__(self, *said: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_plain(path: Path, mapped: bool = False) -> object:
    """What torch.save wrote: tensors on the CPU, in plain containers. `mapped`: tensors stay in the file.

    Raises:
        UserError: no readable file, damaged, compressed, holds Python objects, or declares too much.
    """
    size = require_file(path).st_size
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path, size)
        else:
            mapped = False
            _check_stream(path, size)
        content = _load(path, mapped)
        _check_values(content, size)
    except _RefusedError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a broken file can raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if is_out_of_memory(error):
            raise NoMemoryError(f"{path} cannot be read, memory has run out: {reason:.200}") from error
        raise UserError(f"{path} is damaged or not a checkpoint: {reason:.200}") from error
    return content


def _load(path: Path, mapped: bool) -> object:
    stubs = [(_Passed, name.replace(" ", ".")) for name in _ADMITTED if name.startswith("numpy")]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stubs):
        warnings.simplefilter("ignore")  # on unusual pickle protocols: nothing that a user could act on
        try:
            str(path).encode()
        except UnicodeEncodeError:  # torch itself opens names in UTF-8 alone
            with open(path, "rb") as handle:
                return torch.load(handle, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_zip(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        if len(records) > MAX_RECORDS:
            raise _RefusedError(f"has {len(records)} records, more than {MAX_RECORDS}: not a checkpoint")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _RefusedError("is a compressed zip file, not a checkpoint: torch.save compresses nothing")
        declared = sum(record.file_size for record in records)
        if declared > size:
            raise _RefusedError(f"is damaged: it declares {declared} bytes in a file of {size}")
        for record in records:
            if record.filename.endswith("data.pkl"):
                if record.file_size > MAX_PICKLE_BYTES:
                    raise _RefusedError(_too_much(record.file_size))
                _check_pickle(io.BytesIO(file.read(record)))


def _check_stream(path: Path, size: int) -> None:
    """Torch's format of before 2020: five pickles one behind the other, then the numbers."""
    if size == 0:
        raise _RefusedError("is empty: not a checkpoint")
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if view[:1] != b"\x80":
            raise _RefusedError("is damaged or not a checkpoint")
        for _ in range(5):
            if view.tell() < size and view[view.tell()] == 0x80:
                _check_pickle(view)


def _check_pickle(source: object) -> None:
    """Every global that the pickle at the place of `source` names must be known and harmless."""
    start = source.tell()
    for code, argument, _ in pickletools.genops(source):
        if code.name in _GLOBALS and argument not in _ADMITTED:
            what = f": it asks for {argument!r:.80}" if argument else ""
            raise _RefusedError(
                f"holds Python objects beside weights and is not loaded, since that could run code{what}; "
                "save model.state_dict() instead"
            )
        if source.tell() - start > MAX_PICKLE_BYTES:
            raise _RefusedError(_too_much(source.tell() - start))


def _too_much(found: int) -> str:
    return f"holds {found} bytes of plain data beside its weights, more than {MAX_PICKLE_BYTES}"


def _check_values(content: object, size: int) -> None:
    total = 0
    for value in _walk(content):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise _RefusedError(
                "holds a sparse, quantised or empty-handed tensor: save plain weights instead"
            )
        needed = value.numel() * value.element_size()
        total += needed
        if needed > value.untyped_storage().nbytes() or total > MAX_SHARED * size:
            raise _RefusedError(f"declares a tensor {list(value.shape)} larger than what the file holds")


def _walk(content: object) -> Iterator[Tensor]:
    """The tensors in nested containers. Raises: _RefusedError: too many values, or too deep (a circle is)."""
    pending, seen = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set):
            if depth == MAX_DEPTH or seen + len(value) + len(pending) > MAX_VALUES:
                raise _RefusedError(f"nests its data over {MAX_DEPTH} deep or holds over {MAX_VALUES} values")
            pending += [
                (entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)
            ]
