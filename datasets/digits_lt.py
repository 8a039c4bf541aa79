"""Digits-LT: scikit-learn's 1,797 handwritten digits (8x8, grey), made long-tailed. Nothing is downloaded."""

from pathlib import Path

import numpy as np

from datasets.long_tail import by_class, long_tail_counts
from datasets.split import cut_long_tail
from datasets.types import LongTailedData, ViewSpec

MAX_COUNT = 110
TEST_PER_CLASS = 50
# digits are not symmetric: no flips and no mirror image at test
VIEWS = ViewSpec(mean=(0.3,), std=(0.37,), padding=1, mirror=False)


def build_digits_lt(data_dir: Path | None, imb_ratio: float, **split_options: object) -> LongTailedData:
    """110 images of class 0 down to 110 / imb_ratio of class 9; test: the last 50 images of each class.

    They come with scikit-learn, whatever `data_dir`. `split_options` are those of `split_long_tailed`.
    """
    from sklearn.datasets import load_digits

    counts = long_tail_counts(10, MAX_COUNT, imb_ratio)
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:, None]  # 0..16 -> 0..240, [N, 1, 8, 8]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[[of_class[-TEST_PER_CLASS:] for of_class in by_class(labels).values()]] = True
    train, test = ((images[mask], labels[mask]) for mask in (~is_test, is_test))
    names = [str(label) for label in range(10)]
    return cut_long_tail("digits_lt", train, test, counts, names, VIEWS, **split_options)
