"""What names images: text lists and annotations."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets.listed.lists import MAX_ANNOTATIONS_BYTES, MAX_LIST_BYTES
from tests.bad_inputs import Kitchen, Make, Row
from tests.bad_inputs.checkpoints import NO_FILE
from tests.file_trees import annotations
from utils.settings.table import CHECK, STAGE1

# ---- text lists

LISTS = "--dataset list --data_dir {lists} --train_list {bad} --test_list {lists}/test.txt --workers 0"


def listing(content: bytes) -> Make:
    """The training list with these lines behind its own."""
    return lambda root, kitchen: (root / "bad").write_bytes(
        (kitchen.lists / "train.txt").read_bytes() + content
    )


def alone(content: bytes) -> Make:
    return lambda root, kitchen: (root / "bad").write_bytes(content)


def huge(name: str, size: int = MAX_LIST_BYTES + 1) -> Make:
    """A file of one hole, which takes no space."""
    return lambda root, kitchen: ((root / name).touch(), os.truncate(root / name, size))


ALONE = "a line is 'relative/path.jpg label', found "
NUMBER = "the label must be a whole number from 0 to"
LINES = {  # behind the twelve of the list; "bad, line 13: " stands before what is said
    "without a label": (b"b.jpg\n", ALONE + "'b.jpg'"),
    "leaving by ..": (b"../b.jpg 0\n", "'../b.jpg' leaves the data folder"),
    "leaving by .. inside": (b"a/../../b.jpg 0\n", "'a/../../b.jpg' leaves the data folder"),
    "an absolute path": (b"/etc/passwd 0\n", "'/etc/passwd' leaves the data folder"),
    "the folder itself": (b". 0\n", r"'\.' leaves the data folder"),
    "a NUL byte": (b"a\0.jpg 0\n", "a NUL byte in"),
    "a label alone": (b"5\n", ALONE + "'5'"),
    "a negative label": (b"b.jpg -1\n", NUMBER + ".* found '-1'"),
    "the label 1_0": (b"b.jpg 1_0\n", NUMBER),
    "the label 2147483648": (b"b.jpg 2147483648\n", NUMBER),
    "an endless label": (b"b.jpg " + b"9" * 5000 + b"\n", NUMBER),
    "a label of another script": ("b.jpg ١\n".encode(), NUMBER),
    "an image twice": (b"./photos//ant/train000.jpg 0\n", "'photos/ant/train000.jpg' stands on line 1"),
    "terminal commands": (b"\x1b[2J\x07 \n", ""),
}
WHOLE_LISTS = {
    "blank": (alone(b"\n\n  \n"), "bad names no image"),
    "one class": (alone(b"photos/ant/train000.jpg 0\n"), "bad has 1 class"),
    "labels from 1": (alone(b"a/b.jpg 1\na/c.jpg 2\n"), "bad: class 0 has no training image, class 2"),
    "an absent class": (listing(b"b.jpg 2147483647\n"), "bad: class 3 has no training image, class 2"),
    "another folder's": (alone(b"a/b.jpg 0\na/c.jpg 1\n"), "bad: its first image 'a/b.jpg' is not there"),
    "binary": (alone(bytes(range(256)) * 9), "bad, line 1: "),
    "CRLF and a bad line": (listing(b"\r\nb.jpg x\r\n"), f"bad, line 14: {NUMBER}.*found 'x'"),
    "a test image": (listing(b"photos/ant/test000.jpg 0\n"), "test000.jpg' is in both .*bad and .*test.txt"),
}


def _lists() -> list[Row]:
    every = {kind: (listing(line), f"bad, line 13: {says}") for kind, (line, says) in LINES.items()}
    for kind, (make, named) in NO_FILE.items():
        every[kind] = (
            make,
            named.replace("bad is not a file", "bad cannot be read: it is a pipe or a device"),
        )
    rows = [
        Row(f"list: {kind}", STAGE1, LISTS, says, make)
        for kind, (make, says) in (every | WHOLE_LISTS).items()
    ]
    split = "--dataset imagenet_lt --data_dir {imagenet} --allow_partial --split_dir {root}"
    says, pipe = "ImageNet_LT_train.txt cannot be read: it is a pipe or a device", NO_FILE["a pipe"][0]
    rows.append(Row("published list: a pipe", STAGE1, split, says, partial(_as_train_list, make=pipe)))
    secret = lambda root, kitchen: (listing(b"")(root, kitchen), (root / "bad").chmod(0))  # noqa: E731
    says = "bad cannot be read: Permission denied"
    rows.append(Row("list: not permitted", STAGE1, LISTS, says, secret, unprivileged=True))
    two, says = listing(b"../b.jpg 0\nb.jpg\n"), r"(?s)line 13: .*line 14: .*problems"
    rows.append(Row("list: huge", CHECK, LISTS, "bad is larger than any list of images", huge("bad")))
    return [*rows, Row("list: every bad line is listed", CHECK, LISTS, says, two, listed=True)]


def _as_train_list(root: Path, kitchen: Kitchen, make: Make) -> None:
    make(root, kitchen)
    (root / "bad").rename(root / "ImageNet_LT_train.txt")
    for part in ("val", "test"):
        shutil.copy(kitchen.imagenet / f"ImageNet_LT_{part}.txt", root)


# ---- annotations

INAT = "--dataset inaturalist18 --data_dir {inat} --split_dir {root} --allow_partial --workers 0"
JSON = "train2018.json"


def written(content: bytes) -> Make:
    """Annotations of any content beside sound ones of the test part."""
    return lambda root, kitchen: (
        shutil.copy(kitchen.inat / "val2018.json", root),
        (root / JSON).write_bytes(content),
    )


def noted(change: Callable[[dict], object]) -> Make:
    """Annotations of the kitchen's images, changed."""

    def make(root: Path, kitchen: Kitchen) -> None:
        known = json.loads((kitchen.inat / JSON).read_text())
        change(known)
        written(json.dumps(known).encode())(root, kitchen)

    return make


