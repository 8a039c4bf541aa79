"""What names images: text lists and annotations."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from datasets.listed.annotations import MAX_BYTES
from datasets.listed.lists import MAX_LIST_BYTES
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


def outside(root: Path, kitchen: Kitchen) -> None:
    """The first test image, by a name that leaves the folder."""
    (root / "bad").write_text(f"{kitchen.lists}/photos/ant/test000.jpg 0\n")


LINES = {
    "without a label": (b"b.jpg\n", "bad, line 13: a line is 'relative/path.jpg label', found 'b.jpg'"),
    "leaving by ..": (b"../b.jpg 0\n", "bad, line 13: '../b.jpg' leaves the data folder"),
    "leaving by .. inside": (b"a/../../b.jpg 0\n", "bad, line 13: 'a/../../b.jpg' leaves the data folder"),
    "an absolute path": (b"/etc/passwd 0\n", "bad, line 13: '/etc/passwd' leaves the data folder"),
    "the folder itself": (b". 0\n", r"bad, line 13: '\.' leaves the data folder"),
    "a NUL byte": (b"a\0.jpg 0\n", "bad, line 13: a NUL byte in"),
    "a negative label": (b"b.jpg -1\n", "bad, line 13: the label must be a whole number .* found '-1'"),
    "a label with a fraction": (
        b"b.jpg 1.5\n",
        "bad, line 13: the label must be a whole number .* found '1.5'",
    ),
    **{
        f"the label {label!r}": (f"b.jpg {label}\n".encode(), "bad, line 13: the label must be a whole")
        for label in ("+1", "1_0", "0x1", "2147483648")
    },
    "a label alone": (b"5\n", "bad, line 13: a line is 'relative/path.jpg label', found '5'"),
    "an endless label": (b"b.jpg " + b"9" * 5000 + b"\n", "bad, line 13: the label must be a whole number"),
    "a label of another script": ("b.jpg ١\n".encode(), "bad, line 13: the label must be a whole number"),
    "a class that is not there": (
        b"b.jpg 2147483647\n",
        "bad: class 3 has no training image, class 2147483647 has",
    ),
    "an image twice": (
        b"photos/ant/train000.jpg 0\n",
        "bad, line 13: 'photos/ant/train000.jpg' stands on line 1",
    ),
    "an image twice, otherwise": (
        b"./photos//ant/train000.jpg 0\n",
        "'photos/ant/train000.jpg' stands on line 1",
    ),
    "CRLF and a bad line": (b"\r\nb.jpg x\r\n", "bad, line 14: the label must be a whole number .*found 'x'"),
    "terminal commands": (b"\x1b[2J\x07 \n", "bad, line 13: "),
    "a test image": (
        b"photos/ant/test000.jpg 0\n",
        "'photos/ant/test000.jpg' is in both .*bad and .*test.txt",
    ),
}
WHOLE_LISTS = {
    "empty": (b"", "bad names no image"),
    "blank": (b"\n\n  \n", "bad names no image"),
    "one class": (b"photos/ant/train000.jpg 0\n", "bad has 1 class"),
    "a gap": (
        b"photos/ant/train000.jpg 0\nphotos/cat/train000.jpg 2\n",
        "bad: class 1 has no training image, class 2",
    ),
    "labels from 1": (
        b"photos/ant/train000.jpg 1\nphotos/cat/train000.jpg 2\n",
        "bad: class 0 has no training image, class 2",
    ),
    "another folder's": (
        b"elsewhere/a.jpg 0\nelsewhere/b.jpg 1\n",
        "bad: its first image 'elsewhere/a.jpg' is not there",
    ),
    "binary": (bytes(range(256)) * 9, "bad, line 1: "),
}


def _lists() -> list[Row]:
    rows = [Row(f"list: {kind}", STAGE1, LISTS, says, listing(line)) for kind, (line, says) in LINES.items()]
    rows += [
        Row(f"list: {kind}", STAGE1, LISTS, says, alone(text)) for kind, (text, says) in WHOLE_LISTS.items()
    ]
    rows.append(Row("list: huge", STAGE1, LISTS, "bad is larger than any list of images", huge("bad")))
    for kind, (make, named) in NO_FILE.items():
        says = named.replace("bad is not a file", "bad cannot be read: it is a pipe or a device")
        rows.append(Row(f"list: {kind}", STAGE1, LISTS, says, make))
        split = "--dataset imagenet_lt --data_dir {imagenet} --allow_partial --split_dir {root}"
        listed = lambda root, kitchen, make=make: _as_train_list(root, kitchen, make)  # noqa: E731
        if kind not in ("absent", "a link to nothing", "a loop of links"):  # then it would be fetched
            expected = says.replace("bad", "ImageNet_LT_train.txt")
            rows.append(Row(f"published list: {kind}", STAGE1, split, expected, listed))
    return [
        *rows,
        Row(
            "list: not permitted",
            STAGE1,
            LISTS,
            "bad cannot be read: Permission denied",
            lambda root, kitchen: (listing(b"")(root, kitchen), (root / "bad").chmod(0)),
            unprivileged=True,
        ),
        Row(
            "list: an absolute path to a true image",
            STAGE1,
            LISTS,
            "bad, line 1: .* leaves the data folder",
            outside,
        ),
        Row(
            "list: every bad line is listed",
            CHECK,
            LISTS,
            r"(?s)line 13: .*line 14: .*problems",
            listing(b"../b.jpg 0\nb.jpg\n"),
            listed=True,
        ),
    ]


def _as_train_list(root: Path, kitchen: Kitchen, make: Make) -> None:
    make(root, kitchen)
    (root / "bad").rename(root / "ImageNet_LT_train.txt")
    for part in ("val", "test"):
        shutil.copy(kitchen.imagenet / f"ImageNet_LT_{part}.txt", root)


# ---- annotations

INAT = "--dataset inaturalist18 --data_dir {inat} --split_dir {root} --allow_partial --workers 0"
JSON = "train2018.json"


def noted(change: Callable[[dict], object] | None = None, content: bytes | None = None) -> Make:
    """Annotations of the kitchen's images, changed; or any `content`."""

    def make(root: Path, kitchen: Kitchen) -> None:
        shutil.copy(kitchen.inat / "val2018.json", root)
        known = json.loads((kitchen.inat / JSON).read_text())
        if change:
            change(known)
        (root / JSON).write_bytes(json.dumps(known).encode() if content is None else content)

    return make


