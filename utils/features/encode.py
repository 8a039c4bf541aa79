"""From images to a feature pack: a frozen encoder looks once at every image of a data set.

Shapes: N images, S pixels of a side, D feature, K classes.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from progress.bar import Bar
from torch import Tensor, nn

from datasets import LongTailedData
from models.adapt import own_encoder, untouched
from utils.base import distributed
from utils.base.digest import content_digest
from utils.base.errors import UserError, is_out_of_memory, reason, say
from utils.engine.device import environment, pick_device
from utils.engine.precision import speed_up
from utils.features.frozen import make_pack
from utils.features.source import CheckpointSource
from utils.packs.pack import Pack
from utils.run.facts import OWN
from utils.run.folder import check_writable
from utils.run.network import build_network, start_pretrained
from utils.settings.checks import check_given
from utils.settings.config import Config, resolve
from utils.settings.data import file_views, load_data
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
    given = {"stem": "imagenet"} | given | {"network": asked.network, "save_features": asked.out}
    check_given(STAGE2, given)
    seen = PRESETS["folder"] | {"no_flip": False, "tta": False}
    seen |= {name: given.pop(name) for name in ON_DISK if name in given}
    config = resolve(STAGE2, given | {"views": 0, "seed": 0})
    check_writable(asked.out.parent)
    world = distributed.join()
    device = pick_device(config.device, config.gpu, world, config.deterministic)
    source = EncoderSource(asked.weights, Config(seen, {}))
    data, _ = source.load(config, device, world)
    say(*data.notes)
    frozen = source.on_disk(None, 1, _bar, say)
    distributed.leave()
    if world.main:
        facts = config.as_dict() | {name: seen[name] for name in ON_DISK} | {"seed": None}
        facts |= {"num_class": data.num_classes, "class_names": data.class_names, "shots": list(data.shots)}
        facts |= {"class_counts": data.class_counts, "train_digest": data.train.digest()}
        facts |= {"val_source": data.val_source, "environment": environment(device)}
        facts |= {"val_fraction": config.val_fraction if data.val_source == "heldout" else None}
        facts |= {"stage1_digest": None, "stage1_selected_on": None}
        pack = make_pack(frozen, config, facts, clean=True)
        finish(asked.out, replace(pack, facts=pack.facts | {"preset": OWN}))
        frozen.discard()


def _bar(batches: Iterable, total: int, title: str) -> Iterable:
    suffix = "%(index)d/%(max)d eta %(eta_td)s"
    return Bar(title, max=total, suffix=suffix, file=sys.stderr, hide_cursor=False).iter(batches)


class EncoderSource(CheckpointSource):
    """An encoder that was not trained here; `seen` says how images are looked at, on disk or in memory."""

    def __init__(self, weights: Path | None, seen: Config) -> None:
        self.facts, self.weights, self.seen = {}, weights, seen

    def _load(self) -> tuple[LongTailedData, nn.Module]:
        config, name, views = self.config, self.config.network, file_views(self.seen)
        data = self.world.in_turn(lambda: load_data(config))
        mirror = views.mirror_test or data.views.mirror_test
        data = replace(data, views=replace(views, mirror_test=mirror))
        if self.weights is None:
            try:
                model = own_encoder(name)
            except ValueError as error:
                raise UserError(f"--network: {error}") from error
        else:
            model = build_network(config, data.num_classes)
            say(start_pretrained(model, config, data, self.weights, "--weights"))
        model.fc = nn.Linear(_width(model, name, views.size), data.num_classes)
        nn.init.zeros_(model.fc.weight)
        nn.init.zeros_(model.fc.bias)
        self.identity = content_digest({name: model.state_dict()})
        speed_up(model, config, self.device)
        return data, model


def _width(model: nn.Module, name: str, size: int) -> int:
    """The D of the features that `model` gives of two random images [2, 3, S, S]."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with untouched(model):
            found = model.forward_features(images)
    except Exception as error:  # a user's encoder can raise anything
        if is_out_of_memory(error):
            raise
        way_out = "take another --image_size or another --network"
        problem = f"takes no images of {size} x {size} pixels ({reason(error)})"
        raise UserError(f"--network {name} {problem}: {way_out}") from error
    kind = f"a {type(found).__name__}"
    if isinstance(found, Tensor):
        kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        if found.ndim == 2 and len(found) == 2 and found.is_floating_point():
            if not found.isfinite().all():
                raise UserError(f"--network {name} gives values that are not finite")
            return found.shape[1]
    way_out = "pool or pick them in a module of your own; of torch.nn.Sequential(it) the forward is asked"
    raise UserError(f"--network {name} gives {kind} for 2 images, not float features [2, D]: {way_out}")
