"""iNaturalist 2018: the official annotations or the community's text lists, three layouts of its images.

It has no test labels: the validation images are the test part, and there is no validation part.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.listed.annotations import read_annotations
from datasets.listed.parts import Parts, Report, folder_names
from datasets.listed.published import Published, as_listed, build_published, find_lists, read_lists
from datasets.types import FileSet

ANNOTATIONS = {"train": "train2018.json", "test": "val2018.json"}
ANNOTATIONS_ADDRESS = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"


def without_first_folder(path: bytes) -> bytes:
    """train_val2018/Plantae/7477/x.jpg -> Plantae/7477/x.jpg."""
    return path.partition(b"/")[2]


def as_torchvision(path: bytes) -> bytes:
    """train_val2018/Plantae/7477/x.jpg -> 2018/Plantae/7477/x.jpg."""
    return b"2018/" + without_first_folder(path)


INATURALIST18 = Published(
    name="inaturalist18",
    num_classes=8142,
    images={"train": 437_513, "test": 24_426},
    most=1000,
    least=2,
    lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    address="iNaturalist18",
    layouts=(as_listed, without_first_folder, as_torchvision),
    expected="{0}/train_val2018/Plantae/7477/<image>.jpg, {0} to hold what is in train_val2018, or "
    "torchvision's {0}/2018/Plantae/7477/<image>.jpg",
    otherwise=f"; or {' and '.join(ANNOTATIONS.values())} out of the archives at {ANNOTATIONS_ADDRESS}",
)


def find_files(published: Published, folders: list[Path]) -> dict[str, Path]:
    """Annotations or lists in `folders` and in annotations/ of the last, the annotations first in each."""
    choices = [
        {part: folder / name for part, name in files.items()}
        for folder in (*folders, folders[-1] / "annotations")
        for files in (ANNOTATIONS, published.lists)
    ]
    complete = (files for files in choices if all(path.exists() for path in files.values()))
    return next(complete, None) or find_lists(published, folders)


def read_files(files: dict[str, Path], root: Path, report: Report) -> tuple[Parts, list[str]]:
    """The parts, and the class names: those of the categories where they differ, else the folders'.

    Labels are the ranks of the category ids, which for the official files are the ids themselves.
    """
    if files["train"].name != ANNOTATIONS["train"]:
        return read_lists(files, root, report)
    read = {part: read_annotations(path, report) for part, path in files.items()}
    classes = np.unique(read["train"].categories)
    parts = {}
    for part, found in read.items():
        labels = np.searchsorted(classes, found.categories).clip(max=len(classes) - 1)
        unknown = classes[labels] != found.categories
        if unknown.any():
            category = found.categories[unknown.argmax()]
            report(f"{files[part]}: category {category} has no training image in {files['train']}")
        parts[part] = FileSet(root, found.paths, torch.from_numpy(labels), source=str(files[part]))
    names = [read["train"].names.get(category) for category in classes.tolist()]
    distinct = None not in names and len(set(names)) == len(names)
    return parts, names if distinct else folder_names(parts["train"])


build_inaturalist18 = partial(build_published, INATURALIST18, find=find_files, read=read_files)
