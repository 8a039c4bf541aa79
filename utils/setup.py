"""What the scripts set up alike: data, the checkpoint or pack to start from, honest validation, features."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from datasets import LongTailedData, build_data
from datasets.loaders import DeviceImages
from models import build_model
from utils import checkpoint
from utils.arguments import EVALUATE
from utils.checkpoint import Checkpoint, find_published, read, require_stage
from utils.config import Config, resolve
from utils.errors import UserError
from utils.features import DriftingFeatures, TrainFeatures, Watch, eval_features
from utils.packs import Pack, read_pack
from utils.representation import Representation, pack_classifier, pack_data, pack_representation


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


def scored_parts(parts: Iterable[str], select: str) -> list[str]:
    """Of the parts that exist, those scored after every epoch: validation, and test only where it selects."""
    return [name for name in parts if name == "val" or (name == "test" and select == "test")]


def backbone_note(source: Checkpoint | Pack, data: LongTailedData, select: str) -> str | None:
    """None where the backbone was trained on this very training set and so never saw the validation images.

    Otherwise a note for the log. Of a pack its maker had to know.

    Raises:
        UserError: the epoch is to be selected on images that the backbone may have been trained on.
    """
    trained_on = source.facts.get("train_digest")
    clean = source.facts["val_clean"] if isinstance(source, Pack) else trained_on == data.train.digest()
    if clean or (data.val is None and isinstance(source, Pack)):
        return None
    what = "unknown images" if trained_on is None else "other images than this training set"
    if select == "val" and isinstance(source, Pack):
        raise UserError(
            f"--select val refused: {source.path} says that its backbone may have seen the validation images"
        )
    if select == "val":
        raise UserError(
            f"--select val refused: the backbone of {source.path} was trained on {what}, the validation "
            "images may be among them; give both stages the same --val_source, or take --select last"
        )
    return f"the backbone was trained on {what}"


def find_source(script: str, given: dict, stage: str | None) -> Checkpoint | Pack:
    """What to start from: the user's pack or file, else what `stage` left behind, else a released one.

    Raises:
        UserError: there is none, it is broken, or it is of another stage.
    """
    path = given.get("pretrained_pth")
    if "features" in given:
        if path is not None and script != EVALUATE:
            raise UserError("--features holds its stage-1 classifier: leave --pretrained_pth out")
        return read_pack(given["features"])
    if path is None:
        wanted = resolve(script, given)
        path = find_published(Path(wanted.ckpt_dir), wanted.dataset, wanted.imb_ratio, wanted.network, stage)
    source = read(path)
    if stage is not None:
        require_stage(source, stage)
    if "features_digest" in source.facts:
        raise UserError(
            f"{path} holds a classifier without a backbone: give the pack that it is for by --features"
        )
    return source


def packed_name(network: str) -> str:
    """The name under which a classifier for a pack's features is left: it is no whole network."""
    return f"{network.removesuffix('features').rstrip('_')}_features".lstrip("_")


def load_classifier(model: nn.Module, given: dict, config: Config, pack: Pack) -> Checkpoint | None:
    """Put the classifier that evaluate is asked for on top of a pack's features; None: the pack's own.

    Raises:
        UserError: there is none, or it was trained on other features.
    """
    path = given.get("pretrained_pth")
    if path is None and given["cur_stage"] == "stage1":
        return None
    if path is None:
        network = packed_name(config.network)
        path = find_published(Path(config.ckpt_dir), config.dataset, config.imb_ratio, network, "stage2")
    source = read(path)
    if "cur_stage" in given:
        require_stage(source, given["cur_stage"])
    origins, stage1 = (source.digest, source.facts.get("stage1_digest")), pack.facts["stage1_digest"]
    same = (stage1 is not None and stage1 in origins) or source.facts.get("features_digest") == pack.digest
    if source.facts and not same:
        raise UserError(f"{path} is a classifier for other features than those of {pack.path}")
    last = {name: value for name, value in source.state.items() if name.startswith("fc.")}
    source = replace(source, state=last)
    checkpoint.load_weights(model, source, f"classifier of {pack.path}")
    checkpoint.load_head(model, source)
    return source


def load_frozen(
    config: Config, source: Checkpoint | Pack, device: torch.device
) -> tuple[LongTailedData, nn.Module]:
    """The data and the frozen network of stage 2; of a pack its features, and a "network" of the classifier.

    Raises:
        UserError: see `load_data` and `checkpoint.load_weights`.
    """
    if isinstance(source, Pack):
        data, model = pack_data(source), nn.ModuleDict({"fc": pack_classifier(source)})
    else:
        data = load_data(config)
        model = build_model(config.network, data.num_classes, data.in_channels)
        checkpoint.load_weights(model, source, config.network)
    model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    model.fc.requires_grad_(True)
    return data, model


def represent(
    config: Config,
    source: Checkpoint | Pack,
    data: LongTailedData,
    model: nn.Module,
    device: torch.device,
    watch: Watch,
) -> Representation:
    """The frozen features that the heads see. Views are keyed by the backbone's own seed."""
    if isinstance(source, Pack):
        return pack_representation(source, device)
    images = on_device(data, device)
    mirror = data.views.mirror and not config.no_tta
    drifting = config.bn_mode == "train"
    views_seed = source.facts.get("seed", config.seed)
    kind = DriftingFeatures if drifting else TrainFeatures
    return Representation(
        model.fc,
        kind(model, images["train"], views_seed, config.views, watch),
        lambda name: eval_features(model, images[name], mirror, watch),
        {name: part.labels for name, part in images.items() if name != "train"},
        data,
        drifting,
    )
