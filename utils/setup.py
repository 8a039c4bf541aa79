"""What the scripts set up alike: the network, the checkpoint or pack to start from, honest selection."""

import glob
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from datasets import FILE_DATASETS, OWN_DATASETS, LongTailedData
from datasets.parts import as_seen
from datasets.types import CHANNELS, FileSet, FileViews, ViewSpec, evenly
from models import build_model, load_pretrained
from models.own import untouched
from models.pretrained import with_own_names
from utils import checkpoint
from utils.arguments import ARGUMENTS, CHECK, EVALUATE
from utils.checkpoint import Checkpoint, find_published, published_path, read, require_stage
from utils.config import Config, resolve
from utils.config_checks import check_known
from utils.data_setup import file_views, load_data, mirror_at_test, open_parts
from utils.device import LAYOUT
from utils.digest import compared
from utils.distributed import ALONE, World
from utils.errors import UserError, about, is_out_of_memory, reason
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


def start_pretrained(model: nn.Module, config: Config, data: LongTailedData) -> str:
    """Put the weights of --pretrained into all of `model` but its classifier; returns a line for the log.

    Raises:
        UserError: the file is broken, of another network, or was trained on images of this test set.
    """
    with about("--pretrained"):
        source = read(Path(config.pretrained))
    check_apart(source, data)
    try:
        load_pretrained(model, source.state, config.network)
    except ValueError as error:
        raise UserError(f"--pretrained {source.path}: {error}") from error
    _note_channels(source, data.views)
    line = f"started from {source.path} (sha256 {source.digest[:12]}), the classifier afresh"
    return "; ".join([line, *source.notes])


def _note_channels(source: Checkpoint, views: ViewSpec | FileViews) -> None:
    """Weights without facts do not say on what images they were trained: note what is taken for granted."""
    if not source.facts:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (views.mean, views.std))
        other = "; --normalise names another" if len(views.mean) == 3 else ""
        source.notes.append(f"assumed: trained on channels of mean {mean} and deviation {std}{other}")


def try_network(model: nn.Module, config: Config, data: LongTailedData, rows: int | None = None) -> None:
    """Run `model` on an empty image of the size of `data`, and where it trains on batches of `rows` at least.

    Nothing of it is left: neither batch-norm statistics nor random state.

    Raises:
        UserError: the network cannot take these images, or so few at a time.
    """
    files = isinstance(data.views, FileViews)
    size = data.views.size if files else data.train.images.shape[-1]
    try_forward(model, config, data.in_channels, size, "another --image_size or " * files, rows)


def try_forward(
    model: nn.Module, config: Config, channels: int, size: int, resize: str = "", rows: int | None = None
) -> None:
    """`try_network` for images [`channels`, `size`, `size`]; `resize` goes before the advice.

    Raises:
        UserError: as `try_network`.
    """
    evaluated = f"takes no images of {size} x {size} pixels (%s): take {resize}another --network"
    trained = (
        "cannot train on one image at a time (%s), as it would have to here: take another --batch_size, or a "
        "smaller --accum"
    )
    tries = [(1, False, evaluated)]
    if rows is not None:
        tries.append((rows, True, trained if rows == 1 else evaluated))
    for number, training, told in tries:
        images = torch.zeros(number, channels, size, size, device=next(model.parameters()).device)
        try:
            with untouched(model, training):
                model(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"--network {config.network} {told % reason(error)}") from error


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
        mean, std = CHANNELS[config.normalise or "cifar"]
        views = FileViews(mean, std, size=32, resize=32, augment="pad_crop", mirror_test=True)
    model = build_network(config, config.num_class)
    checkpoint.load_weights(model, source, config.network)
    _note_channels(source, views)
    return model, views, names


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


def check_apart(source: Checkpoint, data: LongTailedData) -> None:
    """Raise a UserError where the model of `source` was trained on images of this test set.

    Images are told by their paths below --data_dir, unless those whose bytes were noted in training all have
    others now. Under other names a tenth must be met by their bytes, without those that are training images
    here too: many data sets hold some image twice.
    """
    facts, test, met = source.facts, data.test, (0, "")
    trained_on = [facts[name] for name in ("train_files", "stage1_files") if name in facts]
    if not trained_on and facts.get("train_digest") == test.digest():
        met = (len(test), "")
    for files in trained_on if isinstance(test, FileSet) else ():
        names, noted = files["names"], files["bytes"]
        sampled = torch.isin(test.names, names[evenly(len(noted), len(names))]).nonzero().flatten()
        named = int(torch.isin(test.names, names).sum())
        now = test.bytes_of(test.sampled)
        alike = torch.isin(now, noted)
        if alike.any():
            alike &= ~torch.isin(now, data.train.bytes_of(data.train.sampled))
        if named and (not len(sampled) or torch.isin(test.bytes_of(sampled), noted).any()):
            met = max(met, (named, ""))
        elif (count := int(alike.sum())) * len(names) * 10 > len(now) * len(noted):
            met = max(met, (count, " or more, by their bytes,"))
    if met[0]:
        raise UserError(
            f"{source.path} was trained on {met[0]:,}{met[1]} of the {len(test):,} test images of "
            f"{data.name}, figures on them tell nothing: name a model of this split by --pretrained_pth, or "
            "train one with main_stage1.py"
        )


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
    words = [argument.name for argument in ARGUMENTS if CHECK in argument.scripts]
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
        if path is not None and script != EVALUATE:
            raise UserError("--features holds its stage-1 classifier: leave --pretrained_pth out")
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
        _note_channels(source, data.views)
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
