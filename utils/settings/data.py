"""The data of a run as its arguments say: which set, how its images are looked at, which parts score."""

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from datasets import CHANNELS, FILE_DATASETS, LongTailedData, build_data
from datasets.images.on_disk import Images, open_images
from datasets.types import FileViews
from utils.base.errors import UserError, raise_problem
from utils.settings.config import Config
from utils.settings.table import LISTS

_OF_OWN_FORM = ("split_dir", *LISTS, "allow_partial", "test_fraction")  # of the sets that are files


def load_data(config: Config, report: Callable[[str], None] = raise_problem) -> LongTailedData:
    """The data set of a resolved configuration; no validation images where the script has no use for them."""
    options = {"subset_seed": config.subset_seed, "val_source": "none"}
    if "val_source" in config:
        said = config.source("val_source") in ("given", "from --val_fraction")
        asked = said and config.val_source != "none"
        options |= {"val_source": config.val_source, "val_fraction": config.val_fraction}
        options["val_required"] = asked or ("select" in config and config.select == "val")
    if config.dataset in FILE_DATASETS:
        options |= {name: getattr(config, name) for name in _OF_OWN_FORM}
        options |= {"views": file_views(config) if "augment" in config else None, "report": report}
    if "shots" in config and config.shots:
        options["shots"] = tuple(config.shots)
    data = build_data(config.dataset, config.data_dir, config.imb_ratio, **options)
    if "data_digest" in config and config.data_digest == "full":
        data = replace(data, **{name: replace(part, full=True) for name, part in data.parts.items()})
    if config.num_class not in (None, data.num_classes):
        raise UserError(f"--num_class {config.num_class}, but {data.name} has {data.num_classes} classes")
    if config.dataset.startswith("cifar") and "normalise" in config and config.normalise:
        mean, std = CHANNELS[config.normalise]
        data = replace(data, views=replace(data.views, mean=mean, std=std))
    return data


def file_views(config: Config) -> FileViews:
    """How image files are looked at, as the arguments say; at test the usual margin of 256 to 224 pixels."""
    mean, std = CHANNELS[config.normalise]
    return FileViews(
        mean,
        std,
        size=config.image_size,
        resize=config.resize or round(config.image_size * 256 / 224),
        augment=config.augment,
        padding=config.image_size // 8 if config.augment == "pad_crop" else 0,
        jitter=config.jitter,
        mirror=not config.no_flip,
        mirror_test=config.tta,
        interpolation=config.interpolation or "bilinear",
    )


def mirror_at_test(data: LongTailedData, config: Config) -> bool:
    """Are logits averaged over the image and its mirror image?"""
    return data.views.mirror_test and not config.no_tta


def open_parts(data: LongTailedData, device: torch.device, workers: int = 0) -> dict[str, Images]:
    """The parts that exist, by name: train, val, test."""
    return {name: open_images(part, data.views, device, workers) for name, part in data.parts.items()}


def scored_parts(parts: Collection[str], select: str) -> list[str]:
    """Of the parts that exist, those scored after every epoch: validation, and test only where it selects.

    Raises UserError: nothing is there to select on.
    """
    if select == "test" and "test" not in parts:
        raise UserError(
            "--select test needs test images with labels: take --select val, and no --protocol published"
        )
    return [name for name in parts if name == "val" or (name == "test" and select == "test")]
