"""What the scripts set up alike: the network, the checkpoint or pack to start from, honest selection."""

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from datasets import FILE_DATASETS, OWN_DATASETS, LongTailedData
from datasets.types import CHANNELS, FileSet, FileViews
from models import build_model, load_pretrained
from utils import checkpoint
from utils.arguments import EVALUATE
from utils.checkpoint import Checkpoint, find_published, read, require_stage
from utils.config import Config, resolve
from utils.config_checks import check_known
from utils.data_setup import file_views, load_data, mirror_at_test, open_parts
from utils.device import LAYOUT
from utils.distributed import ALONE, World
from utils.errors import UserError
from utils.extraction import Origin, extract_to_disk
from utils.features import DriftingFeatures, TrainFeatures, Watch, eval_features
from utils.logger import Run
from utils.packs import Pack, read_pack
from utils.precision import speed_up
from utils.representation import Representation, pack_classifier, pack_data, pack_representation


def build_network(config: Config, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The network of a configuration, at its initialisation; a classifier without bias gets one, of zeros.

    Raises:
        UserError: there is no such network, or it cannot be built.
    """
    try:
        model = build_model(config.network, num_classes, in_channels, config.stem)
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    if model.fc.bias is None:  # the heads of stage 2 have one
        model.fc.bias = nn.Parameter(torch.zeros(num_classes))
    return model


def start_pretrained(model: nn.Module, config: Config) -> str:
    """Put the weights of --pretrained into all of `model` but its classifier; returns a line for the log.

    Raises:
        UserError: the file is broken, or of another network.
    """
    source = read(Path(config.pretrained))
    try:
        load_pretrained(model, source.state, config.network)
    except ValueError as error:
        raise UserError(f"--pretrained {source.path}: {error}") from error
    return f"started from {source.path} (sha256 {source.digest[:12]}), the classifier afresh"


def network_for_files(config: Config, source: Checkpoint) -> tuple[nn.Module, FileViews, list[str]]:
    """The network of a checkpoint for image files of no data set: it, their views, the class names.

    Raises:
        UserError: the checkpoint does not say how many classes it has, or is not made for colour images.
    """
    if config.dataset == "digits_lt":
        raise UserError("--predict reads colour images, digits_lt has grey ones of 8 x 8 pixels")
    if config.num_class is None:
        raise UserError(f"how many classes {source.path} has is not known: say --num_class")
    tensors = [*source.state.values(), *source.facts.get("head_state", {}).values()]
    if config.num_class > max(len(value) for value in tensors if value.ndim):
        raise UserError(f"{source.path} has no layer with {config.num_class} outputs, one a class")
    names = source.facts.get("class_names") or [str(k) for k in range(config.num_class)]
    if config.dataset in FILE_DATASETS:
        views = file_views(config)
    else:  # CIFAR: what is not 32 x 32 is resized
        mean, std = CHANNELS["cifar"]
        views = FileViews(mean, std, size=32, resize=32, augment="pad_crop", mirror_test=True)
    model = build_network(config, config.num_class)
    checkpoint.load_weights(model, source, config.network)
    return model, views, names


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
        pack = read_pack(given["features"])
        check_known(pack.path, pack.known, given, is_pack=True)
        return pack
    if path is None:
        wanted = resolve(script, given)
        path = find_published(wanted, wanted.network, stage)
    source = read(path)
    check_known(path, source.known, given)
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
        path = find_published(config, packed_name(config.network), "stage2")
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
    config: Config, source: Checkpoint | Pack, device: torch.device, world: World = ALONE
) -> tuple[LongTailedData, nn.Module]:
    """The data and the frozen network of stage 2; of a pack its features, and a "network" of the classifier.

    Raises:
        UserError: see `load_data` and `checkpoint.load_weights`; or the checkpoint has other classes.
    """
    if isinstance(source, Pack):
        data = replace(pack_data(source), shots=tuple(config.shots))
        model = nn.ModuleDict({"fc": pack_classifier(source)})
    else:
        data = world.in_turn(lambda: load_data(config))
        _check_class_names(source, data, config.dataset)
        model = build_network(config, data.num_classes, data.in_channels)
        checkpoint.load_weights(model, source, config.network)
        speed_up(model, config, device)
    model.to(device, memory_format=LAYOUT).eval().requires_grad_(False)
    model.fc.requires_grad_(True)
    return data, model


def _check_class_names(source: Checkpoint, data: LongTailedData, dataset: str) -> None:
    """Of a user's own images the labels are the ranks of the names: another set of names shifts them."""
    names = source.facts.get("class_names", data.class_names)
    if dataset in OWN_DATASETS and names != data.class_names:
        pairs = zip_longest(names, data.class_names)
        label, (was, now) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(f"{source.path} knows class {label} as {was!r}, {data.name} has {now!r} there")


def represent(
    config: Config,
    source: Checkpoint | Pack,
    data: LongTailedData,
    model: nn.Module,
    device: torch.device,
    run: Run,
    epochs: int,
    world: World = ALONE,
    watch: Watch | None = None,
) -> Representation:
    """The frozen features that the heads see for `epochs` epochs. Views are keyed by the backbone's own seed.

    Those of image files, and of several processes, go through a store on disk. `watch` sees every pass over
    images; None: the run's bar.
    """
    if isinstance(source, Pack):
        return pack_representation(source, device, data)
    watch = watch or run.bar
    images = open_parts(data, device, config.workers)
    mirror = mirror_at_test(data, config)
    views_seed = source.facts.get("seed", config.seed)
    drifting = config.bn_mode == "train"
    labels = {name: part.labels for name, part in images.items() if name != "train"}
    if not drifting and (isinstance(data.train, FileSet) or world.size > 1):
        origin = Origin(source.digest, data, views_seed, mirror)
        train, parts, store = extract_to_disk(config, origin, model, images, run, epochs, world, watch)
        gathered = (train, lambda name: parts[name].to(device), labels, data)
        return Representation(model.fc, *gathered, discard=store.remove)
    kind = DriftingFeatures if drifting else TrainFeatures
    return Representation(
        model.fc,
        kind(model, images["train"], views_seed, config.views, watch),
        lambda name: eval_features(model, images[name], mirror, watch),
        labels,
        data,
        drifting,
    )
