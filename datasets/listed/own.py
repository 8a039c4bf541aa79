"""A user's own images: class folders as torchvision's ImageFolder takes them, or lists as ImageNet-LT's."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.images.decode import ENDINGS, NOT_READ, is_image
from datasets.listed.lists import Report, shown
from datasets.listed.parts import as_name, as_seen, assemble
from datasets.listed.published import as_listed, place, read_parts
from datasets.types import FileSet, FileViews, LongTailedData, PathTable
from utils.base.errors import UserError, raise_problem


def build_folder(
    data_dir: Path,
    views: FileViews,
    imb_ratio: float | None = None,
    test_fraction: float | None = None,
    report: Report = raise_problem,
    **split_options: object,
) -> LongTailedData:
    """Images in train/<class>/ and test/<class>/ or val/<class>/; `split_options` are those of `assemble`.

    Without class folders in test/, val/ is the test part; where images are held out to validate, none is
    needed. They, and with a `test_fraction` the test part, are taken from train/, or where there is neither
    train/ nor val/, from <class>/. Classes are the folders of train/, sorted; images may lie deeper; other
    files, and all beside the class folders, are passed over with a note, hidden ones without, linked folders
    followed.
    """
    folders = {part: part for part in ("train", "val", "test") if (data_dir / part).is_dir()}
    notes, held_out = [], split_options.get("val_source") == "heldout"
    if {"train", "test"} <= folders.keys() and not _seen_in(data_dir / "test")[0]:
        del folders["test"]
        notes.append("test/ has no class folders, so its images have no labels: --predict predicts them")
    if test_fraction is not None and "test" in folders:
        raise UserError(f"{data_dir} has a test/ of its own: leave --test_fraction out")
    if test_fraction is not None or held_out:
        folders = folders or {"train": ""}
    if test_fraction is None and "val" in folders and "test" not in folders:
        folders["test"] = folders.pop("val")
        notes.append("val/ is taken as the test part, since there is no test/<class>/")
    needed = ("train", "test") if test_fraction is None and not held_out else ("train",)
    missing = next((part for part in needed if part not in folders), None)
    if missing:
        expected = "train/<class>/<image> and test/<class>/<image>, val/ beside or instead"
        whole = "train/<class>/" if missing == "test" else "<class>/"
        other = f"or images in {whole}, of which --test_fraction 0.2 takes some, or without test labels"
        other += " --val_fraction 0.1 (stage 1 is told first; evaluate then has --predict alone)"
        lacks = "train/" if missing == "train" else "test/<class>/"
        raise UserError(f"{data_dir} has no {lacks}: expected in it {expected}; {other}")
    classes, _ = _seen_in(data_dir / folders["train"])
    parts = {part: _scan(data_dir, folder, classes, report) for part, folder in folders.items()}
    for part in parts.values():
        notes += passed_over(part.source, part.passed_over)
        if beside := _seen_in(Path(part.source))[1]:
            first = f"{len(beside):,} file(s) beside the class folders are passed over, {beside[0]!r} first"
            notes.append(f"{part.source}: {first}: an image counts within the folder of its class")
    names = [as_name(os.fsencode(name)) for name in classes]
    return assemble("folder", parts, names, views, report, imb_ratio, notes, test_fraction, **split_options)


def build_list(
    data_dir: Path,
    views: FileViews,
    imb_ratio: float | None = None,
    train_list: Path | None = None,
    val_list: Path | None = None,
    test_list: Path | None = None,
    test_fraction: float | None = None,
    report: Report = raise_problem,
    **split_options: object,
) -> LongTailedData:
    """Images named by lists, their paths relative to `data_dir`; `split_options` are those of `assemble`."""
    if train_list is None or (test_list is not None and test_fraction is not None):
        raise UserError("--dataset list needs --train_list, and not both --test_list and --test_fraction")
    given = {"train": train_list, "val": val_list, "test": test_list}
    files = {part: find_list(path, data_dir) for part, path in given.items() if path is not None}
    parts, names = read_parts(files, data_dir, report)
    expected = f"it below --data_dir, {data_dir}"
    parts = {name: place(part, (data_dir,), (as_listed,), expected, report) for name, part in parts.items()}
    return assemble("list", parts, names, views, report, imb_ratio, (), test_fraction, **split_options)


def find_list(path: Path, data_dir: Path) -> Path:
    """A list as it is given, else in `data_dir`."""
    inside = data_dir / path
    return inside if not path.exists() and inside.exists() else path


def images_below(folder: Path) -> FileSet:
    """Every image file below `folder`, by name, or the file itself; their labels, unknown, are 0."""
    if folder.is_file() and is_image(str(folder)):
        return FileSet(folder.parent, PathTable([os.fsencode(folder.name)]), torch.tensor([0]))
    if not folder.is_dir():
        problem = f"is not a folder, and {NOT_READ}" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}")
    paths, others = _found_below(folder, b"", raise_problem)
    return FileSet(folder, PathTable(paths), torch.zeros(len(paths), dtype=torch.int64), tuple(others))


def passed_over(source: str, others: Sequence[bytes]) -> list[str]:
    """A note on the files of `source` that are not read, where there are any."""
    if not others:
        return []
    return [f"{source}: {len(others):,} file(s) passed over, {shown(others[0])} first: {NOT_READ}"]


def _scan(root: Path, part: str, classes: list[str], report: Report) -> FileSet:
    """The images of all class folders of a part, class after class; a class may have no folder."""
    known, spelt = {as_seen(name) for name in classes}, {}
    names, _ = _seen_in(root / part)
    if not names:
        report(f"{root / part} has no class folders: images must lie in {root / part}/<class>/")
    for name in names:
        if as_seen(name) not in known:
            report(f"{root / part / name}: train/ has no class folder of that name")
        if spelt.setdefault(as_seen(name), name) != name:
            report(f"{root / part / name}: two class folders look alike, é as one letter or two: join them")
    paths, others, labels = [], [], []
    for label, name in enumerate(classes):
        if as_seen(name) in spelt:
            folder = os.fsencode(os.path.join(part, spelt[as_seen(name)]))
            found, more = _found_below(root, folder, report)
            paths += found
            others += more
            labels += [label] * len(found)
    ranks = torch.tensor(labels, dtype=torch.int64)
    return FileSet(root, PathTable(paths), ranks, tuple(others), source=f"{root / part}/")


def _seen_in(folder: Path) -> tuple[list[str], list[str]]:
    """The folders in a folder, and what else is in it; nothing that is hidden."""
    names: tuple[list[str], list[str]] = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names[not entry.is_dir()].append(entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    folders, others = (sorted(name for name in kind if not name.startswith(".")) for kind in names)
    return folders, others


def _found_below(root: Path, folder: bytes, report: Report) -> tuple[list[bytes], list[bytes]]:
    """Images at any depth below root/folder, relative to root, in the order of torchvision's ImageFolder.

    And the other files that are not hidden. A folder without an image is reported.
    """
    found: list[tuple[bytes, bytes]] = []  # folder and name: so they sort
    others: list[bytes] = []
    waiting: list[tuple[bytes, tuple]] = [(folder, ())]
    while waiting:
        where, above = waiting.pop()
        path = os.path.join(os.fsencode(root), where)
        try:
            status = os.stat(path)
            here = (*above, (status.st_dev, status.st_ino))
            if here[-1] in above:
                report(f"{os.fsdecode(path)} is a link to a folder above it: remove the link")
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    inside = os.path.join(where, entry.name)
                    if entry.name.startswith(b"."):
                        continue
                    if entry.is_dir():
                        waiting.append((inside, here))
                    elif is_image(os.fsdecode(entry.path)):
                        found.append((where, entry.name))
                    else:
                        others.append(inside)
        except OSError as error:
            report(f"{os.fsdecode(path)} cannot be read: {error.strerror}")
    if not found:
        source = f"{root / os.fsdecode(folder)} holds no image"
        report("".join(passed_over(source, sorted(others))) or f"{source} ({', '.join(ENDINGS)})")
    return [os.path.join(*pair) for pair in sorted(found)], sorted(others)
