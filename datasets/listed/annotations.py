"""COCO-style annotations, as iNaturalist ships them: images, their categories, the categories' names."""

import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.listed.lists import clean_path, refuse_huge
from datasets.listed.parts import Report
from datasets.types import PathTable
from utils.base.errors import UserError, raise_problem
from utils.base.files import open_regular

_IMAGE, _ANNOTATION = object(), object()  # what is left in the parsed tree of an entry that was taken
_BEYOND_INT64 = 1 << 63
# What a file may hold that stays in memory, generously: train2018.json of iNaturalist, some 100 MB, has about
# 5 million commas and brackets and 9 thousand objects that are no images or annotations.
MAX_BYTES, MAX_VALUES, MAX_OBJECTS = 1 << 29, 16_000_000, 500_000


@dataclass(frozen=True)
class Annotations:
    """paths of N images in file order, category ids int64 [N], names by category id (may be empty)."""

    paths: PathTable
    categories: np.ndarray
    names: dict[int, str]


def read_annotations(path: Path, report: Report = raise_problem) -> Annotations:
    """Read `images` (id, file_name), `annotations` (image_id, category_id), `categories` (id, name).

    Each image must have exactly one annotation. An image with a bad path goes to `report` and, where that
    goes on, stays in its place.

    Raises:
        UserError: the file cannot be read, is no JSON or not of this form; says what is wrong.
    """
    entries = _Entries(path, report)
    tree = _parse(path, entries)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__} instead of an object with images, annotations")
    for key, kept, taken in (
        ("images", _IMAGE, entries.ids),
        ("annotations", _ANNOTATION, entries.image_ids),
    ):
        found = tree.get(key)
        if not isinstance(found, list) or not found:
            raise UserError(
                f"{path}: '{key}' is missing, empty or no list: are these COCO-style annotations?"
            )
        if found.count(kept) != len(found):
            odd = next(i for i, entry in enumerate(found) if entry is not kept)
            raise UserError(f"{path}: {key}[{odd}] lacks {' or '.join(_KEYS[key])}")
        if len(taken) != len(found):
            raise UserError(
                f"{path}: {len(taken) - len(found)} entries of '{key}' stand outside of that list"
            )
    categories = _join(path, *map(np.array, (entries.ids, entries.image_ids, entries.categories)))
    paths = PathTable(np.frombuffer(entries.paths, np.uint8), np.array(entries.ends, dtype=np.int64))
    return Annotations(paths, categories, _names(tree.get("categories")))


_KEYS = {"images": ("'id'", "'file_name'"), "annotations": ("'image_id'", "'category_id'")}


class _Entries:
    """Takes images and annotations out of the tree while it is parsed: no dictionary of them is kept."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path, self.report = path, report
        self.ids, self.ends, self.paths = array("q"), array("q"), bytearray()
        self.image_ids, self.categories = array("q"), array("q")
        self.others = 0

    def take(self, entry: dict) -> object:
        if "file_name" in entry and "id" in entry:
            number, name = entry["id"], entry["file_name"]
            if not isinstance(name, str):
                raise UserError(f"{self._where('images')}.file_name must be text, found {name!r:.60}")
            try:
                self.paths += clean_path(name.encode())
            except ValueError as error:  # half a surrogate pair is one as well
                self.report(f"{self._where('images')}.file_name: {error}")
            self._add(self.ids, number, "images", "id")
            self.ends.append(len(self.paths))
            return _IMAGE
        if "category_id" in entry and "image_id" in entry:
            self._add(self.categories, entry["category_id"], "annotations", "category_id")
            if self.categories[-1] < 0:
                found = self.categories[-1]
                where = f"{self._where('annotations')}.category_id"
                raise UserError(f"{where} must be a whole number of 0 or more, found {found}")
            self._add(self.image_ids, entry["image_id"], "annotations", "image_id")
            return _ANNOTATION
        self.others += 1
        if self.others > MAX_OBJECTS:
            what = "objects that are no image or annotation"
            raise UserError(f"{self.path} has more than {MAX_OBJECTS:,} {what}")
        return entry

    def _add(self, column: array, value: object, key: str, field: str) -> None:
        if type(value) is not int or not -_BEYOND_INT64 < value < _BEYOND_INT64:
            raise UserError(f"{self._where(key)}.{field} must be a whole number, found {value!r:.60}")
        column.append(value)

    def _where(self, key: str) -> str:
        """The entry that is being taken."""
        return f"{self.path}: {key}[{len(self.ids if key == 'images' else self.image_ids)}]"


def _parse(path: Path, entries: _Entries) -> object:
    try:
        with open_regular(path) as handle:
            refuse_huge(path, handle.fileno(), MAX_BYTES)
            content = handle.read()
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise UserError(f"{path} has more than {MAX_VALUES:,} values, more than any annotations file")
        text = content.decode("utf-8-sig")
        del content
        return json.loads(text, object_hook=entries.take)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no JSON: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested deeper than any annotations file") from error
    except ValueError as error:
        raise UserError(f"{path} is no intact JSON: {error}") from error


def _join(path: Path, ids: np.ndarray, image_ids: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """The category of each image, int64 [N], by the images' ids."""
    order = np.argsort(ids, kind="stable")
    by_id = ids[order]
    twice = by_id[1:][by_id[1:] == by_id[:-1]]
    if len(twice):
        raise UserError(f"{path}: two images have the id {twice[0]}")
    at = np.searchsorted(by_id, image_ids).clip(max=len(ids) - 1)
    unknown = np.flatnonzero(by_id[at] != image_ids)
    if len(unknown):
        raise UserError(
            f"{path}: annotations[{unknown[0]}] is of image {image_ids[unknown[0]]}, which is not there"
        )
    image = order[at]
    times = np.bincount(image, minlength=len(ids))
    for wrong, what in ((times == 0, "no annotation"), (times > 1, "more than one annotation")):
        if wrong.any():
            raise UserError(f"{path}: image {ids[wrong.argmax()]} has {what}")
    joined = np.empty(len(ids), dtype=np.int64)
    joined[image] = categories
    return joined


def _names(categories: object) -> dict[int, str]:
    entries = categories if isinstance(categories, list) else []
    pairs = [(entry.get("id"), entry.get("name")) for entry in entries if isinstance(entry, dict)]
    return {number: name for number, name in pairs if type(number) is int and isinstance(name, str)}
