"""An image file becomes RGB pixels, or an error that names it; nothing is repaired or replaced.

What a file is, is read off its first bytes, never off its name. Common JPEG and PNG files are decoded by
torchvision; the rest (CMYK, palettes, 16 bits, other formats), and whatever torchvision refuses, by Pillow,
whose `convert("RGB")` is the reference for every kind: alpha is dropped, 16-bit grey is cut off at 255, the
EXIF orientation ignored.

A JPEG has no checksum: damage inside it that leaves its end in place is decoded as Pillow does, unnoticed.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from utils.errors import UserError
from utils.files import open_regular

MAX_PIXELS = 89_478_485  # more take over 256 MiB as RGB: Pillow's own limit for a warning
MAX_BYTES = 1 << 30
# for Pillow; some others run programs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FORMATS += ("AVIF",) * ("avif" in features.get_supported_modules())  # as it was built
ENDINGS = tuple(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)
NOT_READ = f"by its name it is none of {', '.join(FORMATS)}: convert it, or name it as what it is"

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header
_REMEDY = "get the file again, or leave it out of the data set"


class Header(NamedTuple):
    """What the first bytes declare; `decode` is None where Pillow has to decode."""

    width: int
    height: int
    decode: Callable[[Tensor, ImageReadMode], Tensor] | None


def read_image(path: str) -> Tensor:
    """The pixels of an image file, RGB uint8 [3, H, W] (in memory channels last).

    Raises:
        UserError: see `read_bytes` and `decode_image`.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str) -> bytearray:
    """What a file holds.

    Raises:
        UserError: it is missing, a folder, a pipe or a device, larger than MAX_BYTES, or may not be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UserError(f"{shown(path)} has {size:,} bytes, more than any image: {_REMEDY}")
            return bytearray(file.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{shown(path)} does not exist: check --data_dir and the list that names it"
        ) from error
    except IsADirectoryError as error:
        raise UserError(f"{shown(path)} is a folder, not an image: check the list that names it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(path)} cannot be read ({reason}): check its name and permissions") from error


def decode_image(data: bytearray, path: str) -> Tensor:
    """The pixels of an image file's bytes, RGB uint8 [3, H, W] (in memory channels last).

    Raises:
        UserError: the bytes are none, no image, cut off or broken, or declare more than MAX_PIXELS pixels.
    """
    if not data:
        raise UserError(f"{shown(path)} is empty: {_REMEDY}")
    header = _read_header(data, path)
    with warnings.catch_warnings():
        # torchvision's that its decoders will move to another package, Pillow's about metadata
        warnings.simplefilter("ignore")
        if header is not None and header.decode is not None:
            try:
                return header.decode(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # the last word is Pillow's
        return _decode_with_pillow(data, path)


def is_image(path: str) -> bool:
    """Is it an image by its ending, or where its name has none, by its header?"""
    name = os.path.basename(path)
    if "." in name:
        return name.lower().endswith(ENDINGS)
    try:
        with open_regular(path) as file:
            return _mode(file) is not None
    except Exception:  # a file that is something else makes Pillow raise almost anything
        return False


def is_deep(data: bytearray) -> bool:
    """Has the image, which can be decoded, grey values beyond 8 bits: what is above 255 comes out white?"""
    return not data.startswith(_JPEG) and _mode(io.BytesIO(data)).startswith(("I", "F"))


def _mode(file: BinaryIO) -> str:
    """Pillow's word for the kind of pixels, of which none is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            return image.mode


def shown(path: str) -> str:
    """A path for a message of one line: escaped where it holds line breaks or bytes that are no text."""
    return path if path.isprintable() else repr(path)


def _read_header(data: bytearray, path: str) -> Header | None:
    """None: neither JPEG nor PNG, or one whose header only Pillow may understand."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) > 32:
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        _check_size(path, width, height)
        _check_png(data, path)
        return Header(width, height, decode_png if depth == 8 and colour != 3 else None)
    frame = _find_frame(data) if data.startswith(_JPEG) else None
    if frame is None:
        return None
    height, width, components = struct.unpack_from(">HHB", data, frame + 5)
    _check_size(path, width, height)
    if data.rfind(b"\xff\xd9") < frame:
        raise UserError(f"{shown(path)} is cut off, its end is missing: {_REMEDY}")
    return Header(width, height, decode_jpeg if components in (1, 3) else None)


def _find_frame(data: bytearray) -> int | None:
    """Where a JPEG's frame header starts: its size and components."""
    at = 2
    while at + 10 < len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAMES:
            return at
        # 0xFF may be repeated before a marker
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{shown(path)} declares {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read: "
            "make it smaller, or leave it out of the data set"
        )


def _check_png(data: bytearray, path: str) -> None:
    """Refuse a PNG that does not reach its end chunk, or with a wrong checksum in a chunk that matters."""
    at, view = len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        matters = not kind[0] & 0x20
        if matters and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise UserError(f"{shown(path)} is broken, a checksum is wrong: {_REMEDY}")
        if kind == b"IEND":
            return
        at = end
    raise UserError(f"{shown(path)} is cut off, its end is missing: {_REMEDY}")


def _decode_with_pillow(data: bytearray, path: str) -> Tensor:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(path, *image.size)
            pixels = np.array(image.convert("RGB"))
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{shown(path)} is no image, or none of {', '.join(FORMATS)}, or its header is broken: {_REMEDY}"
        ) from error
    except Exception as error:  # a broken file makes Pillow raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(path)} cannot be decoded ({reason}): {_REMEDY}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
