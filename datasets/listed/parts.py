"""From the parts of a data set on disk to LongTailedData: what must hold across them, and their splits."""

import posixpath
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from datasets.listed.lists import shown
from datasets.split import fitting_counts, split_long_tailed
from datasets.types import FileSet, FileViews, LongTailedData

Parts = dict[str, FileSet]  # by "train", "val", "test"; "val" may be absent
Report = Callable[[str], None]


def check_parts(parts: Parts, report: Report) -> Parts:
    """Labels without gaps, no class in val or test that train lacks, no image in two places.

    Where `report` goes on, labels become ranks among those of train, so that the rest can go on as well.
    """
    _check_distinct(parts, report)
    source = parts["train"].source
    classes = np.unique(parts["train"].labels.numpy())
    if len(classes) < 2:
        report(f"{source} has {len(classes)} class(es) of images, 2 or more are needed")
    gaps = np.flatnonzero(classes != np.arange(len(classes)))
    if len(gaps):
        found = f"class {gaps[0]} has no training image, class {classes[-1]} has"
        report(f"{source}: {found}: labels must run from 0 without gaps")
    ranked = {}
    for name, part in parts.items():
        labels = part.labels.numpy()
        unknown = np.flatnonzero(~np.isin(labels, classes))
        if len(unknown):
            first = unknown[0]
            of_what = f"class {labels[first]} of {shown(part.paths.raw(first))}"
            report(f"{part.source}: {of_what} has no training image in {source}")
        ranks = np.searchsorted(classes, labels).clip(max=max(len(classes) - 1, 0))
        ranked[name] = replace(part, labels=torch.from_numpy(ranks))
    return ranked


def _check_distinct(parts: Parts, report: Report) -> None:
    seen: dict[bytes, str] = {}
    clashes: dict[tuple[str, str], list[bytes]] = {}
    for name, part in parts.items():
        for path in part.paths.every():
            if path in seen:
                clashes.setdefault((seen[path], name), []).append(path)
            seen.setdefault(path, name)
    for (one, other), paths in clashes.items():
        more = f", and so are {len(paths) - 1} more" if len(paths) > 1 else ""
        where = f"twice in {parts[one].source}"
        if one != other:
            where = f"in both {parts[one].source} and {parts[other].source}"
        report(f"{shown(paths[0])} is {where}{more}: every image belongs to one part, once")


def folder_names(train: FileSet) -> list[str]:
    """Class names: the folder of each class's first training image, where these differ; else the numbers."""
    _, first = np.unique(train.labels.numpy(), return_index=True)
    names = [as_name(posixpath.basename(posixpath.dirname(train.paths.raw(i)))) for i in first.tolist()]
    distinct = len(set(names)) == len(names) and all(names)
    return names if distinct else [str(label) for label in range(len(names))]


def as_seen(name: str) -> str:
    """A name as people see it: an accented letter may be one character or two, by who wrote it."""
    return unicodedata.normalize("NFC", name)


def as_name(raw: bytes) -> str:
    """A name that any file can hold, whatever bytes the file system has."""
    return raw.decode("utf-8", "backslashreplace")


def assemble(
    name: str,
    parts: Parts,
    class_names: list[str],
    views: FileViews,
    report: Report,
    imb_ratio: float | None = None,
    notes: Sequence[str] = (),
    val_source: str = "own",
    **split_options: object,
) -> LongTailedData:
    """The data set of these parts, checked, and made long-tailed by `imb_ratio`, or as it is (None).

    `split_options` are those of `split_long_tailed`.
    """
    parts = check_parts(parts, report)
    train, labels = parts["train"], parts["train"].labels.numpy()
    available = np.bincount(labels, minlength=len(class_names)).tolist()
    counts = None if imb_ratio is None else fitting_counts(available, imb_ratio)
    split = split_long_tailed(labels, counts, val_source=val_source, has_own="val" in parts, **split_options)
    notes = [*notes, *split.notes]
    if counts is not None:
        first, last = (f"of class {k}, {class_names[k]}" for k in (0, len(counts) - 1))
        made = f"{counts[0]} images {first}, down to {counts[-1]} {last}"
        notes.append(f"made long-tailed by --imb_ratio {imb_ratio:g}: {made}")
    val, used = None if split.val is None else train.take(split.val), {"test": parts["test"]}
    if split.val_source == "own":
        used["validation"] = val = parts["val"]
    for word, images in used.items():
        missing = len(class_names) - len(images.labels.unique())
        if missing:
            notes.append(f"{missing} class(es) have no {word} image and are left out of the {word} means")
    return LongTailedData(
        name=name,
        class_names=class_names,
        class_counts=available if counts is None else counts,
        train=train if counts is None and split.val is None else train.take(split.train),
        val=val,
        val_source=split.val_source,
        test=parts["test"],
        views=views,
        notes=notes,
    )
