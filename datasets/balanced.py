"""A balanced set in memory becomes a long-tailed one."""

import numpy as np

from datasets.split import split_long_tailed
from datasets.types import ImageSet, LongTailedData, ViewSpec


def cut_long_tail(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    counts: list[int],
    class_names: list[str],
    views: ViewSpec,
    **split_options: object,
) -> LongTailedData:
    """Keep `counts` training images a class; `split_options` are those of `split_long_tailed`.

    `train` and `test`: images uint8 [N, C, H, W] and labels int64 [N].
    """
    images, labels = train
    split = split_long_tailed(labels, counts, **split_options)
    return LongTailedData(
        name=name,
        class_names=class_names,
        class_counts=counts,
        train=ImageSet.from_numpy(images[split.train], labels[split.train]),
        val=None if split.val is None else ImageSet.from_numpy(images[split.val], labels[split.val]),
        val_source=split.val_source,
        test=ImageSet.from_numpy(*test),
        views=views,
        notes=list(split.notes),
    )
