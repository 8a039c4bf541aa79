"""`python -m datasets.check` lists everything wrong with a data set on disk, and only that."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import check
from datasets.check import Finding, scan
from datasets.types import FileSet
from tests.helpers import call
from tests.odd_images import broken_files, encoded, file_set, jpeg, picture, png, readable_files, write

ROOT = Path(__file__).resolve().parent.parent


def found(parts: dict[str, FileSet], workers: int = 2) -> tuple[list[str], list[str]]:
    """Problems and warnings of a scan; every image must have been looked at."""
    findings = list(scan(parts, workers))
    assert sum(len(finding.digests) for finding in findings) == sum(map(len, parts.values()))
    problems = [line for finding in findings for line in finding.problems]
    return problems, [line for finding in findings for line in finding.warnings]


def sound(folder: Path, first: int, count: int) -> FileSet:
    return file_set(folder, {f"{i}.png": png(i) for i in range(first, first + count)})


def test_a_sound_set_of_every_kind_of_file_has_no_problem(tmp_path):
    parts = {part: file_set(tmp_path / part, readable_files(i)) for i, part in enumerate(("train", "test"))}
    parts["train"].labels.zero_()  # one file is there under two names
    problems, (line,) = found(parts)  # a warning of both parts together
    assert problems == [] and line.startswith(
        f"2 image(s) have more than 8 bits a channel, {tmp_path}/train/sixteen_bit.png first"
    )


def test_grey_values_beyond_8_bits_are_a_warning_with_the_first_image_and_their_number(tmp_path):
    grey = np.asarray(picture().convert("L"))
    files = {
        "0.png": png(),
        "deep.png": encoded(Image.fromarray(grey.astype(np.uint16) * 250), "PNG"),
        "deep.tif": encoded(Image.fromarray(grey.astype(np.int32) * 250), "TIFF"),
        "float.tif": encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "grey.png": encoded(Image.fromarray(grey), "PNG"),
    }
    problems, (line,) = found({"train": file_set(tmp_path, files)}, workers=0)
    assert problems == []
    assert line.startswith(f"3 image(s) have more than 8 bits a channel, {tmp_path}/deep.png")


def test_every_broken_file_is_listed_once_in_the_order_of_the_list(tmp_path):
    files = {f"{i}.png": png(i) for i in range(150)}
    broken = {name: content for name, (content, _) in broken_files().items()}
    train = file_set(tmp_path, files | broken)
    (tmp_path / "77.png").unlink()
    problems, warnings = found({"train": train}, workers=3)
    assert warnings == []
    for name, line in zip(["77.png", *broken], problems, strict=True):
        assert line.startswith(f"{tmp_path}/{name} ") and "\n" not in line
    assert "does not exist" in problems[0]


def half_grey() -> bytes:
    """Half of the picture is missing, but the end marker is there: libjpeg fills in grey."""
    whole = jpeg(1)
    return whole[: len(whole) // 2] + b"\xff\xd9"


def wrong_comment() -> bytes:
    """A PNG whose comment has a wrong checksum."""
    data, end = encoded(picture(), "PNG"), 33  # of the header chunk
    return data[:end] + struct.pack(">I", 5) + b"tEXta\0bcd" + bytes(4) + data[end:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("content", "word"), [(half_grey, "premature end"), (wrong_comment, "")])
def test_a_damaged_file_that_decoders_let_pass_is_a_warning(tmp_path, workers, content, word):
    files = {"0.jpg": jpeg(0), "damaged": content(), "2.jpg": jpeg(2)}
    problems, (line,) = found({"train": file_set(tmp_path, files)}, workers)
    assert problems == [] and line.startswith(f"{tmp_path}/damaged may be damaged (") and word in line


def test_test_images_that_are_training_images_by_content_are_listed(tmp_path):
    train = sound(tmp_path / "train", 0, 80)
    test = sound(tmp_path / "test", 100, 70)
    write(tmp_path / "test", "103.png", png(64))
    write(tmp_path / "test", "169.png", png(0))
    write(tmp_path / "train", "70.png", png(0))  # the first of two is named
    problems, _ = found({"train": train, "val": sound(tmp_path / "val", 200, 5), "test": test})
    expected = [(103, 64), (169, 0)]
    assert [line.partition(": ")[0] for line in problems] == [
        f"{tmp_path}/test/{copy}.png (test) holds the same bytes as {tmp_path}/train/{of}.png (train)"
        for copy, of in expected
    ]


def test_unreadable_files_are_no_copies_of_each_other(tmp_path):
    parts = {
        name: file_set(tmp_path / name, {"0.png": png(), "empty.jpg": b""}) for name in ("train", "test")
    }
    write(tmp_path / "test", "0.png", png(9))
    problems, _ = found(parts)
    assert len(problems) == 2 and all("is empty" in line for line in problems)


def test_a_part_with_a_last_chunk_of_one_image_is_scanned_whole(tmp_path):
    findings = list(scan({"train": sound(tmp_path, 0, check.CHUNK + 1)}, 2))
    assert [len(finding.digests) for finding in findings] == [check.CHUNK, 1, 0]
    assert findings[-1] == Finding()


# ---- the command ----


@pytest.fixture
def pets(tmp_path) -> Path:
    """Class folders with images 0 to 14, no two alike."""
    counts = {"train/cat": 8, "train/dog": 3, "test/cat": 2, "test/dog": 2}
    for number, folder in enumerate(name for name, count in counts.items() for _ in range(count)):
        write(tmp_path / "pets" / folder, f"{number}.jpg", jpeg(number))
    return tmp_path / "pets"


def command(folder: Path, dataset: str = "folder") -> list[str]:
    return ["--dataset", dataset, "--data_dir", str(folder), "--workers", "1"]


def ending(capsys, *argv: str) -> list[str]:
    """The lines with which the command ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        check.main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().out.splitlines()


