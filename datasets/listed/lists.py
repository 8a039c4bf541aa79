"""What names images: split lists as ImageNet-LT's, and COCO-style annotations as iNaturalist ships them.

A line of a list is a path relative to the image folder, white space, the label.
"""

import json
import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import torch

from datasets.types import FileSet, PathTable
from utils.base.errors import UserError, raise_problem, reason
from utils.base.files import open_regular

Report = Callable[[str], None]  # takes a problem, and may raise it
MAX_LIST_BYTES = 1 << 30
MAX_LABEL = np.iinfo(np.int32).max
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a file may hold that stays in memory, generously: train2018.json of iNaturalist, some 100 MB, has about
# 5 million commas and brackets and 9 thousand objects that are no images or annotations.
MAX_ANNOTATIONS_BYTES, MAX_VALUES, MAX_OBJECTS = 1 << 29, 16_000_000, 500_000
# what of an entry stays in memory and of which kind it is, under the list where the entry belongs
_FIELDS = {"images": {"id": int, "file_name": str}, "annotations": {"image_id": int, "category_id": int}}


def read_list(path: Path, root: Path, report: Report = raise_problem) -> FileSet:
    """The images that the list `path` names, below `root`, in the order of its lines; no file is looked at.

    A path may hold spaces; blank lines, CRLF and a byte order mark are let pass. A line that `report` does
    not stop at is left out.
    """
    seen: dict[bytes, int] = {}
    labels = []
    try:
        with open_regular(path) as lines:
            refuse_huge(path, lines, MAX_LIST_BYTES)
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if not content.strip():
                    continue
                try:
                    name, label = _row(content)
                    first = seen.setdefault(name, number)
                    if first != number:
                        raise ValueError(f"{shown(name)} stands on line {first} already")
                    labels.append(label)
                except ValueError as error:
                    report(f"{path}, line {number}: {error}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not seen:
        report(f"{path} names no image: a line is 'relative/path.jpg label'")
    return FileSet(root, PathTable(list(seen)), torch.tensor(labels, dtype=torch.int64), source=str(path))


def clean_path(path: bytes) -> bytes:
    """`path` without `.`, `..` and double slashes.

    Raises ValueError: it is absolute, leaves the folder, or no file can be called so.
    """
    if not path or b"\0" in path:
        raise ValueError("an empty path" if not path else f"a NUL byte in {shown(path)}")
    # most paths need no work
    cleaned = path
    if b"/." in path or b"//" in path or path.startswith((b".", b"/")) or path.endswith(b"/"):
        cleaned = posixpath.normpath(path)
    if cleaned.startswith((b"/", b"../")) or cleaned in (b".", b".."):
        raise ValueError(f"{shown(path)} leaves the data folder: paths must be relative to it")
    return cleaned


def shown(raw: bytes, limit: int = 100) -> str:
    """A path or line in a message: quoted, on one line, not endless."""
    text = os.fsdecode(raw.strip())
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def refuse_huge(path: Path, handle: BinaryIO, limit: int) -> None:
    """Raise a UserError where the open file has more than `limit` bytes."""
    if os.fstat(handle.fileno()).st_size > limit:
        raise UserError(f"{path} is larger than any list of images (limit {limit >> 20} MiB)")


def _row(line: bytes) -> tuple[bytes, int]:
    path, *rest = line.rsplit(None, 1)
    if not rest:
        raise ValueError(f"a line is 'relative/path.jpg label', found {shown(line)}")
    digits = rest[0]
    if not digits.isdigit() or len(digits) > 10 or int(digits) > MAX_LABEL:
        raise ValueError(f"the label must be a whole number from 0 to {MAX_LABEL}, found {shown(digits)}")
    return clean_path(path), int(digits)


def read_annotations(
    path: Path, root: Path, report: Report = raise_problem
) -> tuple[FileSet, dict[int, str]]:
    """The images that the file names, below `root` and labelled with their categories' ids, and names by id.

    Each image must have exactly one annotation. An image with a bad path goes to `report` and, where that
    goes on, stays in its place. Categories without a name are left out of the names.
    """
    tree = _tree(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__} instead of an object with images, annotations")
    ids, names = _columns(path, tree, "images")
    image_ids, categories = _columns(path, tree, "annotations")
    paths = []
    for i, name in enumerate(names):
        try:
            paths.append(clean_path(name.encode()))
        except ValueError as error:  # half a surrogate pair is one as well
            report(f"{path}: images[{i}].file_name: {error}")
            paths.append(b"")
    images, annotated = pd.Index(ids, dtype="int64"), pd.Index(image_ids, dtype="int64")
    for wrong, problem in (
        (images[images.duplicated()], "two images have the id {}"),
        (annotated[~annotated.isin(images)], "an annotation is of image {}, which is not there"),
        (annotated[annotated.duplicated()], "image {} has more than one annotation"),
        (images[~images.isin(annotated)], "image {} has no annotation"),
    ):
        if len(wrong):
            raise UserError(f"{path}: {problem.format(wrong[0])}")
    labels = torch.tensor(pd.Series(categories, annotated, dtype="int64")[images].to_numpy())
    found = tree.get("categories")
    found = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    pairs = [(entry.get("id"), entry.get("name")) for entry in found]
    known = {number: name for number, name in pairs if type(number) is int and isinstance(name, str)}
    return FileSet(root, PathTable(paths), labels, source=str(path)), known


def _tree(path: Path) -> object:
    try:
        with open_regular(path) as handle:
            refuse_huge(path, handle, MAX_ANNOTATIONS_BYTES)
            content = handle.read()
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise UserError(f"{path} has more than {MAX_VALUES:,} values, more than any annotations file")
        text = content.decode("utf-8-sig")
        del content
        return json.loads(text, object_hook=_keep_what_is_read(path))
    except RecursionError as error:
        raise UserError(f"{path} is nested deeper than any annotations file") from error
    except (OSError, ValueError) as error:
        kind = "cannot be read" if isinstance(error, OSError) else "is no intact JSON"
        raise UserError(f"{path} {kind}: {reason(error)}") from error


def _keep_what_is_read(path: Path) -> Callable[[dict], object]:
    """What json.loads calls with every object: of images and annotations, tuples stay in memory."""
    others = 0

    def kept(entry: dict) -> object:
        nonlocal others
        for key, fields in _FIELDS.items():
            if entry.keys() >= fields.keys():
                return key, *(entry[field] for field in fields)
        others += 1
        if others > MAX_OBJECTS:
            raise UserError(f"{path} has more than {MAX_OBJECTS:,} objects that are no image or annotation")
        return entry

    return kept


def _columns(path: Path, tree: dict, key: str) -> list[list]:
    found, fields = tree.get(key), _FIELDS[key]
    if not isinstance(found, list) or not found:
        raise UserError(f"{path}: '{key}' is missing, empty or no list: are these COCO-style annotations?")
    for i, entry in enumerate(found):
        if type(entry) is not tuple or entry[0] != key:
            raise UserError(f"{path}: {key}[{i}] lacks {' or '.join(map(repr, fields))}")
        for (field, kind), value in zip(fields.items(), entry[1:], strict=True):
            if type(value) is not kind or (kind is int and not 0 <= value < 1 << 63):
                wanted = "text" if kind is str else "a whole number of 0 or more"
                raise UserError(f"{path}: {key}[{i}].{field} must be {wanted}, found {value!r:.60}")
    return [[entry[column] for entry in found] for column in (1, 2)]
