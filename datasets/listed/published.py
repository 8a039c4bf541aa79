"""ImageNet-LT, Places-LT, iNaturalist 2018: lists found or fetched, totals checked, images in known layouts.

iNaturalist has official annotations beside the community's text lists, and no test labels: its validation
images are the test part.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from datasets.fetch import fetch
from datasets.listed.lists import Report, read_annotations, read_list, shown
from datasets.listed.parts import Parts, assemble, folder_names
from datasets.types import FileSet, FileViews, LongTailedData, PathTable
from utils.base.errors import UserError, raise_problem

LIST_ADDRESS = "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/main/data"
ANNOTATIONS_ADDRESS = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"
Layout = Callable[[bytes], bytes]  # from a listed path to the one in the folder


@dataclass(frozen=True)
class Published:
    """What is known of a set: its classes, images by part, training images of the largest and smallest class.

    `lists` are its files' names by part, `address` their folder below LIST_ADDRESS, and `annotations` the
    files that may stand in for them. Images lie in one of `folders` in one of `layouts`: in words, `expected`
    below {0}.
    """

    name: str
    num_classes: int
    images: dict[str, int]
    most: int
    least: int
    lists: dict[str, str]
    address: str
    layouts: tuple[Layout, ...]
    expected: str
    folders: tuple[str, ...] = ("",)
    annotations: dict[str, str] = field(default_factory=dict)


def build_published(
    published: Published,
    data_dir: Path,
    views: FileViews,
    imb_ratio: float | None = None,
    split_dir: Path | None = None,
    allow_partial: bool = False,
    report: Report = raise_problem,
    **split_options: object,
) -> LongTailedData:
    """Read what names the images, check it against the published totals and itself, find the images.

    `split_options` are those of `datasets.listed.parts.assemble`.
    """
    if imb_ratio is not None:
        raise UserError(f"{published.name} is long-tailed as it is: leave --imb_ratio out")
    folders = [data_dir] if split_dir is None else [split_dir, data_dir]
    for option, folder in zip(("--data_dir", "--split_dir"), reversed(folders), strict=False):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: {option} must name that of {published.name}'s files")
    files = find_lists(published, folders)
    parts, names = read_parts(files, data_dir, report)
    notes = [f"read from {' and '.join(map(str, files.values()))}"] if published.annotations else []
    notes += check_totals(published, parts, allow_partial, report)
    roots, expected = [data_dir / folder for folder in published.folders], published.expected.format(data_dir)
    parts = {name: place(part, roots, published.layouts, expected, report) for name, part in parts.items()}
    return assemble(published.name, parts, names, views, report, notes=notes, **split_options)


def find_lists(published: Published, folders: list[Path]) -> dict[str, Path]:
    """The file of each part, from the first of `folders` that has it; missing lists are fetched into that.

    Where there are annotations, whole sets of files alone count, in annotations/ of the last folder as well.
    """
    if published.annotations:
        for folder in (*folders, folders[-1] / "annotations"):
            for names in (published.annotations, published.lists):
                files = {part: folder / name for part, name in names.items()}
                if all(path.exists() for path in files.values()):
                    return files
    found = {
        part: next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)
        for part, name in published.lists.items()
    }
    lines = {path.name: published.images[part] for part, path in found.items() if not path.exists()}

    def settle(scratch: Path) -> Iterable[Path]:
        for name, expected in lines.items():
            problems: list[str] = []
            if len(read_list(scratch / name, scratch, problems.append)) != expected or problems:
                raise OSError(f"{name} there is something else than the list of {expected:,} lines")
        return [scratch / name for name in lines]

    if lines:
        wanted = [f"{name} ({published.images[part]:,} lines)" for part, name in published.lists.items()]
        missing = f"no {' and no '.join(lines)} in {' or '.join(map(str, folders))}"
        remedy = f"put {', '.join(wanted)} into {folders[0]}, or name their folder with --split_dir"
        if published.annotations:
            either = " and ".join(published.annotations.values())
            remedy += f"; or {either} out of the archives at {ANNOTATIONS_ADDRESS}"
        fetch(f"{LIST_ADDRESS}/{published.address}", list(lines), folders[0], settle, missing, remedy)
    return found


def read_parts(files: dict[str, Path], root: Path, report: Report) -> tuple[Parts, list[str]]:
    """The parts that lists or annotations (.json) name, and the names of their classes.

    Classes of annotations bear the names of their categories where these differ, else those of folders.
    """
    if files["train"].suffix == ".json":
        read = {part: read_annotations(path, root, report) for part, path in files.items()}
        parts, known = {part: images for part, (images, _) in read.items()}, read["train"][1]
        names = [known.get(category) for category in parts["train"].labels.unique().tolist()]
        distinct = None not in names and len(set(names)) == len(names)
        return parts, names if distinct else folder_names(parts["train"])
    parts = {part: read_list(path, root, report) for part, path in files.items()}
    classes = parts["train"].labels.unique().tolist()
    gap = next((rank for rank, label in enumerate(classes) if rank != label), None)
    if gap is not None:
        found = f"class {gap} has no training image, class {classes[-1]} has"
        report(f"{files['train']}: {found}: labels must run from 0 without gaps")
    return parts, folder_names(parts["train"])


def check_totals(published: Published, parts: Parts, allow_partial: bool, report: Report) -> list[str]:
    """Compare with what is published: a difference goes to `report`, or if allowed into the notes."""
    counts = np.unique(parts["train"].labels.numpy(), return_counts=True)[1]
    wrong = [
        f"{len(parts[part]):,} {part} images instead of {images:,}"
        for part, images in published.images.items()
        if len(parts[part]) != images
    ]
    if len(counts) != published.num_classes:
        wrong.append(f"{len(counts):,} classes instead of {published.num_classes:,}")
    elif (counts.max(), counts.min()) != (published.most, published.least):
        wanted = f"instead of {published.most:,} down to {published.least}"
        wrong.append(f"classes of {counts.max():,} down to {counts.min()} training images {wanted}")
    difference = f"not the published {published.name}: {', '.join(wrong)}"
    if wrong and not allow_partial:
        sources = ", ".join(part.source for part in parts.values())
        report(f"{difference} in {sources}; take the published lists, or go on with --allow_partial")
    return [difference] if wrong and allow_partial else []


def place(
    part: FileSet, roots: Iterable[Path], layouts: Iterable[Layout], expected: str, report: Report
) -> FileSet:
    """Find the part's first image below a root in one of the layouts, and take all its paths to be so.

    `expected` shows the tree where nothing fits.
    """
    if not len(part):  # reported where it was read
        return part
    first = part.paths.raw(0)
    for root, layout in product(roots, layouts):
        if os.path.isfile(os.path.join(os.fsencode(root), layout(first))):
            return replace(part, root=root, paths=PathTable([layout(path) for path in part.paths.every()]))
    report(f"{part.source}: its first image {shown(first)} is not there: expected {expected}")
    return part


def as_listed(path: bytes) -> bytes:
    """The tree of the lists themselves."""
    return path


def flat_val(path: bytes) -> bytes:
    """val/n01440764/x.JPEG -> val/x.JPEG, as ImageNet is shipped; other folders stay."""
    return b"val/" + path.rpartition(b"/")[2] if path.startswith(b"val/") else path


def by_letter(size: bytes, path: bytes) -> bytes:
    """train/arena-hockey/x.jpg -> data_256/a/arena/hockey/x.jpg, val/arena-hockey/y.jpg -> val_256/y.jpg.

    So Places365 is shipped; `size` is 256 or large.
    """
    part, _, rest = path.partition(b"/")
    folder, _, name = rest.rpartition(b"/")
    if part == b"train":
        return b"/".join((b"data_" + size, folder[:1], folder.replace(b"-", b"/"), name))
    return b"/".join((part + b"_" + size, name))


def in_folder(first: bytes, path: bytes) -> bytes:
    """train_val2018/Plantae/7477/x.jpg -> Plantae/7477/x.jpg behind `first`."""
    return first + path.partition(b"/")[2]


# Source of lists and totals: Liu et al. 2019
IMAGENET_LT = Published(
    name="imagenet_lt",
    num_classes=1000,
    images={"train": 115_846, "val": 20_000, "test": 50_000},
    most=1280,
    least=5,
    lists={part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")},
    address="ImageNet_LT",
    folders=("", "ILSVRC/Data/CLS-LOC"),  # Kaggle's
    layouts=(as_listed, flat_val),
    expected="{0}/train/n01440764/n01440764_190.JPEG and, of the test images, "
    "{0}/val/n01440764/ILSVRC2012_val_00000293.JPEG or {0}/val/ILSVRC2012_val_00000293.JPEG",
)
PLACES_LT = Published(
    name="places_lt",
    num_classes=365,
    images={"train": 62_500, "val": 7_300, "test": 36_500},
    most=4980,
    least=5,
    lists={part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")},
    address="Places_LT",
    layouts=(as_listed, flat_val, partial(by_letter, b"256"), partial(by_letter, b"large")),
    expected="{0}/train/airfield/00002049.jpg and, of the test images, "
    "{0}/val/airfield/Places365_val_00003597.jpg or {0}/val/Places365_val_00003597.jpg; or Places365's own "
    "{0}/data_256/a/airfield/00002049.jpg and {0}/val_256/Places365_val_00003597.jpg",
)
INATURALIST18 = Published(
    name="inaturalist18",
    num_classes=8142,
    images={"train": 437_513, "test": 24_426},
    most=1000,
    least=2,
    lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    address="iNaturalist18",
    annotations={"train": "train2018.json", "test": "val2018.json"},
    layouts=(as_listed, partial(in_folder, b""), partial(in_folder, b"2018/")),
    expected="{0}/train_val2018/Plantae/7477/<image>.jpg, {0} to hold what is in train_val2018, or "
    "torchvision's {0}/2018/Plantae/7477/<image>.jpg",
)
build_imagenet_lt = partial(build_published, IMAGENET_LT)
build_places_lt = partial(build_published, PLACES_LT)
build_inaturalist18 = partial(build_published, INATURALIST18)
