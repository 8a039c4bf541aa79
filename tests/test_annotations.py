"""Annotations that are no intact COCO-style JSON: each is refused in one line that says what is wrong."""

import json
import os

import pytest

from datasets.listed.annotations import read_annotations
from datasets.listed.lists import MAX_LIST_BYTES
from tests.file_trees import annotations, write_annotations
from utils.base.errors import UserError

ENTRIES = [
    ("train_val2018/Aves/1/a.jpg", 1),
    ("train_val2018/Aves/0/b.jpg", 0),
    ("train_val2018/Aves/1/c.jpg", 1),
]


@pytest.fixture
def refusal(tmp_path):
    """The one line with which a file of this content is refused."""

    def read(content: bytes | str | dict) -> str:
        if isinstance(content, dict):
            content = json.dumps(content)
        (tmp_path / "train2018.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as caught:
            read_annotations(tmp_path / "train2018.json")
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400 and str(tmp_path / "train2018.json") in message
        return message

    return read


def changed(key: str, index: int, **fields: object) -> dict:
    """Intact annotations but for one entry; a field set to ... is left out."""
    content = annotations(ENTRIES)
    content[key][index] |= fields
    content[key][index] = {name: value for name, value in content[key][index].items() if value is not ...}
    return content


def test_intact_annotations_are_read(tmp_path):
    write_annotations(tmp_path / "train2018.json", ENTRIES)
    found = read_annotations(tmp_path / "train2018.json")
    assert [found.paths[i] for i in range(3)] == [name for name, _ in ENTRIES]
    assert found.categories.tolist() == [1, 0, 1] and found.names == {0: "Species 0", 1: "Species 1"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no intact JSON"),
        (b"{", "is no intact JSON"),
        (json.dumps(annotations(ENTRIES))[:-20], "is no intact JSON"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is no intact JSON"),
        (b"\x1f\x8b\x08\x00", "byte 1 is not UTF-8"),
        (b'{"info": "caf\xe9"}', "byte 13 is not UTF-8"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"a":' * 200_000, "nested deeper"),
        (b"[]", "holds a list instead of an object"),
        (b"null", "holds a NoneType instead"),
    ],
)
def test_what_is_no_json_object_is_refused(refusal, content, reason):
    assert reason in refusal(content)


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize("value", [..., [], {}, None, 5])
def test_a_list_that_is_missing_empty_or_something_else_is_refused(refusal, key, value):
    content = annotations(ENTRIES) | {key: value}
    if value is ...:
        del content[key]
    assert f"'{key}' is missing, empty or no list" in refusal(content)


@pytest.mark.parametrize(
    ("key", "field", "keys"),
    [
        ("images", "id", "'id' or 'file_name'"),
        ("images", "file_name", "'id' or 'file_name'"),
        ("annotations", "image_id", "'image_id' or 'category_id'"),
        ("annotations", "category_id", "'image_id' or 'category_id'"),
    ],
)
def test_an_entry_that_lacks_a_key_is_named(refusal, key, field, keys):
    assert f"{key}[1] lacks {keys}" in refusal(changed(key, 1, **{field: ...}))


@pytest.mark.parametrize("entry", [7, None, "x", [], {"id": 1}])
def test_an_entry_that_is_no_image_is_named(refusal, entry):
    content = annotations(ENTRIES)
    content["images"].append(entry)
    assert "images[3] lacks" in refusal(content)


@pytest.mark.parametrize("value", ["5", 5.0, True, None, [5], 1 << 63, -(1 << 64)])
@pytest.mark.parametrize(
    ("key", "field"), [("images", "id"), ("annotations", "image_id"), ("annotations", "category_id")]
)
def test_an_id_that_is_no_whole_number_is_named(refusal, key, field, value):
    assert f"{key}[2].{field} must be a whole number, found " in refusal(changed(key, 2, **{field: value}))


@pytest.mark.parametrize("value", [5, None, ["a.jpg"], {"x": 1}])
def test_a_file_name_that_is_no_text_is_named(refusal, value):
    assert "images[0].file_name must be text" in refusal(changed("images", 0, file_name=value))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../etc/passwd", "leaves the data folder"),
        ("/etc/passwd", "leaves the data folder"),
        ("", "an empty path"),
        ("a\0.jpg", "NUL byte"),
        ("\ud800.jpg", "can't encode"),
    ],
)
def test_a_file_name_that_no_file_in_the_folder_can_have_is_named(refusal, name, reason):
    message = refusal(changed("images", 1, file_name=name))
    assert "images[1].file_name: " in message and reason in message


def test_bad_file_names_can_be_collected_and_keep_their_places(tmp_path):
    content = changed("images", 1, file_name="../b.jpg")
    write_annotations(tmp_path / "train2018.json", ENTRIES, images=content["images"])
    found = []
    read = read_annotations(tmp_path / "train2018.json", found.append)
    assert len(found) == 1 and [read.paths[i] for i in range(3)] == [ENTRIES[0][0], "", ENTRIES[2][0]]


def test_two_images_with_one_id_are_refused(refusal):
    assert "two images have the id 9" in refusal(changed("images", 2, id=9))


def test_an_annotation_of_an_image_that_is_not_there_is_refused(refusal):
    for number in (8, 12, -5, 1 << 40):
        message = refusal(changed("annotations", 1, image_id=number))
        assert f"annotations[1] is of image {number}, which is not there" in message


def test_an_image_without_or_with_two_annotations_is_refused(refusal):
    content = annotations(ENTRIES)
    content["annotations"].pop()
    assert "image 11 has no annotation" in refusal(content)
    content["annotations"] += [{"image_id": 11, "category_id": 1}, {"image_id": 9, "category_id": 1}]
    assert "image 9 has more than one annotation" in refusal(content)


def test_images_outside_of_their_list_are_refused(refusal):
    content = annotations(ENTRIES) | {"more": [{"id": 77, "file_name": "hidden.jpg"}]}
    assert "1 entries of 'images' stand outside" in refusal(content)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, reason in ((tmp_path / "absent.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"cannot be read: {reason}"):
            read_annotations(path)


def test_a_file_too_large_for_annotations_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "train2018.json", "wb") as handle:
        os.truncate(handle.fileno(), MAX_LIST_BYTES + 1)  # a hole: it takes no space
    with pytest.raises(UserError, match="is larger than any list"):
        read_annotations(tmp_path / "train2018.json")
