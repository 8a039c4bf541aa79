"""Reading split lists: what a line may be, what is refused with its number, full-size lists in time."""

import os
import sys

import numpy as np
import pytest

from datasets.listed.lists import MAX_LIST_BYTES, read_list
from tests.measure import measure
from utils.base.errors import UserError


@pytest.fixture
def listed(tmp_path):
    """Writes a list and reads it."""

    def read(content: bytes, **options: object):
        (tmp_path / "list.txt").write_bytes(content)
        return read_list(tmp_path / "list.txt", tmp_path, **options)

    return read


@pytest.fixture
def refusal(listed):
    """The one line with which a list is refused."""

    def read(content: bytes) -> str:
        with pytest.raises(UserError) as caught:
            listed(content)
        message = str(caught.value)
        assert "\n" not in message and "list.txt" in message
        return message

    return read


def entries(images) -> list[tuple[bytes, int]]:
    return [(images.paths.raw(i), int(label)) for i, label in enumerate(images.labels)]


# ---- lines ----


def test_a_list_gives_paths_and_labels_in_its_order(listed, tmp_path):
    images = listed(b"train/n01440764/n01440764_190.JPEG 0\nval/b.jpg 2147483647\na.jpg 7\n")
    assert entries(images) == [
        (b"train/n01440764/n01440764_190.JPEG", 0),
        (b"val/b.jpg", 2147483647),
        (b"a.jpg", 7),
    ]
    assert images.root == tmp_path and images.labels.dtype.is_signed and images.labels.element_size() == 8


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"my cat/one two.jpg 3\n", [(b"my cat/one two.jpg", 3)]),
        (b"a.jpg \t  4  \n", [(b"a.jpg", 4)]),
        (b"a.jpg\t4", [(b"a.jpg", 4)]),
        (b"a.jpg 1\r\nb.jpg 2\r\n\r\n", [(b"a.jpg", 1), (b"b.jpg", 2)]),
        (b"a.jpg 1\n\n  \nb.jpg 2\n\n", [(b"a.jpg", 1), (b"b.jpg", 2)]),
        (b"\xef\xbb\xbfa.jpg 1\n", [(b"a.jpg", 1)]),
        (b"caf\xe9.jpg 1\n", [(b"caf\xe9.jpg", 1)]),
        ("Straße/日本.jpg 1\n".encode(), [("Straße/日本.jpg".encode(), 1)]),
        (b"./a.jpg 1\na/./b//c.jpg 2\na/../d.jpg 3\n", [(b"a.jpg", 1), (b"a/b/c.jpg", 2), (b"d.jpg", 3)]),
        (b".hidden/..a.jpg 1\na..b/c...jpg 2\n", [(b".hidden/..a.jpg", 1), (b"a..b/c...jpg", 2)]),
    ],
)
def test_what_lists_in_the_wild_hold_is_read(listed, content, expected):
    assert entries(listed(content)) == expected


def test_a_path_that_is_no_utf8_opens_the_file_of_that_name(listed, tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"found")
    images = listed(b"caf\xe9.jpg 0\n")
    assert (images.root / images.paths[0]).read_bytes() == b"found"


# ---- bad lines ----


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"train/b.jpg", "a line is 'relative/path.jpg label', found 'train/b.jpg'"),
        (b"5", "a line is"),
        (b"b.jpg -1", "found '-1'"),
        (b"b.jpg +1", "found '+1'"),
        (b"b.jpg 1.5", "found '1.5'"),
        (b"b.jpg 1_0", "found '1_0'"),
        (b"b.jpg 0x1", "found '0x1'"),
        (b"b.jpg cat", "whole number from 0 to 2147483647, found 'cat'"),
        (b"b.jpg \xd9\xa1", "whole number"),
        (b"b.jpg 2147483648", "found '2147483648'"),
        (b"b.jpg " + b"9" * 5000, "whole number"),
        (b"/etc/passwd 0", "leaves the data folder"),
        (b"//etc/passwd 0", "leaves the data folder"),
        (b"../b.jpg 0", "leaves the data folder"),
        (b"a/../../b.jpg 0", "leaves the data folder"),
        (b"a/b/../../.. 0", "leaves the data folder"),
        (b".. 0", "leaves the data folder"),
        (b". 0", "leaves the data folder"),
        (b"a\0.jpg 0", "NUL byte"),
        (b"a.jpg 1", "'a.jpg' stands on line 1 already"),
        (b"./a.jpg 0", "'a.jpg' stands on line 1 already"),
        (b"x/../a.jpg 0", "'a.jpg' stands on line 1 already"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line_number(refusal, line, reason):
    message = refusal(b"a.jpg 0\n\n" + line + b"\nc.jpg 0\n")
    assert "list.txt, line 3: " in message and reason in message


def test_the_refusal_is_one_short_line_whatever_the_line_holds(refusal):
    assert len(refusal(b"\x1b[2J\r\x0b\xff" + b"x" * 9000)) < 300


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\r\n"])
def test_an_empty_list_is_refused(refusal, content):
    assert "names no image" in refusal(content)


def test_problems_can_be_collected_and_the_good_lines_kept(listed):
    found = []
    images = listed(b"a.jpg 0\nbad\n../b.jpg 1\na.jpg 2\nc.jpg 1\n", report=found.append)
    assert entries(images) == [(b"a.jpg", 0), (b"c.jpg", 1)]
    assert [problem.split(": ")[0][-6:] for problem in found] == ["line 2", "line 3", "line 4"]


def test_a_list_with_nothing_good_can_be_collected_too(listed):
    found = []
    images = listed(b"bad\n", report=found.append)
    assert len(images) == len(images.paths) == 0 and len(found) == 2


# ---- files that are no lists ----


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.txt cannot be read: No such file"):
        read_list(tmp_path / "absent.txt", tmp_path)


def test_a_folder_in_place_of_a_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_list(tmp_path, tmp_path)


def test_a_file_too_large_for_a_list_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "disk.img", "wb") as handle:
        handle.truncate(MAX_LIST_BYTES + 1)  # a hole: it takes no space
    with pytest.raises(UserError, match=r"disk.img is larger than any list"):
        read_list(tmp_path / "disk.img", tmp_path)


# ---- full size ----

READ = """
from datasets.lists import read_list
read = lambda path: read_list(path, path.parent)
summary = lambda images: [len(images), int(images.labels.sum()), images.paths.nbytes]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read off /proc")
def test_lists_of_full_size_are_read_in_two_seconds_and_300_mb(tmp_path):
    sizes = {115_846: 1000, 437_513: 8142}
    for size, classes in sizes.items():
        labels = (np.arange(size) * 7 % classes).tolist()
        lines = [f"train_val2018/Plantae/{k:04}/{i:032x}.jpg {k}\n" for i, k in enumerate(labels)]
        (tmp_path / f"{size}.txt").write_text("".join(line.rjust(72, "x") for line in lines))
    found = measure(READ, *(tmp_path / f"{size}.txt" for size in sizes))
    for (size, classes), measured in zip(sizes.items(), found, strict=True):
        assert measured.summary[:2] == [size, int((np.arange(size) * 7 % classes).sum())]
        assert measured.summary[2] < 80 * size  # the path and 8 bytes for its end: no object for each
        assert measured.seconds < 2 and measured.megabytes < 300, measured