def image(**fields: object) -> Make:
    return noted(lambda known: known["images"][1].update(fields))


def annotation(**fields: object) -> Make:
    return noted(lambda known: known["annotations"][1].update(fields))


def without_training_images(known: dict) -> None:
    for note in known["annotations"]:
        note["category_id"] %= 2


CUT = json.dumps(annotations([("a/b.jpg", 0)]))[:-20].encode()
WHOLE, NO_LIST = "must be a whole number of 0 or more, found", "is missing, empty or no list"
NOTES: dict[str, tuple[Make, str]] = {
    "cut": (written(CUT), "is no intact JSON"),
    "a huge number": (written(b'{"images": [' + b"9" * 5000 + b"]}"), "is no intact JSON"),
    "not UTF-8": (written(b'{"info": "caf\xe9"}'), "is no intact JSON: .* 0xe9 in position 13"),
    "nested": (written(b"[" * 200_000), "is nested deeper"),
    "empty lists": (
        written(b'{"images": [' + b"[]," * 8_000_000 + b"0]}"),
        "has more than 16,000,000 values",
    ),
    "small objects": (written(b'{"images": [' + b"{}," * 500_001 + b"0]}"), "has more than 500,000 objects"),
    "a list": (written(b"[]"), "holds a list instead of an object"),
    "a byte order mark and no images": (written(b"\xef\xbb\xbf{}"), f"'images' {NO_LIST}"),
    "NaN": (image(id=float("nan")), rf"images\[1\].id {WHOLE} nan"),
    "a negative category": (annotation(category_id=-7), rf"annotations\[1\].category_id {WHOLE} -7"),
    "a category without training images": (
        noted(without_training_images),
        "val2018.json: class 2 of .* has no training image",
    ),
    "an id twice": (image(id=9), "two images have the id 9"),
    "an id beyond all": (image(id=1 << 80), rf"images\[1\].id {WHOLE}"),
    "an absent image": (annotation(image_id=99_999), "an annotation is of image 99999, which is not there"),
    "an image without annotation": (noted(lambda known: known["annotations"].pop()), "has no annotation"),
    "two annotations": (noted(lambda k: k["annotations"].append(k["annotations"][0])), "than one annotation"),
    **{
        f"{key} without {field}": (
            noted(lambda k, key=key, field=field: k[key][1].pop(field)),
            rf"{key}\[1\] lacks",
        )
        for key, fields in (("images", ("id", "file_name")), ("annotations", ("image_id", "category_id")))
        for field in fields
    },
    "a number as an image": (noted(lambda k: k["images"].append(7)), r"images\[12\] lacks 'id' or"),
    "text as an id": (annotation(image_id="5"), rf"annotations\[1\].image_id {WHOLE} '5'"),
    "true as an id": (annotation(image_id=True), rf"annotations\[1\].image_id {WHOLE} True"),
    "no path": (image(file_name=""), r"images\[1\].file_name: an empty path"),
    "huge": (
        lambda root, kitchen: (
            written(b"")(root, kitchen),
            huge(JSON, MAX_ANNOTATIONS_BYTES + 1)(root, kitchen),
        ),
        f"{JSON} is larger than any list",
    ),
    "no annotations": (noted(lambda known: known.update(annotations={})), f"'annotations' {NO_LIST}"),
    "a file name as number": (image(file_name=5), r"images\[1\].file_name must be text"),
    "leaving the folder": (image(file_name="../x.jpg"), r"images\[1\].file_name: '../x.jpg' leaves the data"),
    "half a surrogate pair": (image(file_name="\ud800.jpg"), r"images\[1\].file_name: "),
    "a file twice": (noted(lambda k: k["images"].__setitem__(1, k["images"][0] | {"id": 10})), "is twice in"),
}


def _annotations() -> list[Row]:
    rows = [Row(f"annotations: {kind}", STAGE1, INAT, says, make) for kind, (make, says) in NOTES.items()]
    says = f"{JSON} cannot be read: (it is a pipe|Is a dir)"
    for kind in ("a folder", "a pipe"):
        rows.append(
            Row(f"annotations: {kind}", STAGE1, INAT, says, partial(_as_annotations, make=NO_FILE[kind][0]))
        )
    return rows


def _as_annotations(root: Path, kitchen: Kitchen, make: Make) -> None:
    shutil.copy(kitchen.inat / "val2018.json", root)
    make(root, kitchen)
    (root / "bad").rename(root / JSON)


ROWS = [*_lists(), *_annotations()]
