"""iNaturalist 2018: the official annotations or the community's text lists, three layouts of its images.

It has no test labels: the validation images are the test part, and there is no validation part.
"""

from pathlib import Path

import numpy as np
import torch

from datasets.listed.annotations import read_annotations
from datasets.listed.lists import read_list
from datasets.listed.parts import Part, Parts, Report, assemble, check_parts, folder_names
from datasets.listed.published import Published, as_listed, check_request, check_totals, find_lists, place
from datasets.types import FileSet, FileViews, LongTailedData
from utils.base.errors import raise_problem

INATURALIST18 = Published(
    name="inaturalist18",
    num_classes=8142,
    images={"train": 437_513, "test": 24_426},
    most=1000,
    least=2,
    lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    address="iNaturalist18",
)
ANNOTATIONS = {"train": "train2018.json", "test": "val2018.json"}
ANNOTATIONS_ADDRESS = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"


def build_inaturalist18(
    data_dir: Path,
    views: FileViews,
    imb_ratio: float | None = None,
    split_dir: Path | None = None,
    allow_partial: bool = False,
    report: Report = raise_problem,
    **split_options: object,
) -> LongTailedData:
    """iNaturalist 2018; `split_options` are those of `datasets.parts.assemble`.

    Annotations or lists are looked for in `split_dir`, `data_dir` and its annotations/, the annotations first
    in each. Labels are the ranks of the category ids, which for the official files are the ids themselves.

    Raises:
        UserError: folders or files missing or broken, other totals, no images, a ratio given.
    """
    folders = check_request(INATURALIST18.name, data_dir, split_dir, imb_ratio)
    choices = [
        {part: folder / name for part, name in files.items()}
        for folder in (*folders, data_dir / "annotations")
        for files in (ANNOTATIONS, INATURALIST18.lists)
    ]
    complete = (files for files in choices if all(path.exists() for path in files.values()))
    otherwise = f"; or {' and '.join(ANNOTATIONS.values())} out of the archives at {ANNOTATIONS_ADDRESS}"
    files = next(complete, None) or find_lists(INATURALIST18, folders, otherwise)
    if files["train"].name == ANNOTATIONS["train"]:
        parts, names = _from_annotations(files, data_dir, report)
    else:
        parts = {part: Part(str(path), read_list(path, data_dir, report)) for part, path in files.items()}
        names = folder_names(parts["train"].images)
    notes = [f"read from {' and '.join(part.source for part in parts.values())}"]
    notes += check_totals(INATURALIST18, parts, allow_partial, report)
    expected = (
        f"{data_dir}/train_val2018/Plantae/7477/<image>.jpg, {data_dir} to hold what is in train_val2018, or "
        f"torchvision's {data_dir}/2018/Plantae/7477/<image>.jpg"
    )
    layouts = (as_listed, without_first_folder, as_torchvision)
    parts = {part: place(images, (data_dir,), layouts, expected, report) for part, images in parts.items()}
    parts = check_parts(parts, report)
    return assemble(INATURALIST18.name, parts, names, views, notes=tuple(notes), **split_options)


def without_first_folder(path: bytes) -> bytes:
    """train_val2018/Plantae/7477/x.jpg -> Plantae/7477/x.jpg."""
    return path.partition(b"/")[2]


def as_torchvision(path: bytes) -> bytes:
    """train_val2018/Plantae/7477/x.jpg -> 2018/Plantae/7477/x.jpg."""
    return b"2018/" + without_first_folder(path)


def _from_annotations(files: dict[str, Path], root: Path, report: Report) -> tuple[Parts, list[str]]:
    """The parts, and the class names: those of the categories where they differ, else the folders'."""
    read = {part: read_annotations(path, report) for part, path in files.items()}
    classes = np.unique(read["train"].categories)
    parts = {}
    for part, found in read.items():
        labels = np.searchsorted(classes, found.categories).clip(max=len(classes) - 1)
        unknown = classes[labels] != found.categories
        if unknown.any():
            category = found.categories[unknown.argmax()]
            report(f"{files[part]}: category {category} has no training image in {files['train']}")
        parts[part] = Part(str(files[part]), FileSet(root, found.paths, torch.from_numpy(labels)))
    names = [read["train"].names.get(category) for category in classes.tolist()]
    distinct = None not in names and len(set(names)) == len(names)
    return parts, names if distinct else folder_names(parts["train"].images)
