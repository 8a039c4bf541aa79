"""An image file becomes RGB pixels, or an error that names it; nothing is repaired or replaced.

What a file is, is read off its first bytes, never off its name. Common JPEG and PNG files are decoded by
torchvision; the rest (CMYK, palettes, 16 bits, other formats), and whatever torchvision refuses, by Pillow,
whose `convert("RGB")` is the reference for every kind: alpha is dropped, 16-bit grey is cut off at 255, the
EXIF orientation ignored.

A JPEG has no checksum: damage inside it that leaves its end in place is decoded as Pillow does, unnoticed.
"""

import errno
import io
import os
import re
import struct
import warnings
import zlib
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from utils.base.errors import UserError, reason
from utils.base.files import open_regular

MAX_PIXELS = 89_478_485  # more take over 256 MiB as RGB: Pillow's own limit for a warning
MAX_BYTES = 1 << 30
# A small file can make a decoder work for minutes: each scan of a JPEG may touch every pixel, and texts of a
# PNG are unpacked. Encoders write about 10 scans, segments and chunks of 8 kB or more, and a few texts.
MAX_SCANS, MAX_SCANNED = 200, 20 * MAX_PIXELS
MAX_SEGMENTS, MAX_TEXTS, MAX_HEADER_GAP = 250_000, 32, 1 << 16
MAX_PLAIN_PPM = 1 << 24  # bytes of numbers as text, which Pillow reads in Python
# for Pillow; some others run programs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FORMATS += ("AVIF",) * ("avif" in features.get_supported_modules())  # as it was built
ENDINGS = tuple(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)
NOT_READ = f"by its name it is none of {', '.join(FORMATS)}: convert it, or name it as what it is"

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header
# of a segment: not a stuffed or filling byte, no restart
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_SCAN, _END, _NO_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
_PALETTE = 3  # PNG's word for the kind of colours
_TEXTS = (b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that may be packed
_TILE_SIZE, _STRIPS, _TILES = (322, 323), 273, 324  # tags of a TIFF
_CUT_OFF, _TOO_MUCH = "is cut off, its end is missing", "more than any image needs"


def read_image(path: str) -> Tensor:
    """The pixels of an image file: `decode_image` of its `read_bytes`, with their errors."""
    return decode_image(read_bytes(path), path)


def read_bytes(path: str) -> bytearray:
    """What a file holds."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise _refusal(path, f"has {size:,} bytes, more than any image")
            return bytearray(file.read())
    except (OSError, ValueError) as error:
        problem, remedy = f"cannot be read ({reason(error)})", "check its name and permissions"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            problem, remedy = "does not exist", "check its name, and the folder or list that names it"
        elif getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit (ulimit -n), or try --workers 0"
        raise UserError(f"{path} {problem}: {remedy}") from error


def decode_image(data: bytearray, path: str) -> Tensor:
    """The pixels of an image file's bytes, RGB uint8 [3, H, W] (in memory channels last).

    Raises UserError: no image, cut off or broken, more than MAX_PIXELS, or more work than these take.
    """
    if not data:
        raise _refusal(path, "is empty")
    decode = _fast_decoder(data, path)
    with warnings.catch_warnings():
        # torchvision's that its decoders will move to another package, Pillow's about metadata
        warnings.simplefilter("ignore")
        if decode is not None:
            # here, since it takes seconds, and not all runs have images
            from torchvision import io as fast

            values = torch.frombuffer(data, dtype=torch.uint8)
            with suppress(RuntimeError):  # the last word is Pillow's
                return getattr(fast, decode)(values, fast.ImageReadMode.RGB)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(path, *image.size)
                if image.format == "TIFF":
                    _check_tiff(image, data, path)
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except UserError:
            raise
        except Exception as error:  # a broken file makes Pillow raise almost anything
            problem = f"cannot be decoded ({reason(error)})"
            if isinstance(error, UnidentifiedImageError):
                problem = f"is no image, or none of {', '.join(FORMATS)}, or its header is broken"
            raise _refusal(path, problem) from error


def is_image(path: str) -> bool:
    """Is it an image by its ending, or where its name has none, by its header?"""
    name = os.path.basename(path)
    if "." in name:
        return name.lower().endswith(ENDINGS)
    with suppress(OSError, ValueError), open_regular(path) as file:
        return bool(_mode(file))
    return False


def is_deep(data: bytearray) -> bool:
    """Has the image, which can be decoded, grey values beyond 8 bits: what is above 255 comes out white?"""
    return not data.startswith(_JPEG) and _mode(io.BytesIO(data)).startswith(("I", "F"))


def _mode(file: BinaryIO) -> str:
    """Pillow's word for the kind of pixels, of which none is decoded; empty where it refuses the file."""
    with suppress(Exception), warnings.catch_warnings():  # Pillow may raise almost anything
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            return image.mode
    return ""


def _fast_decoder(data: bytearray, path: str) -> str | None:
    """The name of torchvision's decoder of a whole, common JPEG or PNG; None: Pillow has to decode."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) > 32:
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        _check_size(path, width, height)
        _check_png(data, path)
        return "decode_png" if depth == 8 and colour != _PALETTE else None
    if data.startswith(_JPEG):
        frame, scans = _walk(data, path)
        if frame is None:
            return None
        height, width, components = struct.unpack_from(">HHB", data, frame + 5)
        _check_size(path, width, height, scans)
        if data.rfind(b"\xff\xd9") < frame:
            raise _refusal(path, _CUT_OFF)
        return "decode_jpeg" if components in (1, 3) else None
    if data[:1] == b"P" and data[1:2] in b"123" and len(data) > MAX_PLAIN_PPM:
        raise _refusal(path, f"has {len(data):,} bytes of numbers as text, {_TOO_MUCH}")
    return None


def _walk(data: bytearray, path: str) -> tuple[int | None, int]:
    """Where a JPEG's frame header starts, with its size and components, and how many scans follow."""
    frame, scans, at = None, 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        start = found.start() if found else len(data)
        if not scans and start - at > MAX_HEADER_GAP:  # decoders skip it byte by byte
            raise _refusal(path, f"has {start - at:,} bytes that belong to no segment, {_TOO_MUCH}")
        marker = data[start + 1] if found else _END
        if marker == _END:
            return frame, scans
        if frame is None and marker in _FRAMES and start + 10 <= len(data):
            frame = start
        scans += marker == _SCAN
        at = start + 2 + (0 if marker in _NO_LENGTH else int.from_bytes(data[start + 2 : start + 4]))
    raise _refusal(path, f"has more than {MAX_SEGMENTS:,} segments, {_TOO_MUCH}")


def _check_size(path: str, width: int, height: int, scans: int = 0) -> None:
    if width * height > MAX_PIXELS:
        declared = f"declares {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read"
        raise UserError(f"{path} {declared}: make it smaller, or leave it out of the data set")
    if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
        raise _refusal(path, f"has {scans:,} scans of {width} x {height} pixels, {_TOO_MUCH}")


def _refusal(path: str, problem: str) -> UserError:
    return UserError(f"{path} {problem}: get the file again, or leave it out of the data set")


def _check_png(data: bytearray, path: str) -> None:
    """Refuse a PNG that does not reach its end chunk, or with a wrong checksum in a chunk that matters."""
    at, view, chunks, texts = len(_PNG), memoryview(data), 0, 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks, texts = chunks + 1, texts + (kind in _TEXTS)
        if chunks > MAX_SEGMENTS or texts > MAX_TEXTS:
            raise _refusal(path, f"has {chunks:,} chunks, {texts} of them packed text, {_TOO_MUCH}")
        end = at + 12 + length
        if end > len(data):
            break
        matters = not kind[0] & 0x20
        if matters and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise _refusal(path, "is broken, a checksum is wrong")
        if kind == b"IEND":
            return
        at = end
    raise _refusal(path, _CUT_OFF)


def _check_tiff(image: Image.Image, data: bytearray, path: str) -> None:
    """A TIFF holds strips, or tiles of any size; each may be a JPEG of many scans."""
    tags = image.tag_v2
    _check_size(path, *(tags.get(tag, 1) for tag in _TILE_SIZE))
    if "jpeg" in image.info.get("compression", ""):
        pieces = len(set(tags.get(_STRIPS) or tags.get(_TILES) or [0]))
        _check_size(path, *image.size, scans=-(-data.count(b"\xff\xda") // pieces))
