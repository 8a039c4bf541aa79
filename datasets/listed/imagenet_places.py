"""ImageNet-LT and Places-LT: published split lists over the images of ImageNet and Places365."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets.listed.lists import read_list
from datasets.listed.parts import Part, Report, assemble, check_parts, folder_names
from datasets.listed.published import Published, as_listed, check_request, check_totals, find_lists, place
from datasets.types import FileViews, LongTailedData
from utils.base.errors import raise_problem

# Source of lists and totals: Liu et al. 2019
IMAGENET_LT = Published(
    name="imagenet_lt",
    num_classes=1000,
    images={"train": 115_846, "val": 20_000, "test": 50_000},
    most=1280,
    least=5,
    lists={part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")},
    address="ImageNet_LT",
)
PLACES_LT = Published(
    name="places_lt",
    num_classes=365,
    images={"train": 62_500, "val": 7_300, "test": 36_500},
    most=4980,
    least=5,
    lists={part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")},
    address="Places_LT",
)
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"


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


def build_imagenet_lt(data_dir: Path, **options: object) -> LongTailedData:
    """ImageNet-LT; `options` are those of `_build`, `data_dir` holds ImageNet or its Kaggle archive.

    Raises:
        UserError: see `_build`.
    """
    expected = (
        f"{data_dir}/train/n01440764/n01440764_190.JPEG and, of the test images, "
        f"{data_dir}/val/n01440764/ILSVRC2012_val_00000293.JPEG or "
        f"{data_dir}/val/ILSVRC2012_val_00000293.JPEG"
    )
    roots = (data_dir, data_dir / KAGGLE_FOLDER)
    return _build(IMAGENET_LT, data_dir, roots, (as_listed, flat_val), expected, **options)


def build_places_lt(data_dir: Path, **options: object) -> LongTailedData:
    """Places-LT; `options` are those of `_build`, `data_dir` holds Places365 in class folders or as shipped.

    Raises:
        UserError: see `_build`.
    """
    expected = (
        f"{data_dir}/train/airfield/00002049.jpg and, of the test images, {data_dir}/val/airfield/"
        f"Places365_val_00003597.jpg or {data_dir}/val/Places365_val_00003597.jpg; or Places365's own "
        f"{data_dir}/data_256/a/airfield/00002049.jpg and {data_dir}/val_256/Places365_val_00003597.jpg"
    )
    shipped = [partial(by_letter, size) for size in (b"256", b"large")]
    return _build(PLACES_LT, data_dir, (data_dir,), (as_listed, flat_val, *shipped), expected, **options)


def _build(
    published: Published,
    data_dir: Path,
    roots: tuple[Path, ...],
    layouts: tuple[Callable[[bytes], bytes], ...],
    expected: str,
    views: FileViews,
    imb_ratio: float | None = None,
    split_dir: Path | None = None,
    allow_partial: bool = False,
    report: Report = raise_problem,
    **split_options: object,
) -> LongTailedData:
    """Read the lists, check them against each other and the published totals, find the images.

    Raises:
        UserError: folders or lists missing or broken, lists of something else, no images, a ratio given.
    """
    folders = check_request(published.name, data_dir, split_dir, imb_ratio)
    parts = {
        part: Part(str(path), read_list(path, data_dir, report))
        for part, path in find_lists(published, folders).items()
    }
    notes = check_totals(published, parts, allow_partial, report)
    names = folder_names(parts["train"].images)
    parts = {name: place(part, roots, layouts, expected, report) for name, part in parts.items()}
    parts = check_parts(parts, report)
    return assemble(published.name, parts, names, views, notes=tuple(notes), **split_options)
