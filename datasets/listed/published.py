"""Published long-tailed sets: their split lists, found or fetched; their totals, checked; their images."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.fetch import DOWNLOAD_ERRORS, check_place, fetch_file, scratch_folder
from datasets.listed.lists import paths_of, read_list, shown
from datasets.listed.parts import Part, Parts, Report
from datasets.types import PathTable
from utils.base.errors import UserError, complain, reason

LIST_ADDRESS = "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/main/data"


@dataclass(frozen=True)
class Published:
    """What is known of a set: its classes, images by part, training images of the largest and smallest class.

    `lists` are its files' names by part, `address` their folder below LIST_ADDRESS.
    """

    name: str
    num_classes: int
    images: dict[str, int]
    most: int
    least: int
    lists: dict[str, str]
    address: str


def check_request(name: str, data_dir: Path, split_dir: Path | None, imb_ratio: float | None) -> list[Path]:
    """The folders in which to look for lists, in that order.

    Raises:
        UserError: one of them is no folder, or a ratio is asked for.
    """
    if imb_ratio is not None:
        raise UserError(f"{name} is long-tailed as it is: leave --imb_ratio out")
    for option, folder in (("--split_dir", split_dir), ("--data_dir", data_dir)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is no folder: {option} must name the one with the files of {name}")
    return [data_dir] if split_dir is None else [split_dir, data_dir]


def find_lists(published: Published, folders: list[Path], otherwise: str = "") -> dict[str, Path]:
    """The list of each part, from the first of `folders` that has it; missing ones are fetched into that.

    Raises:
        UserError: some are missing and cannot be fetched; names them all, and what may stand in for them.
    """
    found = {
        part: next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)
        for part, name in published.lists.items()
    }
    missing = {part: path for part, path in found.items() if not path.exists()}
    if not missing:
        return found
    check_place(folders[0])
    address = f"{LIST_ADDRESS}/{published.address}"
    names = ", ".join(path.name for path in missing.values())
    complain(f"fetching {names} from {address} into {folders[0]}")
    try:
        with scratch_folder(folders[0]) as scratch:
            for part, path in missing.items():
                fetch_file(f"{address}/{path.name}", scratch / path.name)
                _check_fetched(scratch / path.name, published.images[part], f"{address}/{path.name}")
            for path in missing.values():
                os.replace(scratch / path.name, path)
    except DOWNLOAD_ERRORS as error:
        wanted = ", ".join(
            f"{name} ({published.images[part]:,} lines)" for part, name in published.lists.items()
        )
        raise UserError(
            f"no {' and no '.join(path.name for path in missing.values())} in "
            f"{' or '.join(map(str, folders))}, and fetching from {address} failed ({reason(error)}): put "
            f"{wanted} into {folders[0]}, or name the folder that holds them with --split_dir{otherwise}"
        ) from error
    return found


def _check_fetched(path: Path, lines: int, url: str) -> None:
    problems: list[str] = []
    images = read_list(path, path.parent, problems.append)
    if problems or len(images) != lines:
        raise OSError(f"{url} answers with something else than the list of {lines:,} lines")


def check_totals(published: Published, parts: Parts, allow_partial: bool, report: Report) -> list[str]:
    """Compare with what is published: a difference goes to `report`, or if allowed into the notes."""
    counts = np.unique(parts["train"].images.labels.numpy(), return_counts=True)[1]
    wrong = [
        f"{len(parts[part].images):,} {part} images instead of {images:,}"
        for part, images in published.images.items()
        if len(parts[part].images) != images
    ]
    if len(counts) != published.num_classes:
        wrong.append(f"{len(counts):,} classes instead of {published.num_classes:,}")
    elif (counts.max(), counts.min()) != (published.most, published.least):
        wrong.append(
            f"classes of {counts.max():,} down to {counts.min()} training images instead of "
            f"{published.most:,} down to {published.least}"
        )
    if not wrong:
        return []
    sources = ", ".join(part.source for part in parts.values())
    if allow_partial:
        return [f"not the published {published.name}: {', '.join(wrong)}"]
    report(
        f"not the published {published.name}: {', '.join(wrong)} in {sources}; "
        "take the published lists, or go on with --allow_partial"
    )
    return []


def as_listed(path: bytes) -> bytes:
    """The tree of the lists themselves."""
    return path


def place(
    part: Part,
    roots: Iterable[Path],
    layouts: Iterable[Callable[[bytes], bytes]],
    expected: str,
    report: Report,
) -> Part:
    """Find the part's first image below a root in one of the layouts, and take all its paths to be so.

    A layout maps a listed path to the one in the folder. `expected` shows the tree where nothing fits.
    """
    if not len(part.images):  # reported where it was read
        return part
    first = part.images.paths.raw(0)
    for root in roots:
        for layout in layouts:
            if os.path.isfile(os.path.join(os.fsencode(root), layout(first))):
                moved = PathTable.of([layout(path) for path in paths_of(part.images.paths)])
                return replace(part, images=replace(part.images, root=root, paths=moved))
    report(f"{part.source}: its first image {shown(first)} is not there: expected {expected}")
    return part
