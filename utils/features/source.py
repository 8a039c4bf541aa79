"""What the scripts set up alike: the network, the checkpoint or pack to start from, honest selection."""

import glob
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from datasets import OWN_DATASETS, LongTailedData
from datasets.listed.parts import as_seen
from datasets.types import FileSet
from models.pretrained import with_own_names
from utils.base.distributed import ALONE, World
from utils.base.errors import UserError, about
from utils.engine.device import LAYOUT
from utils.engine.precision import speed_up
from utils.features.extraction import Origin, extract_to_disk
from utils.features.frozen import Representation, pack_classifier, pack_data, pack_representation
from utils.features.views import DriftingFeatures, TrainFeatures, Watch, eval_features
from utils.packs.pack import Pack, read_pack
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint, find_published, published_path, read, require_stage
from utils.run.facts import compared
from utils.run.folder import Run
from utils.run.network import build_network, check_apart, note_channels, try_network
from utils.settings.checks import check_known
from utils.settings.config import Config, resolve
from utils.settings.data import load_data, mirror_at_test, open_parts
from utils.settings.table import CHECK, arguments_of


def backbone_note(source: Checkpoint | Pack, data: LongTailedData, select: str) -> str | None:
    """None where the backbone was trained on this very training set and so never saw the validation images.

    Otherwise a note for the log. Of a pack its maker had to know.

    Raises:
        UserError: the epoch is to be selected on images that the backbone may have been trained on, or on
            those of a pack that are all of one class.
    """
    trained_on = source.facts.get("train_digest")
    same = isinstance(source, Checkpoint) and compared(source.facts, data.train)[0] is None
    packed = isinstance(source, Pack)
    clean = source.facts["val_clean"] if packed else same
    if packed and select == "val" and data.val and len(data.val.labels.unique()) < 2:
        raise UserError(f"--select val refused: all validation images of {source.path} are of one class")
    if clean or (data.val is None and packed):
        return None
    what = "unknown images" if trained_on is None else "other images than this training set"
    if select == "val" and packed:
        raise UserError(
            f"--select val refused: {source.path} says that its backbone may have seen the validation images"
        )
    if select == "val":
        raise UserError(
            f"--select val refused: the backbone of {source.path} was trained on {what}, the validation "
            "images may be among them; give both stages the same --val_source, or take --select last"
        )
    return f"the backbone was trained on {what}"


def images_note(source: Checkpoint | Pack, data: LongTailedData) -> list[str]:
    """For the log: what of the training images was compared with those of the backbone, and what differs."""
    changed, looked = compared(source.facts, data.train)
    note = f"the training images were compared with those of {source.path} {looked}"
    return [f"{note}: {changed}" if changed else note] if looked else []


def _same_data_elsewhere(given: dict, config: Config, stage: str) -> Path | None:
    """A model of the user's own images whose folder has another name, as one of an earlier version has.

    None: there is one in the usual place, or none that was trained on these very images, moved or not.
    """
    usual = published_path(config.ckpt_dir, config.place_name, config.imb_ratio, config.network, stage)
    if config.dataset not in OWN_DATASETS or usual.is_file():
        return None
    below = usual.relative_to(Path(config.ckpt_dir) / config.place_name)
    folders = [Path(config.ckpt_dir) / config.data_name]
    folders += sorted(Path(config.ckpt_dir).glob(f"{glob.escape(config.data_name)}-{'[0-9a-f]' * 8}"))
    found = [folder / below for folder in folders if (folder / below).is_file()]
    if "predict" in given:  # nothing is known of its images' parts
        return found[0] if len(found) == 1 else None
    words = [argument.name for argument in arguments_of(CHECK)]
    for path in found:
        try:
            source = read(path)
            data = load_data(
                resolve(CHECK, {name: given[name] for name in words if name in given}, source.known)
            )
        except UserError:
            continue
        if compared(source.facts, data.train)[0] is None:
            return path
    return None


def find_source(script: str, given: dict, stage: str | None) -> Checkpoint | Pack:
    """What to start from: the user's pack or file, else what `stage` left behind, else a released one.

    Raises:
        UserError: there is none, it is broken, or it is of another stage.
    """
    path = given.get("pretrained_pth")
    if "features" in given:
        with about("--features"):
            pack = read_pack(given["features"])
        check_known(pack.path, pack.known, given, is_pack=True)
        return pack
    if path is None:
        wanted = resolve(script, given)
        path = _same_data_elsewhere(given, wanted, stage) or find_published(wanted, wanted.network, stage)
    with about("--pretrained_pth") if path is given.get("pretrained_pth") else nullcontext():
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
    with about("--pretrained_pth") if path is given.get("pretrained_pth") else nullcontext():
        source = read(path)
    if "cur_stage" in given:
        require_stage(source, given["cur_stage"])
    origins = (source.digest, source.identity, source.facts.get("stage1_digest"))
    stage1 = pack.facts["stage1_digest"]
    same = (stage1 is not None and stage1 in origins) or source.facts.get("features_digest") == pack.digest
    if source.facts and not same:
        raise UserError(f"{path} is a classifier for other features than those of {pack.path}")
    state = with_own_names(model, source.state)
    last = {name: value for name, value in state.items() if name.startswith("fc.")}
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
        check_apart(source, data)
        model = build_network(config, data.num_classes, data.in_channels)
        checkpoint.load_weights(model, source, config.network)
        note_channels(source, data.views)
        model.to(device, memory_format=LAYOUT)
        rows = None
        if "bn_mode" in config and config.bn_mode == "train":
            rows = min(2, config.batch_size, len(data.train) % config.batch_size or 2)
        try_network(model, config, data, rows)
        speed_up(model, config, device)
    model.to(device, memory_format=LAYOUT).eval().requires_grad_(False)
    model.fc.requires_grad_(True)
    return data, model


def _check_class_names(source: Checkpoint, data: LongTailedData, dataset: str) -> None:
    """Of a user's own images the labels are the ranks of the names: another set of names shifts them."""
    names = [as_seen(name) for name in source.facts.get("class_names", data.class_names)]
    found = [as_seen(name) for name in data.class_names]
    if dataset in OWN_DATASETS and names != found:
        pairs = zip_longest(names, found)
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
        origin = Origin(source.identity, data, views_seed, mirror)
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
