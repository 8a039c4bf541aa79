"""From images to a feature pack: a frozen encoder looks once at every image of a data set.

Shapes: N images, S pixels of a side, D feature, K classes.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from progress.bar import Bar
from torch import Tensor, nn

from datasets import CHANNELS, FileSet, FileViews, LongTailedData
from models import RESNETS
from utils.base import distributed
from utils.base.digest import content_digest
from utils.base.errors import UserError, say
from utils.engine.device import pick_device
from utils.engine.precision import speed_up
from utils.features.frozen import make_pack
from utils.features.source import CheckpointSource
from utils.features.views import unwatched
from utils.packs.pack import Pack
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint
from utils.run.facts import OWN, class_names
from utils.run.network import build_network, start_pretrained, try_forward
from utils.settings.checks import check_given
from utils.settings.config import Config, resolve
from utils.settings.data import file_views, load_data, mirror_at_test
from utils.settings.parse import Parser, parse
from utils.settings.presets import PRESETS
from utils.settings.table import ARGUMENTS, ON_DISK, STAGE2

# what of stage 2's arguments says what to encode and how; training views are of no use
_TAKEN = {argument.name for argument in ARGUMENTS if argument.group in ("data", "images on disk")}
_TAKEN -= {"augment", "jitter", "no_flip", "data_digest"}
_TAKEN |= {"stem", "pack_dtype", "tta", "no_tta", "device", "gpu", "deterministic", "amp", "compile"}


def encode(argv: Sequence[str], finish: Callable[[Path, Pack], None]) -> None:
    """The features of all parts of a data set, through a store on disk; `finish` makes the pack a file."""
    title = "Make a feature pack of images by an encoder with its weights, or by one of your own."
    others = f"What stage 2 calls so has its meaning here: --{', --'.join(sorted(_TAKEN))}."
    parser = Parser("python -m utils.features encode", description=title, epilog=others, allow_abbrev=False)
    parser.add_argument("--network", required=True, help="a classification network, or module:function")
    parser.add_argument("--weights", type=Path, help="its file of weights; a module:function has its own")
    parser.add_argument("--out", "--save_features", type=Path, required=True, help="the pack to write")
    asked, rest = parser.parse_known_args(argv)
    given = parse(STAGE2, rest)
    for name in given.keys() - _TAKEN:
        raise UserError(f"encode has no use for --{name}")
    if (":" in asked.network) == (asked.weights is not None):
        which = "loads its weights itself: leave --weights out" if asked.weights else "needs --weights FILE"
        raise UserError(f"--network {asked.network} {which}")
    given = {"pack_dtype": "fp32"} | ({"stem": "imagenet"} if asked.network in RESNETS else {}) | given
    given |= {"network": asked.network, "save_features": asked.out}
    check_given(STAGE2, given)
    views = {name: given.pop(name) for name in ON_DISK if name in given}  # of images in memory too
    known = {name: PRESETS["folder"].get(name) for name in ON_DISK}
    published, whose = published_views(asked.network, asked.weights, given.get("stem", "imagenet"))
    if "image_size" in views:
        published.pop("resize", None)
    known |= published | views
    config = resolve(STAGE2, given, known | {"views": 0, "seed": 0, "label_smooth": 0.0})
    world = distributed.join()
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    source = EncoderSource(asked.weights)
    data, _ = source.load(config, device, world)
    log = say if world.main else (lambda line: None)
    for line in (source.started, f"{_told(data)}{whose}", *data.notes):
        log(line)
    frozen = source.on_disk(None, 1, _bar if world.main else unwatched, log)
    distributed.leave()
    if world.main:
        facts = checkpoint.model_facts(config, data, device)
        # so that images to come are looked at alike: those in memory are resized as a whole
        facts |= {"tta": mirror_at_test(source.data, config)}
        facts |= {} if isinstance(data.train, FileSet) else {"augment": "pad_crop"}
        facts |= {"stage1_digest": None, "stage1_selected_on": None}
        pack = make_pack(frozen, config, facts, clean=True)
        facts = pack.facts | {"preset": OWN, "encoder_digest": source.identity}
        finish(asked.out, replace(pack, facts=facts))
        frozen.discard()


def published_views(network: str, weights: Path | None, stem: str) -> tuple[dict, str]:
    """How torchvision prepares images for its weights of a network, by argument; whose that is, in words.

    Its newest weights are meant, where the file has not the name of others. Nothing where it knows none.
    """
    from torchvision.models import get_model_weights

    try:
        found = get_model_weights(network) if weights and stem == "imagenet" else None
    except ValueError:
        found = None
    if not found:
        return {}, ""
    which = next((one for one in found if one.url.endswith(f"/{weights.name}")), found.DEFAULT)
    how = which.transforms()
    channels = (tuple(how.mean), tuple(how.std))
    normalise = next((name for name, values in CHANNELS.items() if values == channels), None)
    if normalise is None:  # of one of all, VGG's without a classifier: it counts pixels to 255
        return {}, ""
    views = {"image_size": how.crop_size[0], "resize": how.resize_size[0]}
    views |= {"interpolation": how.interpolation.value, "normalise": normalise}
    return views, f" (what is not given is as for torchvision's {which})"


def _told(data: LongTailedData) -> str:
    """How images are looked at, in words."""
    views, files = data.views, isinstance(data.train, FileSet)
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (views.mean, views.std))
    side = f"shorter side to {views.resize}, centre of " if files else "resized to "
    return f"images: {side}{views.size} pixels, {views.interpolation}, channels of mean {mean}, std {std}"


def _bar(batches: Iterable, total: int, title: str) -> Iterable:
    suffix = "%(index)d/%(max)d eta %(eta_td)s"
    return Bar(title, max=total, suffix=suffix, file=sys.stderr, hide_cursor=False).iter(batches)


class EncoderSource(CheckpointSource):
    """An encoder that was not trained here, and whose features need not fit memory."""

    def __init__(self, weights: Path | None) -> None:
        self.facts, self.weights = {}, weights

    def _load(self) -> tuple[LongTailedData, nn.Module]:
        config, views = self.config, file_views(self.config)
        data = self.world.in_turn(lambda: load_data(config))
        mirror = views.mirror_test or data.views.mirror_test
        data = replace(data, views=replace(views, mirror_test=mirror))
        model, self.identity, self.started = open_encoder(
            config, data.num_classes, self.weights, "--weights", data
        )
        speed_up(model, config, self.device)
        return data, model


def open_encoder(
    config: Config,
    num_classes: int,
    weights: Path | None,
    argument: str,
    data: LongTailedData | None = None,
) -> tuple[nn.Module, str, str]:
    """The encoder `config.network` with an unused classifier, the digest of its weights, a line for the log.

    `weights`: the file that `argument` names; None: the network is a user's own, and has them. Raises
    UserError where it gives no features [N, D], or trained on images of `data`'s test set.
    """
    name = config.network
    model, told = build_network(config, weights and num_classes), f"encoder {name}"
    if weights:
        told = start_pretrained(model, config, data, weights, argument)
    model.fc = nn.Identity()
    found = try_forward(model, config, 3, config.image_size, sized=True)
    shape = list(found.shape) if isinstance(found, Tensor) else []
    if len(shape) != 2 or shape[0] != 1 or not found.is_floating_point():
        kind = f"{found.dtype} {shape}".removeprefix("torch.") if shape else f"a {type(found).__name__}"
        way_out = "pool or pick them; of torch.nn.Sequential(network) the forward is asked"
        raise UserError(f"--network {name} gives {kind} for an image, not float [1, D]: {way_out}")
    digest = content_digest({name: model.state_dict()})
    model.fc = nn.Linear(shape[1], num_classes)
    return model, digest, told


def encoder_for_files(config: Config, source: Checkpoint | Pack) -> tuple[nn.Module, FileViews, list[str]]:
    """`network_for_files` of a classifier of features: `--encoder` made them, and goes before it."""
    made, name = source.facts.get("encoder_digest"), config.network
    if made is None:
        way_out = "encode the images as you did the others, and predict their features: --features PACK"
        way_out += " --predict X.npy (a pack of `python -m utils.features encode` does it by itself)"
        raise UserError(f"{source.path} does not say which encoder made its features: {way_out}")
    own = ":" in name
    if own and config.encoder != name:
        raise UserError(f"--encoder {config.encoder}: {source.path} is of {name}, say --encoder {name}")
    weights = None if own else Path(config.encoder)
    model, digest, _ = open_encoder(config, config.num_class, weights, "--encoder")
    if digest != made:
        other = f"has other weights ({digest[:12]}) than made the features of {source.path} ({made[:12]})"
        raise UserError(f"--encoder {config.encoder} {other}: name those")
    checkpoint.load_weights(nn.ModuleDict({"fc": model.fc}), source, f"classifier of a {name}")
    return model, file_views(config), class_names(source.facts, config.num_class)
