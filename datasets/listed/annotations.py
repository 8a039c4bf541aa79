"""COCO-style annotations, as iNaturalist ships them: images, their categories, the categories' names."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.listed.lists import clean_path, refuse_huge
from datasets.listed.parts import Report
from datasets.types import PathTable
from utils.base.errors import UserError, raise_problem, reason
from utils.base.files import open_regular

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


# what of an entry stays in memory, under the list where it belongs
_FIELDS = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id")}


def read_annotations(path: Path, report: Report = raise_problem) -> Annotations:
    """Read `images` (id, file_name), `annotations` (image_id, category_id), `categories` (id, name).

    Each image must have exactly one annotation. An image with a bad path goes to `report` and, where that
    goes on, stays in its place.
    """
    tree = _parse(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__} instead of an object with images, annotations")
    ids, names = _columns(path, tree, "images")
    image_ids, categories = _columns(path, tree, "annotations")
    paths = []
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"{path}: images[{i}].file_name must be text, found {name!r:.60}")
        try:
            paths.append(clean_path(name.encode()))
        except ValueError as error:  # half a surrogate pair is one as well
            report(f"{path}: images[{i}].file_name: {error}")
            paths.append(b"")  # it keeps its place
    for key, field, values in (
        ("images", "id", ids),
        ("annotations", "image_id", image_ids),
        ("annotations", "category_id", categories),
    ):
        least, of_what = (0, " of 0 or more") if values is categories else (-_BEYOND_INT64, "")
        for i, value in enumerate(values):
            if type(value) is not int or not least <= value < _BEYOND_INT64:
                wanted = f"must be a whole number{of_what}, found {value!r:.60}"
                raise UserError(f"{path}: {key}[{i}].{field} {wanted}")
    found = tree.get("categories")
    found = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    pairs = [(entry.get("id"), entry.get("name")) for entry in found]
    known = {number: name for number, name in pairs if type(number) is int and isinstance(name, str)}
    return Annotations(PathTable(paths), _joined(path, ids, image_ids, categories), known)


def _parse(path: Path) -> object:
    try:
        with open_regular(path) as handle:
            refuse_huge(path, handle.fileno(), MAX_BYTES)
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
        for key, (one, other) in _FIELDS.items():
            if one in entry and other in entry:
                return key, entry[one], entry[other]
        others += 1
        if others > MAX_OBJECTS:
            raise UserError(f"{path} has more than {MAX_OBJECTS:,} objects that are no image or annotation")
        return entry

    return kept


def _columns(path: Path, tree: dict, key: str) -> tuple[list, list]:
    """The two fields of every entry of a list."""
    found = tree.get(key)
    if not isinstance(found, list) or not found:
        raise UserError(f"{path}: '{key}' is missing, empty or no list: are these COCO-style annotations?")
    for i, entry in enumerate(found):
        if type(entry) is not tuple or entry[0] != key:
            raise UserError(f"{path}: {key}[{i}] lacks {' or '.join(map(repr, _FIELDS[key]))}")
    return [entry[1] for entry in found], [entry[2] for entry in found]


def _joined(path: Path, ids: list[int], image_ids: list[int], categories: list[int]) -> np.ndarray:
    """The category of each image, int64 [N]."""
    images, annotated = pd.Index(ids, dtype="int64"), pd.Index(image_ids, dtype="int64")
    for wrong, problem in (
        (images[images.duplicated()], "two images have the id {}"),
        (annotated[~annotated.isin(images)], "an annotation is of image {}, which is not there"),
        (annotated[annotated.duplicated()], "image {} has more than one annotation"),
        (images[~images.isin(annotated)], "image {} has no annotation"),
    ):
        if len(wrong):
            raise UserError(f"{path}: {problem.format(wrong[0])}")
    return pd.Series(categories, annotated, dtype="int64")[images].to_numpy()
