"""What the scripts set up alike: data, the checkpoint to start from, the check on honest validation."""

from pathlib import Path

import torch

from datasets import LongTailedData, build_data
from datasets.loaders import DeviceImages
from utils.checkpoint import Checkpoint, find_published, read, require_stage
from utils.config import Config, resolve
from utils.errors import UserError


def load_data(config: Config) -> LongTailedData:
    """The data set of a resolved configuration; no validation images where the script has no use for them.

    Raises:
        UserError: see `datasets.build_data`; validation images must exist where they select or are asked for.
    """
    options = {"subset_seed": config.subset_seed, "val_source": "none"}
    if "val_source" in config:
        asked = config.source("val_source") == "given" and config.val_source != "none"
        options["val_source"] = config.val_source
        options["val_fraction"] = config.val_fraction
        options["val_required"] = asked or config.select == "val"
    return build_data(config.dataset, config.data_dir, config.imb_ratio, **options)


def on_device(data: LongTailedData, device: torch.device) -> dict[str, DeviceImages]:
    """The parts that exist, by name: train, val, test."""
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: DeviceImages(part, data.views, device) for name, part in parts.items() if part is not None}


def scored_parts(images: dict[str, DeviceImages], select: str) -> dict[str, DeviceImages]:
    """The parts that are evaluated after every epoch: validation, and the test set only where it selects."""
    return {
        name: part for name, part in images.items() if name == "val" or (name == "test" and select == "test")
    }


def backbone_note(source: Checkpoint, data: LongTailedData, select: str) -> str | None:
    """None where the backbone was trained on this very training set and so never saw the validation images.

    Otherwise a note for the log.

    Raises:
        UserError: the epoch is to be selected on images that the backbone may have been trained on.
    """
    trained_on = source.facts.get("train_digest")
    if trained_on == data.train.digest():
        return None
    what = "unknown images" if trained_on is None else "other images than this training set"
    if select == "val":
        raise UserError(
            f"--select val refused: the backbone of {source.path} was trained on {what}, the validation "
            "images may be among them; give both stages the same --val_source, or take --select last"
        )
    return f"the backbone was trained on {what}"


def find_source(script: str, given: dict, stage: str | None) -> Checkpoint:
    """The checkpoint to start from: the user's file, else what `stage` left behind, else a released one.

    Raises:
        UserError: there is none, it is broken, or it is of another stage.
    """
    path = given.get("pretrained_pth")
    if path is None:
        wanted = resolve(script, given)
        path = find_published(Path(wanted.ckpt_dir), wanted.dataset, wanted.imb_ratio, wanted.network, stage)
    source = read(path)
    if stage is not None:
        require_stage(source, stage)
    return source
