"""Real pictures, and image files of every odd kind made of them: scikit-learn's two sample images."""

import functools
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets.types import FileSet, PathTable

PHOTO = (500, 375)  # width and height of most of ImageNet's images
ORIENTATION = 0x0112  # EXIF tag


@functools.cache
def photographs() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427


def picture(index: int = 0, width: int = 96, height: int = 72) -> Image.Image:
    """A crop of a photograph; another one for every index."""
    image = photographs()[index % 2]
    left = index * 37 % (image.width - width + 1)
    top = index * 23 % (image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The file of an image, in one of Pillow's formats."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(index: int = 0, width: int = 96, height: int = 72) -> bytes:
    return encoded(picture(index, width, height), "JPEG", quality=90)


def png(index: int = 0, width: int = 96, height: int = 72) -> bytes:
    return encoded(picture(index, width, height), "PNG")


def readable_files(index: int = 0) -> dict[str, bytes]:
    """Files that are images, by a name that says what is odd about them."""
    image = picture(index)
    grey, see_through, rotated = image.convert("L"), image.convert("RGBA"), Image.Exif()
    see_through.putalpha(grey)
    rotated[ORIENTATION] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 3)
    return {
        "plain.jpg": encoded(image, "JPEG", quality=90),
        "full_colour.jpg": encoded(image, "JPEG", quality=95, subsampling=0),
        "progressive.JPEG": encoded(image, "JPEG", progressive=True),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "exif_rotated.jpg": encoded(image, "JPEG", exif=rotated),
        "long_profile.jpg": encoded(image, "JPEG", icc_profile=bytes(70_000)),
        "two_pictures.jpg": encoded(image, "MPO", save_all=True, append_images=[picture(index + 1)]),
        "plain.png": encoded(image, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "rgba.png": encoded(see_through, "PNG"),
        "grey_alpha.png": encoded(see_through.convert("LA"), "PNG"),
        "transparent_colour.png": encoded(image, "PNG", transparency=image.getpixel((3, 3))),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "transparent_palette.png": encoded(image.convert("P"), "PNG", transparency=bytes(range(256))),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "sixteen_bit.png": encoded(deep, "PNG"),
        "plain.webp": encoded(image, "WEBP"),
        "plain.gif": encoded(image, "GIF"),
        "PLAIN.JFIF": encoded(image, "JPEG"),
        "plain.avif": encoded(image, "AVIF"),
        "no_ending": encoded(image, "JPEG"),
        "no_ending_gif": encoded(image, "GIF"),
        "plain.bmp": encoded(image, "BMP"),
        "plain.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "plain.ppm": encoded(image, "PPM"),
        "png_named.jpg": encoded(image, "PNG"),
        "jpeg_named.png": encoded(image, "JPEG"),
    }


def broken_files(index: int = 0) -> dict[str, tuple[bytes, str]]:
    """Files that are no whole images, by name, with a word of the message that each should get."""
    picture_, drawing = jpeg(index), png(index)
    progressive = encoded(picture(index), "JPEG", progressive=True)
    large, packed_text = bomb_jpeg(progressive, 9000, 9000), _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"n01440764_190.JPEG 0\n" * 40, "no image"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "no image"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        "cut.jpg": (picture_[: len(picture_) // 2], "cut off"),
        "cut_progressive.jpg": (progressive[: len(progressive) * 2 // 3], "cut off"),
        "zero_end.jpg": (picture_[: len(picture_) // 2].ljust(len(picture_), b"\0"), "cut off"),
        "start_only.jpg": (picture_[:4], "no image"),
        "cut.png": (drawing[: len(drawing) // 2], "cut off"),
        "no_end.png": (drawing[:-12], "cut off"),
        "flipped_bit.png": (flip_bit(drawing, len(drawing) // 2), "checksum"),
        "bomb.png": (bomb_png(50_000, 50_000), "50000 x 50000"),
        "bomb.jpg": (bomb_jpeg(picture_, 65_000, 65_000), "65000 x 65000"),
        "scans.jpg": (more_scans(progressive, 300), "310 scans of 96 x 72 pixels"),
        "large_scans.jpg": (more_scans(large, 15), "25 scans of 9000 x 9000 pixels"),
        "filling.jpg": (b"\xff\xd8" + b"\xff" * 10**6 + picture_[2:], "bytes that belong to no segment"),
        "segments.jpg": (picture_[:2] + b"\xff\xe0\0\2" * 250_000 + picture_[2:], "250,000 segments"),
        "texts.png": (drawing[:33] + packed_text * 33 + drawing[33:], "34 chunks, 33 of them packed text"),
        "chunks.png": (drawing[:33] + _chunk(b"tEXt", b"a\0") * 250_000 + drawing[33:], "250,001 chunks"),
        "tile.tif": (tiled_tiff(10_000, 10_000), "10000 x 10000"),
        "scans.tif": (encoded(picture(index), "TIFF", compression="jpeg") + b"\xff\xda" * 300, "301 scans"),
        "numbers.ppm": (b"P3\n3 3\n255\n" + b"1 " * 2**23, "bytes of numbers as text"),
    }


def more_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times more."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def tiled_tiff(width: int, height: int) -> bytes:
    """A grey TIFF of one pixel, in a tile of `width` x `height`."""
    tile = zlib.compress(bytes(99))
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1), (322, width), (323, height)]
    tags += [(324, 8), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(tile)) + tile
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def flip_bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def bomb_png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A small file that declares a huge image, its chunks in order and their checksums right."""
    return png_of(width, height, bytes(1 << 20), depth, colour)


def png_of(
    width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    """A PNG by hand: `rows` are its unpacked content."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header declares another size."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def write(folder: Path, name: str, content: bytes) -> str:
    """Write a file, with the folders it needs; its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def file_set(folder: Path, files: dict[str, bytes]) -> FileSet:
    """Files by name, written; labels 0 to 6 in turn."""
    for name, content in files.items():
        write(folder, name, content)
    paths = PathTable([os.fsencode(name) for name in files])
    return FileSet(folder, paths, torch.arange(len(files)) % 7)
