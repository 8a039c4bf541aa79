"""Long-tailed data sets by name. A data set is one file and one line in `DATASETS`."""

from functools import partial
from pathlib import Path

from datasets.cifar_lt import build_cifar_lt
from datasets.digits_lt import build_digits_lt
from datasets.long_tail import long_tail_counts, shot_groups
from datasets.types import ImageSet, LongTailedData, ViewSpec
from utils.errors import UserError

__all__ = [
    "DATASETS",
    "ImageSet",
    "LongTailedData",
    "ViewSpec",
    "build_data",
    "long_tail_counts",
    "shot_groups",
]

DATASETS = {
    "cifar100_lt": partial(build_cifar_lt, "cifar100_lt"),
    "cifar10_lt": partial(build_cifar_lt, "cifar10_lt"),
    "digits_lt": lambda data_dir, **options: build_digits_lt(**options),
}


def build_data(
    name: str, data_dir: str | Path = "data", imb_ratio: float = 100, **options: object
) -> LongTailedData:
    """Build the data set `name`; the options are those of `datasets.split.split_long_tailed`.

    Raises:
        UserError: an unknown name, a ratio out of range, missing or broken files.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}, known: {', '.join(DATASETS)}")
    return DATASETS[name](data_dir=Path(data_dir), imb_ratio=imb_ratio, **options)
