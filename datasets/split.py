"""A long-tailed set as it is, or cut out of a balanced one: its training and validation images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from datasets.long_tail import held_out_mask, keep_indices, long_tail_counts, unused_indices
from datasets.types import FileSet, ImageSet, LongTailedData, ViewSpec
from utils.base.errors import UserError

_NO_VAL = {
    "own": "the data set has no validation images of its own",
    "unused": "the set keeps every image, so none is unused",
    "none": "validation images are needed here",
}


class Split(NamedTuple):
    """Index arrays into the original training images; `val` is None where none of them validate."""

    train: np.ndarray
    val: np.ndarray | None
    val_source: str


def split_long_tailed(
    labels: np.ndarray,
    counts: list[int] | None,
    subset_seed: int | None = None,
    val_source: str = "unused",
    val_fraction: float = 0.1,
    val_required: bool = False,
    has_own: bool = False,
) -> Split:
    """Keep `counts` images a class (None: all, in their own order), and find validation images beside them.

    labels int64 [N]. `val_source`: `own`, the data set's own if it `has_own`, else where none is required as
    `unused`; `unused`, up to 20 images a class that the long-tailed set leaves out; `heldout`, a stratified
    share of the long-tailed set, the same one for every run seed; `none`.
    """
    kept = np.arange(len(labels)) if counts is None else keep_indices(labels, counts, subset_seed)
    spare = len(kept) < len(labels)
    if val_source == "own" and has_own:
        return Split(kept, None, "own")
    if val_source == "heldout":
        held_out = held_out_mask(labels[kept], val_fraction, seed=subset_seed or 0)
        return Split(kept[~held_out], kept[held_out], "heldout")
    if spare and (val_source == "unused" or (val_source == "own" and not val_required)):
        return Split(kept, unused_indices(labels, kept), "unused")
    if val_required:
        ways = ["own"] * has_own + ["unused"] * spare + ["heldout"]
        raise UserError(f"{_NO_VAL[val_source]}: take --val_source {' or '.join(ways)}")
    return Split(kept, None, "none")


def fitting_counts(available: list[int], imb_ratio: float) -> list[int]:
    """The law of `long_tail_counts` from the largest first count for which every class has enough images."""
    num_classes = len(available)
    long_tail_counts(num_classes, max(available), imb_ratio)  # refuses a ratio that no first count could have
    steps = max(num_classes - 1, 1)
    top = min(int((count + 1) * imb_ratio ** (k / steps)) for k, count in enumerate(available)) + 1
    while True:
        if not int(top * imb_ratio ** (-(num_classes - 1) / steps)):
            order = "leaves a class without an image, as the classes lie in the order of their names"
            raise UserError(f"--imb_ratio {imb_ratio:g} {order}: take a smaller one")
        counts = long_tail_counts(num_classes, top, imb_ratio)
        if all(count <= limit for count, limit in zip(counts, available, strict=True)):
            return counts
        top -= 1


def cut(
    name: str,
    parts: Mapping[str, ImageSet | FileSet],
    class_names: list[str],
    views: ViewSpec,
    counts: list[int] | None,
    notes: Sequence[str] = (),
    **split_options: object,
) -> LongTailedData:
    """The data set of `parts`: train, and where they are its own test and val, labelled from 0 on.

    Of each class `counts` training images are kept, or all (None); `split_options` are those of
    `split_long_tailed`.
    """
    train, labels = parts["train"], parts["train"].labels.numpy()
    split = split_long_tailed(labels, counts, has_own="val" in parts, **split_options)
    val = None if split.val is None else train.take(split.val)
    if split.val_source == "own":
        val = parts["val"]
    notes, test = list(notes), parts.get("test")
    if test is None and val is None:
        ways = "in stage 1 --test_fraction 0.2 takes some from training, --val_fraction 0.1 validation images"
        raise UserError(f"{name} has no test images with labels: {ways} instead, and --predict needs none")
    for word, images in (("test", test), ("validation", val)):
        missing = 0 if images is None else len(class_names) - len(images.labels.unique())
        if missing:
            notes.append(f"{missing} class(es) have no {word} image and are left out of the {word} means")
    return LongTailedData(
        name=name,
        class_names=class_names,
        class_counts=counts or np.bincount(labels, minlength=len(class_names)).tolist(),
        train=train if counts is None and split.val is None else train.take(split.train),
        val=val,
        val_source=split.val_source,
        test=test,
        views=views,
        notes=notes,
    )


def cut_long_tail(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    counts: list[int],
    class_names: list[str],
    views: ViewSpec,
    **split_options: object,
) -> LongTailedData:
    """`cut` of `train` and `test` in memory: images uint8 [N, C, H, W] and labels int64 [N]."""
    arrays = {"train": train, "test": test}
    parts = {part: ImageSet(*map(torch.from_numpy, pair)) for part, pair in arrays.items()}
    return cut(name, parts, class_names, views, counts, **split_options)
