"""Train and validation indices of a long-tailed set: as it is, or cut out of a larger one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.long_tail import held_out_mask, keep_indices, long_tail_counts, unused_indices
from utils.base.errors import UserError


class Split(NamedTuple):
    """Index arrays into the original training images; `val` is None where none of them validate."""

    train: np.ndarray
    val: np.ndarray | None
    val_source: str
    notes: Sequence[str] = ()


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

    labels int64 [N]. `val_source`: `own`, the data set's own if it `has_own`, else as `unused`; `unused`, up
    to 20 images a class that the long-tailed set leaves out; `heldout`, a stratified share of the long-tailed
    set, the same one for every run seed; `none`.

    Raises UserError: validation is required and cannot be made, or `own` is required and there is none.
    """
    kept = np.arange(len(labels)) if counts is None else keep_indices(labels, counts, subset_seed)
    if val_source == "own" and has_own:
        return Split(kept, None, "own")
    if val_source == "heldout":
        held_out = held_out_mask(labels[kept], val_fraction, seed=subset_seed or 0)
        return Split(kept[~held_out], kept[held_out], "heldout")
    ways = ["own"] * has_own + ["unused"] * (len(kept) < len(labels)) + ["heldout"]
    if val_source == "unused" or (val_source == "own" and not val_required):
        unused = unused_indices(labels, kept) if len(kept) < len(labels) else kept[:0]
        if len(unused):
            missing = len(counts) - len(np.unique(labels[unused]))
            note = f"{missing} class(es) have no validation image and are left out of the validation mean"
            return Split(kept, unused, "unused", [note] if missing else [])
    if val_required:
        why = {
            "own": "the data set has no validation images of its own",
            "unused": "the set keeps every image, so none is unused",
        }.get(val_source, "validation images are needed here")
        raise UserError(f"{why}: take --val_source {' or '.join(ways)}")
    return Split(kept, None, "none")


def fitting_counts(available: list[int], imb_ratio: float) -> list[int]:
    """The law of `long_tail_counts` from the largest first count for which every class has enough images."""
    num_classes = len(available)
    long_tail_counts(num_classes, max(available), imb_ratio)  # refuses a ratio that no first count could have
    steps = max(num_classes - 1, 1)
    top = min(int((count + 1) * imb_ratio ** (k / steps)) for k, count in enumerate(available)) + 1
    while True:
        counts = long_tail_counts(num_classes, top, imb_ratio)
        if all(count <= limit for count, limit in zip(counts, available, strict=True)):
            return counts
        top -= 1