def test_files_that_are_no_images_are_warnings_by_their_names(pets):
    for name in ("train/cat/IMG_1.HEIC", "test/dog/readme", "test/dog/.hidden"):
        write(pets, name, b"P3 is no picture here")
    lines = call(check.main, *command(pets)).splitlines()
    assert [line.split(" is passed over: by its name it is none of JPEG")[0] for line in lines[:2]] == [
        f"warning: {pets}/train/cat/IMG_1.HEIC",
        f"warning: {pets}/test/dog/readme",
    ]
    assert lines[2].startswith("folder_pets: 15 images, 0 problems, 2 warnings")


def test_a_file_that_is_passed_over_is_told_once_where_parts_are_taken_from_one_folder(pets):
    write(pets, "train/cat/note.txt", b"a note")
    words = ["--dataset", "folder", "--data_dir", str(pets / "train"), "--workers", "1"]
    lines = call(check.main, *words, "--test_fraction", "0.3", "--val_fraction", "0.3").splitlines()
    assert sum("note.txt is passed over" in line for line in lines) == 1 and "1 warning" in lines[-1]


def test_a_folder_without_a_training_image_is_a_problem_told_once(pets, capsys):
    shutil.rmtree(pets / "train")
    (pets / "train").mkdir()
    lines = ending(capsys, *command(pets))
    assert sum("has no class folders" in line for line in lines) == 1


def test_a_training_image_in_two_classes_is_a_warning_and_two_in_one_are_none(pets):
    shutil.copy(pets / "train/cat/2.jpg", pets / "train/dog/again.jpg")
    shutil.copy(pets / "train/cat/3.jpg", pets / "train/cat/twin.jpg")
    same = f"{pets}/train/dog/again.jpg holds the same bytes as {pets}/train/cat/2.jpg, of another class"
    first, last = call(check.main, *command(pets)).splitlines()
    assert first == f"warning: {same}" and last.startswith("folder_pets: 17 images, 0 problems, 1 warning;")


def test_problems_are_printed_and_end_the_command_with_status_2(pets, capsys):
    write(pets, "train/cat/1.jpg", b"")
    write(pets, "test/dog/14.jpg", jpeg(2))
    lines = ending(capsys, *command(pets))
    assert "train/cat/1.jpg is empty" in lines[0]
    assert "test/dog/14.jpg (test) holds the same bytes as" in lines[1]
    assert lines[2].startswith("folder_pets: 15 images, 2 problems, 0 warnings")
