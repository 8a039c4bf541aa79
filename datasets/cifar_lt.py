"""CIFAR100-LT and CIFAR10-LT: the first n_k training images of each class, the whole balanced test set."""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.cifar_files import read_cifar
from datasets.long_tail import long_tail_counts
from datasets.split import split_long_tailed
from datasets.types import ImageSet, LongTailedData, ViewSpec
from utils.base.errors import UserError

# CIFAR-10's channel figures, used by the published runs on CIFAR-100 as well
VIEWS = ViewSpec(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), padding=4, mirror=True)


def build_cifar_lt(name: str, data_dir: Path, imb_ratio: float, **split_options: object) -> LongTailedData:
    """`cifar10_lt` or `cifar100_lt`; `split_options` are those of `split_long_tailed`.

    Raises:
        UserError: a ratio out of range, files missing or of another content, an all-black image among those
        used.
    """
    num_classes = {"cifar10_lt": 10, "cifar100_lt": 100}[name]
    counts = long_tail_counts(num_classes, 50_000 // num_classes, imb_ratio)
    content = read_cifar(name.removesuffix("_lt"), data_dir)
    images, labels = content["train"]
    split = split_long_tailed(labels, counts, **split_options)
    notes = list(split.notes)
    if _has_black(images[split.train]) or _has_black(content["test"][0]):
        raise UserError(
            f"{data_dir} holds all-black images among those that --imb_ratio {imb_ratio:g} uses: "
            "the copy is incomplete, use the full data set"
        )
    val, val_source = split.val, split.val_source
    if val is not None and _has_black(images[val]):
        if split_options.get("val_required"):
            raise UserError(
                f"{data_dir} holds all-black images among the validation images: use the full data set"
            )
        val, val_source = None, "none"
        notes.append("no validation: the images that the long-tailed set leaves out are black in this copy")
    if not content["official"]:
        notes.append(
            "the CIFAR files are not byte-identical to the published ones: the subset may hold other images "
            "of the same classes, and accuracies differ by up to about 1.5 points between draws"
        )
    return LongTailedData(
        name=name,
        class_names=content["class_names"],
        class_counts=counts,
        train=ImageSet.from_numpy(images[split.train], labels[split.train]),
        val=None if val is None else ImageSet.from_numpy(images[val], labels[val]),
        val_source=val_source,
        test=ImageSet.from_numpy(*content["test"]),
        views=VIEWS,
        notes=notes,
    )


def _has_black(images: np.ndarray) -> bool:
    return bool((images.reshape(len(images), -1).max(axis=1) == 0).any())


build_cifar100_lt = partial(build_cifar_lt, "cifar100_lt")
build_cifar10_lt = partial(build_cifar_lt, "cifar10_lt")
