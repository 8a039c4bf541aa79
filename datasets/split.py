"""Train and validation indices of a long-tailed set that is cut out of a balanced one."""

from dataclasses import dataclass, field

import numpy as np

from datasets.long_tail import held_out_mask, keep_indices, unused_indices
from utils.errors import UserError

VAL_SOURCES = ("unused", "heldout", "none")


@dataclass(frozen=True)
class Split:
    """Index arrays into the original training images; `val` is None where there are no validation images."""

    train: np.ndarray
    val: np.ndarray | None
    val_source: str
    notes: list[str] = field(default_factory=list)


def split_long_tailed(
    labels: np.ndarray,
    counts: list[int],
    subset_seed: int | None = None,
    val_source: str = "unused",
    val_fraction: float = 0.1,
    val_required: bool = False,
) -> Split:
    """Keep `counts` images a class, and find validation images that no training run sees.

    `unused`: up to 20 images a class that the long-tailed set leaves out. `heldout`: a stratified share of
    the long-tailed set, set aside (the same one for every run seed). `none`: no validation. labels int64 [N].

    Raises:
        UserError: validation is required and cannot be made.
    """
    kept = keep_indices(labels, counts, subset_seed)
    if val_source == "heldout":
        held_out = held_out_mask(labels[kept], val_fraction, seed=subset_seed or 0)
        return Split(kept[~held_out], kept[held_out], "heldout")
    if val_source == "unused":
        unused = unused_indices(labels, kept)
        if len(unused):
            missing = len(counts) - len(np.unique(labels[unused]))
            note = f"{missing} class(es) have no validation image and are left out of the validation mean"
            return Split(kept, unused, "unused", [note] if missing else [])
        if val_required:
            raise UserError("the set keeps every image, so none is unused: take --val_source heldout")
    if val_required:
        raise UserError("validation images are needed here: take --val_source unused or heldout")
    return Split(kept, None, "none")
