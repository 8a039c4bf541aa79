"""Published long-tailed sets: their split lists, found or fetched; their totals, checked; their images."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.fetch import fetch
from datasets.listed.lists import read_list, shown
from datasets.listed.parts import Parts, Report, assemble, folder_names
from datasets.types import FileSet, FileViews, LongTailedData, PathTable
from utils.base.errors import UserError, raise_problem

LIST_ADDRESS = "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/main/data"
Layout = Callable[[bytes], bytes]  # from a listed path to the one in the folder


@dataclass(frozen=True)
class Published:
    """What is known of a set: its classes, images by part, training images of the largest and smallest class.

    `lists` are its files' names by part, `address` their folder below LIST_ADDRESS, `otherwise` says what may
    stand in for them. Images lie in one of `folders` in one of `layouts`: in words, `expected` below {0}.
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
    otherwise: str = ""


def as_listed(path: bytes) -> bytes:
    """The tree of the lists themselves."""
    return path


def build_published(
    published: Published,
    data_dir: Path,
    views: FileViews,
    imb_ratio: float | None = None,
    split_dir: Path | None = None,
    allow_partial: bool = False,
    report: Report = raise_problem,
    find: Callable[..., dict[str, Path]] | None = None,
    read: Callable[..., tuple[Parts, list[str]]] | None = None,
    **split_options: object,
) -> LongTailedData:
    """Read what names the images, check it against the published totals and itself, find the images.

    `find` and `read` do so in place of `find_lists` and `read_lists`, and a note says what was read;
    `split_options` are those of `datasets.listed.parts.assemble`.
    """
    if imb_ratio is not None:
        raise UserError(f"{published.name} is long-tailed as it is: leave --imb_ratio out")
    folders = [data_dir] if split_dir is None else [split_dir, data_dir]
    for option, folder in zip(("--data_dir", "--split_dir"), reversed(folders), strict=False):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: {option} must name that of {published.name}'s files")
    files = (find or find_lists)(published, folders)
    parts, names = (read or read_lists)(files, data_dir, report)
    notes = [f"read from {' and '.join(map(str, files.values()))}"] if find else []
    notes += check_totals(published, parts, allow_partial, report)
    roots, expected = [data_dir / folder for folder in published.folders], published.expected.format(data_dir)
    parts = {name: place(part, roots, published.layouts, expected, report) for name, part in parts.items()}
    return assemble(published.name, parts, names, views, report, notes=notes, **split_options)


def read_lists(files: dict[str, Path], root: Path, report: Report) -> tuple[Parts, list[str]]:
    """The parts that lists name, and the names of their classes."""
    parts = {part: read_list(path, root, report) for part, path in files.items()}
    return parts, folder_names(parts["train"])


def find_lists(published: Published, folders: list[Path]) -> dict[str, Path]:
    """The list of each part, from the first of `folders` that has it; missing ones are fetched into that."""
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
        address = f"{LIST_ADDRESS}/{published.address}"
        fetch(address, list(lines), folders[0], settle, missing, remedy + published.otherwise)
    return found


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
    for root in roots:
        for layout in layouts:
            if os.path.isfile(os.path.join(os.fsencode(root), layout(first))):
                moved = PathTable([layout(path) for path in part.paths.every()])
                return replace(part, root=root, paths=moved)
    report(f"{part.source}: its first image {shown(first)} is not there: expected {expected}")
    return part