def image(**fields: object) -> Make:
    return noted(lambda known: known["images"][1].update(fields))


def annotation(**fields: object) -> Make:
    return noted(lambda known: known["annotations"][1].update(fields))


def lacking(key: str, field: str) -> Make:
    return noted(lambda known: known[key][1].pop(field))


NOTES: dict[str, tuple[Make, str]] = {
    "empty": (noted(content=b""), "is no intact JSON"),
    "cut": (noted(content=json.dumps(annotations([("a/b.jpg", 0)]))[:-20].encode()), "is no intact JSON"),
    "a huge number": (noted(content=b'{"images": [' + b"9" * 5000 + b"]}"), "is no intact JSON"),
    "not UTF-8": (noted(content=b'{"info": "caf\xe9"}'), "is no intact JSON: .* 0xe9 in position 13"),
    "UTF-16": (noted(content='{"images": []}'.encode("utf-16")), "is no intact JSON: .* 0xff in position 0"),
    "nested": (noted(content=b"[" * 200_000), "is nested deeper"),
    "nested objects": (noted(content=b'{"a":' * 200_000), "is nested deeper"),
    "empty lists": (
        noted(content=b'{"images": [' + b"[]," * 8_000_000 + b"0]}"),
        "has more than 16,000,000 values, more than any annotations file",
    ),
    "small objects": (
        noted(content=b'{"images": [' + b"{}," * 500_001 + b"0]}"),
        "has more than 500,000 objects that are no image or annotation",
    ),
    "a list": (noted(content=b"[]"), "holds a list instead of an object"),
    "a byte order mark and no images": (
        noted(content=b"\xef\xbb\xbf{}"),
        "'images' is missing, empty or no list",
    ),
    "NaN": (image(id=float("nan")), r"images\[1\].id must be a whole number of 0 or more, found nan"),
    "infinity": (
        annotation(category_id=float("inf")),
        r"annotations\[1\].category_id must be a whole number",
    ),
    "a negative category": (
        annotation(category_id=-7),
        r"annotations\[1\].category_id must be a whole number of 0 or more, found -7",
    ),
    "a category without training images": (
        noted(
            lambda known: [
                note.update(category_id=0) for note in known["annotations"] if note["category_id"] == 2
            ]
        ),
        "val2018.json: class 2 of .* has no training image",
    ),
    "an id twice": (image(id=9), "two images have the id 9"),
    "an id beyond all": (image(id=1 << 80), r"images\[1\].id must be a whole number"),
    "an image that is not there": (
        annotation(image_id=99_999),
        "an annotation is of image 99999, which is not",
    ),
    "an image without annotation": (noted(lambda known: known["annotations"].pop()), "has no annotation"),
    "two annotations": (
        noted(lambda k: k["annotations"].append(k["annotations"][0])),
        "has more than one annotation",
    ),
    **{
        f"{key} without {field}": (lacking(key, field), rf"{key}\[1\] lacks {both}")
        for key, both in (("images", "'id' or 'file_name'"), ("annotations", "'image_id' or 'category_id'"))
        for field in both.replace("'", "").split(" or ")
    },
    **{
        f"{entry!r} as an image": (noted(lambda k, e=entry: k["images"].append(e)), r"images\[12\] lacks")
        for entry in (7, None, [], {"id": 1})
    },
    **{
        f"{value!r} as the id of an image": (
            annotation(image_id=value),
            r"annotations\[1\].image_id must be a whole number of 0 or more, found",
        )
        for value in ("5", 5.0, True, None, [5])
    },
    "no path": (image(file_name=""), r"images\[1\].file_name: an empty path"),
    "huge": (
        lambda root, kitchen: (noted()(root, kitchen), huge(JSON, MAX_BYTES + 1)(root, kitchen)),
        f"{JSON} is larger than any list",
    ),
    "no images": (noted(lambda known: known.pop("images")), "'images' is missing, empty or no list"),
    "no annotations": (
        noted(lambda known: known.update(annotations={})),
        "'annotations' is missing, empty or no list",
    ),
    "a file name as number": (image(file_name=5), r"images\[1\].file_name must be text"),
    "leaving the folder": (
        image(file_name="../x.jpg"),
        r"images\[1\].file_name: '../x.jpg' leaves the data folder",
    ),
    "an absolute path": (
        image(file_name="/etc/passwd"),
        r"images\[1\].file_name: '/etc/passwd' leaves the data",
    ),
    "a NUL byte": (image(file_name="a\0b.jpg"), r"images\[1\].file_name: a NUL byte"),
    "half a surrogate pair": (image(file_name="\ud800.jpg"), r"images\[1\].file_name: "),
    "an image twice": (
        noted(lambda k: k["images"][1].update(file_name=k["images"][0]["file_name"])),
        "is twice in",
    ),
}


def _annotations() -> list[Row]:
    rows = [Row(f"annotations: {kind}", STAGE1, INAT, says, make) for kind, (make, says) in NOTES.items()]
    for kind in ("a folder", "a pipe", "a device"):
        make, _ = NO_FILE[kind]
        put = lambda root, kitchen, make=make: (  # noqa: E731
            shutil.copy(kitchen.inat / "val2018.json", root),
            make(root, kitchen),
            (root / "bad").rename(root / JSON),
        )
        rows.append(
            Row(f"annotations: {kind}", STAGE1, INAT, f"{JSON} cannot be read: (it is a pipe|Is a dir)", put)
        )
    return rows


ROWS = [*_lists(), *_annotations()]
