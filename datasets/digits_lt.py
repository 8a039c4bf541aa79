"""Digits-LT: scikit-learn's 1,797 handwritten digits (8x8, grey), made long-tailed. Nothing is downloaded."""

from pathlib import Path

import numpy as np

from datasets.long_tail import long_tail_counts
from datasets.split import split_long_tailed
from datasets.types import ImageSet, LongTailedData, ViewSpec

MAX_COUNT = 110
TEST_PER_CLASS = 50
# digits are not symmetric: no flips and no mirror image at test
VIEWS = ViewSpec(mean=(0.3,), std=(0.37,), padding=1, mirror=False)


def build_digits_lt(data_dir: Path | None, imb_ratio: float, **split_options: object) -> LongTailedData:
    """110 images of class 0 down to 110 / imb_ratio of class 9; test: the last 50 images of each class.

    They come with scikit-learn, whatever `data_dir`. `split_options` are those of `split_long_tailed`.

    Raises:
        UserError: a ratio out of range, or validation images that cannot be had.
    """
    from sklearn.datasets import load_digits

    counts = long_tail_counts(10, MAX_COUNT, imb_ratio)
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:, None]  # 0..16 -> 0..240, [N, 1, 8, 8]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[-TEST_PER_CLASS:]] = True
    pool = np.flatnonzero(~is_test)
    split = split_long_tailed(labels[pool], counts, **split_options)
    train, val = pool[split.train], None if split.val is None else pool[split.val]
    return LongTailedData(
        name="digits_lt",
        class_names=[str(label) for label in range(10)],
        class_counts=counts,
        train=ImageSet.from_numpy(images[train], labels[train]),
        val=None if val is None else ImageSet.from_numpy(images[val], labels[val]),
        val_source=split.val_source,
        test=ImageSet.from_numpy(images[is_test], labels[is_test]),
        views=VIEWS,
        notes=split.notes,
    )
