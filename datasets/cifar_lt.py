"""CIFAR100-LT and CIFAR10-LT: the first n_k training images of each class, the whole balanced test set."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets.cifar_files import SOURCES, read_cifar
from datasets.long_tail import long_tail_counts
from datasets.names import CHANNELS
from datasets.split import cut_long_tail
from datasets.types import ImageSet, LongTailedData, ViewSpec
from utils.base.errors import UserError

# CIFAR-10's channel figures, used by the published runs on CIFAR-100 as well
VIEWS = ViewSpec(*CHANNELS["cifar"], padding=4, mirror=True)
_OTHER_FILES = (
    "the CIFAR files are not byte-identical to the published ones: the subset may hold other images of the "
    "same classes, and accuracies differ by up to about 1.5 points between draws"
)


def build_cifar_lt(name: str, data_dir: Path, imb_ratio: float, **split_options: object) -> LongTailedData:
    """`cifar10_lt` or `cifar100_lt`; `split_options` are those of `split_long_tailed`."""
    source = name.removesuffix("_lt")
    _, num_classes = SOURCES[source]
    counts = long_tail_counts(num_classes, 50_000 // num_classes, imb_ratio)
    content = read_cifar(source, data_dir)
    parts, names = (content["train"], content["test"]), content["class_names"]
    data = cut_long_tail(name, *parts, counts, names, VIEWS, **split_options)
    black = [part for part, images in data.parts.items() if _has_black(images)]
    if black and (black != ["val"] or split_options.get("val_required")):
        used = "the validation images" if black == ["val"] else f"those that --imb_ratio {imb_ratio:g} uses"
        raise UserError(f"{data_dir} holds all-black images among {used}: use the full data set")
    if black:
        note = "no validation: the images that the long-tailed set leaves out are black in this copy"
        data = replace(data, val=None, val_source="none", notes=[*data.notes, note])
    return data if content["official"] else replace(data, notes=[*data.notes, _OTHER_FILES])


def _has_black(part: ImageSet) -> bool:
    return bool((part.images.flatten(1).amax(dim=1) == 0).any())


build_cifar100_lt = partial(build_cifar_lt, "cifar100_lt")
build_cifar10_lt = partial(build_cifar_lt, "cifar10_lt")
