"""The network of a run: built, started from a file of weights, and tried on an empty image."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from datasets import CHANNELS, FILE_DATASETS, LongTailedData
from datasets.types import FileSet, FileViews, ViewSpec, evenly
from models import build_model
from models.adapt import untouched
from utils.base.errors import UserError, about, is_out_of_memory, reason
from utils.engine.device import LAYOUT, free_memory
from utils.metrics.accuracy import PARTS
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint, read
from utils.run.facts import class_names, counts_told
from utils.settings.config import Config
from utils.settings.data import file_views


def build_network(config: Config, num_classes: int | None, in_channels: int = 3) -> nn.Module:
    """The network of a configuration, at its initialisation; a classifier without bias gets one, of zeros."""
    try:
        model = build_model(config.network, num_classes, in_channels, config.stem)
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    if getattr(model.fc, "bias", True) is None:  # the heads of stage 2 have one
        model.fc.bias = nn.Parameter(torch.zeros(num_classes))
    return model


def start_pretrained(
    model: nn.Module,
    config: Config,
    data: LongTailedData | None,
    path: Path | str,
    argument: str = "--pretrained",
) -> str:
    """Put the weights of a file into all of `model` but its classifier; returns a line for the log."""
    with about(argument):
        source = read(Path(path))
    if data is not None:
        check_apart(source, data)
    with about(argument):
        checkpoint.load_backbone(model, source, config.network)
    if data is not None:
        note_channels(source, data.views)
    line = f"started from {source.path} (sha256 {source.digest[:12]}), all but the classifier"
    return "; ".join([line, *source.notes])


def check_apart(source: Checkpoint, data: LongTailedData) -> None:
    """Raise a UserError where the model of `source` was trained on the images whose figures are reported.

    Images are told by their paths below --data_dir, unless those whose bytes were noted in training all have
    others now. Under other names a tenth must be met by their bytes, without those that are training images
    here too: many data sets hold some image twice.
    """
    facts, images, met = source.facts, data.parts[data.judged], (0, "")
    if data.test is None and (count := facts.get("test_images")):
        way_out = "name them again (--test_list, test/<class>/, --test_fraction)"
        raise UserError(f"{source.path} had {count:,} test images, {data.name} has none: {way_out}")
    trained_on = [facts[name] for name in ("train_files", "stage1_files") if name in facts]
    if not trained_on and facts.get("train_digest") == images.digest():
        met = (len(images), "")
    for files in trained_on if isinstance(images, FileSet) else ():
        names, noted = files["names"], files["bytes"]
        sampled = torch.isin(images.names, names[evenly(len(noted), len(names))]).nonzero().flatten()
        named = int(torch.isin(images.names, names).sum())
        now = images.bytes_of(images.sampled)
        alike = torch.isin(now, noted)
        if alike.any():
            alike &= ~torch.isin(now, data.train.bytes_of(data.train.sampled))
        if named and (not len(sampled) or torch.isin(images.bytes_of(sampled), noted).any()):
            met = max(met, (named, ""))
        elif (count := int(alike.sum())) * len(names) * 10 > len(now) * len(noted):
            met = max(met, (count, " or more, by their bytes,"))
    if met[0]:
        those = f"the {len(images):,} {PARTS[data.judged]} images of {data.name}"
        known = f"was trained on {met[0]:,}{met[1]} of {those}"
        way_out = "name or train a model of this split"
        if facts.get("test_fraction") or (data.test is None and facts.get("val_fraction")):
            moved = f"the set of images has changed since{counts_told(facts, data)}, which moves the split"
            way_out = f"{moved}; undo that, or run stage 1 again with --overwrite"
        raise UserError(f"{source.path} {known}, figures on them tell nothing: {way_out}")


def note_channels(source: Checkpoint, views: ViewSpec | FileViews) -> None:
    """Weights without facts do not say on what images they were trained: note what is taken for granted."""
    if not source.facts:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (views.mean, views.std))
        other = "; --normalise names another" if len(views.mean) == 3 else ""
        source.notes.append(f"assumed: trained on channels of mean {mean} and deviation {std}{other}")


def try_network(model: nn.Module, config: Config, data: LongTailedData, rows: int | None = None) -> None:
    """Run `model` on an empty image of the size of `data`, and where it trains on batches of `rows` at least.

    Nothing of it is left: neither batch-norm statistics nor random state.
    """
    files = isinstance(data.views, FileViews)
    size = data.views.size if files else data.train.images.shape[-1]
    for number in [None] if rows is None else [None, rows]:
        try_forward(model, config, data.in_channels, size, files, number)


def try_forward(
    model: nn.Module, config: Config, channels: int, size: int, sized: bool, rows: int | None = None
) -> object:
    """`try_network` for `rows` images in training (None: one at test), and what comes out.

    `sized`: --image_size sets `size`.
    """
    device = next(model.parameters(), torch.empty(0)).device
    images = torch.zeros(rows or 1, channels, size, size, device=device).contiguous(memory_format=LAYOUT)
    try:
        with untouched(model, rows is not None):
            return model(images)
    except Exception as error:  # a user's own can raise anything
        if is_out_of_memory(error):
            raise
        problem = f"takes no images of {size} x {size} pixels"
        way_out = "another --image_size or another --network" if sized else "another --network"
        if rows == 1:
            problem = "cannot train on one image at a time"
            way_out = "another --batch_size, or a smaller --accum"
        if "view size is not compatible" in str(error):
            problem, way_out = "takes no images that lie channels_last", ".reshape in place of .view"
        raise UserError(f"--network {config.network} {problem} ({reason(error)}): take {way_out}") from error


def check_memory(model: nn.Module, config: Config, data: LongTailedData, rows: int) -> None:
    """Refuse a training step on `rows` images that cannot fit: a system would end the run after minutes.

    Counted is what a step on two images keeps for its gradients. Measured on ResNet-50 on a CPU, a step takes
    a seventh more than that beside weights, their gradients and momentum: a tenth is added.
    """
    kept: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    device = next(model.parameters()).device
    size = data.views.size if isinstance(data.views, FileViews) else data.train.images.shape[-1]
    images = torch.zeros(2, data.in_channels, size, size, device=device).contiguous(memory_format=LAYOUT)
    with untouched(model, training=True), torch.enable_grad(), saved_tensors_hooks(note, lambda value: value):
        out = model(images)  # held, so that no storage is given to another tensor meanwhile
    del out
    weights, share = sum(value.nbytes for value in model.parameters()), 2 if config.amp == "off" else 4
    needed, free = 1.1 * sum(kept.values()) / share * rows + 3 * weights, free_memory(device)
    if free is not None and needed > free:
        what = f"a step of {rows} images of {size} x {size} pixels needs about {needed / 1e9:.1f} GB"
        accum = config.accum * 2 ** math.ceil(math.log2(needed / free))
        ways = f"--accum {accum} takes it in parts; or a smaller --batch_size, --image_size or --network"
        raise UserError(f"{what}, {free / 1e9:.1f} GB are free: {ways}")


def network_for_files(config: Config, source: Checkpoint) -> tuple[nn.Module, FileViews, list[str]]:
    """The network of a checkpoint for image files of no data set: it, their views, the class names."""
    if config.dataset == "digits_lt":
        raise UserError("--predict reads colour images, digits_lt has grey ones of 8 x 8 pixels")
    if config.num_class is None:
        raise UserError(f"how many classes {source.path} has is not known: say --num_class")
    tensors = [*source.state.values(), *source.facts.get("head_state", {}).values()]
    if config.num_class > max(len(value) for value in tensors if value.ndim):
        raise UserError(f"{source.path} has no layer with {config.num_class} outputs, one a class")
    if config.dataset in FILE_DATASETS:
        views = file_views(config)
    else:  # CIFAR: what is not 32 x 32 is resized
        mean, std = CHANNELS[config.normalise or "cifar"]
        views = FileViews(mean, std, size=32, resize=32, augment="pad_crop", mirror_test=True)
    model = build_network(config, config.num_class)
    checkpoint.load_weights(model, source, config.network)
    note_channels(source, views)
    return model, views, class_names(source.facts, config.num_class)
