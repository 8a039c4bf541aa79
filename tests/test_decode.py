"""Every readable file equals Pillow's pixels, everything else is refused in one line that names it."""

import io
import os
import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from datasets.images import decode
from datasets.images.decode import MAX_BYTES, MAX_PIXELS, decode_image, read_image
from tests.odd_images import (
    bomb_png,
    broken_files,
    encoded,
    jpeg,
    picture,
    png,
    png_of,
    readable_files,
    write,
)
from utils.base.errors import UserError, printable

READABLE, BROKEN = readable_files(), broken_files()


def pillow_pixels(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def refusal(path: str) -> str:
    """The line with which a file is refused, as it is printed."""
    with pytest.raises(UserError) as caught:
        read_image(path)
    return printable(str(caught.value))


# ---- what is read ----


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_of_file_has_pillows_pixels(tmp_path, name):
    pixels = read_image(write(tmp_path, name, READABLE[name]))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 72, 96)
    assert torch.equal(pixels, pillow_pixels(READABLE[name]))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpegs_of_every_quality_and_odd_size_have_pillows_pixels_to_the_last_bit(quality, subsampling):
    data = encoded(picture(quality, 501, 333), "JPEG", quality=quality, subsampling=subsampling)
    assert torch.equal(decode_image(bytearray(data), "x.jpg"), pillow_pixels(data))


@pytest.mark.parametrize("name", ["plain.jpg", "progressive.JPEG", "grey.jpg", "plain.png", "rgba.png"])
def test_common_files_are_decoded_without_pillow(monkeypatch, name):
    monkeypatch.setattr(decode.Image, "open", None)
    assert decode_image(bytearray(READABLE[name]), name).shape == (3, 72, 96)


def test_the_exif_orientation_is_ignored(tmp_path):
    assert Image.open(io.BytesIO(READABLE["exif_rotated.jpg"])).getexif()[0x0112] == 6
    upright = encoded(picture(), "JPEG")
    rotated = read_image(write(tmp_path, "rotated.jpg", READABLE["exif_rotated.jpg"]))
    assert torch.equal(rotated, pillow_pixels(upright))


def test_interlaced_png_has_pillows_pixels():
    """Adam7, by hand, of an 8 x 8 grey image: Pillow reads such files but cannot write them."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    passes = [pixels[::8, ::8], pixels[::8, 4::8], pixels[4::8, ::4], pixels[::4, 2::4]]
    passes += [pixels[2::4, ::2], pixels[::2, 1::2], pixels[1::2]]
    rows = b"".join(b"\0" + row.tobytes() for rows in passes for row in rows)
    data = png_of(8, 8, rows, colour=0, interlaced=1)
    assert torch.equal(pillow_pixels(data)[0], torch.from_numpy(pixels))
    assert torch.equal(decode_image(bytearray(data), "x.png"), pillow_pixels(data))


def test_bytes_after_the_end_do_not_matter():
    for data in (jpeg(), png()):
        assert torch.equal(decode_image(bytearray(data + b"\0trailing"), "x"), pillow_pixels(data))


# ---- what is refused ----


def test_a_missing_file_a_folder_a_huge_file_and_a_name_that_leads_nowhere_are_named(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    write(tmp_path, "file.jpg", jpeg())
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room
    for name, word in (
        ("missing.jpg", "does not exist"),
        ("file.jpg/inside.jpg", "does not exist"),
        ("folder.jpg", "Is a directory"),
        ("loop.jpg", "cannot be read"),
        ("x" * 300 + ".jpg", "cannot be read"),
        ("huge.jpg", "more than any image"),
    ):
        assert word in refusal(str(tmp_path / name))
    assert "cannot be read" in refusal("null\0byte.jpg")


def test_names_with_line_breaks_or_bytes_that_are_no_text_stay_on_one_line(tmp_path):
    for raw in (b"two\nlines.jpg", b"latin\xe9.jpg"):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + raw)
        Path(path).write_bytes(b"")
        assert repr(path)[1:-1] in refusal(path)
        Path(path).write_bytes(jpeg())
        assert read_image(path).shape == (3, 72, 96)


JPEGS = ("plain.jpg", "progressive.JPEG", "grey.jpg", "cmyk.jpg")
PNGS = ("plain.png", "rgba.png", "palette.png", "sixteen_bit.png")


@pytest.mark.parametrize("name", [*JPEGS, *PNGS, "plain.webp", "plain.tif"])
def test_a_file_is_refused_wherever_it_is_cut_off(name):
    data = READABLE[name]
    for length in [*range(0, len(data) - 1, max(len(data) // 40, 1)), len(data) - 2, len(data) - 1]:
        with pytest.raises(UserError):
            decode_image(bytearray(data[:length]), name)


def test_a_cut_jpeg_is_refused_though_pillow_is_told_to_go_on(monkeypatch):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("cut.jpg", "cut_progressive.jpg", "cut.png"):
        with pytest.raises(UserError, match="cut off"):
            decode_image(bytearray(BROKEN[name][0]), name)


@pytest.mark.parametrize("name", PNGS)
def test_a_changed_byte_in_a_png_is_noticed(name):
    """All but the lengths and the harmless chunks have a checksum."""
    data, generator = READABLE[name], random.Random(0)
    start = data.index(b"IDAT")
    for _ in range(40):
        broken = bytearray(data)
        broken[generator.randrange(start, len(data) - 12)] ^= 1 << generator.randrange(8)
        with pytest.raises(UserError):
            decode_image(broken, name)


@pytest.mark.parametrize(
    ("name", "least"),
    [("plain.jpg", 20), ("progressive.JPEG", 20), ("cmyk.jpg", 20), ("plain.png", 0), ("plain.webp", 5)],
)
def test_damage_gives_pillows_pixels_or_an_error_of_one_line(name, least, capfd):
    generator = random.Random(1)
    kept = 0
    for _ in range(120):
        broken = bytearray(READABLE[name])
        for _ in range(generator.randrange(1, 4)):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        try:
            pixels = decode_image(broken, name)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert torch.equal(pixels, pillow_pixels(bytes(broken)))
            kept += 1
    assert kept >= least
    capfd.readouterr()  # libjpeg's own complaints


# ---- bombs ----


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (8, 3), (1, 0), (16, 6)])
def test_a_png_that_declares_too_many_pixels_is_refused_unread(depth, colour):
    side = int(MAX_PIXELS**0.5)
    with pytest.raises(UserError, match=f"{side + 1} x {side + 1} pixels"):
        decode_image(bytearray(bomb_png(side + 1, side + 1, depth, colour)), "bomb.png")
    with pytest.raises(UserError, match=r"cannot be decoded|cut off"):  # as large as may be, not all there
        decode_image(bytearray(bomb_png(side, side, 1, 0)), "large.png")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_other_files_that_declare_too_many_pixels_are_refused(side):
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    for data in (gif, bmp):
        with pytest.raises(UserError, match="pixels"):
            decode_image(data, "bomb")
