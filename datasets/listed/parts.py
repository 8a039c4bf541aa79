"""From the parts of a data set on disk to LongTailedData: what must hold across them, and their splits."""

import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from datasets.listed.lists import Report, shown
from datasets.long_tail import TEST_SEED, held_out_mask
from datasets.split import cut, fitting_counts
from datasets.types import FileSet, FileViews, LongTailedData

Parts = dict[str, FileSet]  # by "train", "val", "test"; the last two may be absent


def check_parts(parts: Parts, report: Report) -> Parts:
    """No image in two places, and no class in val or test that train lacks; labels become ranks."""
    _check_distinct(parts, report)
    source = parts["train"].source
    classes = np.unique(parts["train"].labels.numpy())
    if len(classes) < 2:
        report(f"{source} has {len(classes)} class(es) of images, 2 or more are needed")
    ranked = {}
    for name, part in parts.items():
        labels = part.labels.numpy()
        unknown = np.flatnonzero(~np.isin(labels, classes))
        if len(unknown):
            of_what = f"class {labels[unknown[0]]} of {shown(part.paths.raw(unknown[0]))}"
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
        where = f"twice in {parts[one].source}"
        if one != other:
            where = f"in both {parts[one].source} and {parts[other].source}"
        report(f"{shown(paths[0])} is {where} ({len(paths)} such): every image belongs to one part, once")


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
    test_fraction: float | None = None,
    val_source: str = "own",
    **split_options: object,
) -> LongTailedData:
    """The data set of these parts, checked, and made long-tailed by `imb_ratio`, or as it is (None).

    With a `test_fraction` that share of the training images, see `held_out_mask`, is the test part.
    `split_options` are those of `split_long_tailed`.
    """
    parts, counts = check_parts(parts, report), None
    if test_fraction is not None:
        train = parts["train"]
        chosen = held_out_mask(train.labels.numpy(), test_fraction, TEST_SEED)
        if len(train) and not chosen.any():
            report("--test_fraction takes no image: every class has a single one")
        parts |= {"train": train.take(np.flatnonzero(~chosen)), "test": train.take(np.flatnonzero(chosen))}
    if imb_ratio is not None and len(parts["train"]):
        available = np.bincount(parts["train"].labels.numpy(), minlength=len(class_names)).tolist()
        counts = fitting_counts(available, imb_ratio)
        first, last = (f"{counts[k]} images of class {k}, {class_names[k]}" for k in (0, len(counts) - 1))
        notes = [*notes, f"made long-tailed by --imb_ratio {imb_ratio:g}: {first}, down to {last}"]
    return cut(name, parts, class_names, views, counts, notes, val_source=val_source, **split_options)
