"""One resolved configuration for a run: the user's word over a checkpoint's facts over the preset."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import FILE_DATASETS, data_name
from losses.label_over_smooth import check_label_smooth, label_smooth_for_gap
from models import check_network
from utils.arguments import ARGUMENTS, EVALUATE, STAGE1
from utils.errors import UserError
from utils.presets import preset_for
from utils.seeding import draw_seed

DEFAULT_DATASET = "cifar100_lt"

# what a checkpoint was made with: a later step must not contradict the first, and takes over the second
FIXED_BY_CHECKPOINT = ("dataset", "imb_ratio", "network", "num_class", "subset_seed", "stem")
ON_DISK = ("image_size", "augment", "jitter", "no_flip", "normalise", "tta")
INHERITED = ("val_source", "val_fraction", "shots", *ON_DISK)
LISTS = ("train_list", "val_list", "test_list")
_FILES = ("split_dir", *LISTS, "allow_partial", *ON_DISK)
_NOT_WITH_PACK = (
    *("data_dir", "workers", "views", "bn_mode", "val_source", "val_fraction", "save_features"),
    *("subset_seed", "no_tta", "amp", "compile", "predict", *_FILES),
)

# name -> (test, what it must be)
_RANGES = {
    "num_class": (lambda v: v >= 2, "2 or more"),
    "epochs": (lambda v: v >= 1, "1 or more"),
    "finetune_epoch": (lambda v: v >= 1, "1 or more"),
    "batch_size": (lambda v: v >= 1, "1 or more"),
    "lr": (lambda v: v > 0, "above 0"),
    "finetune_lr": (lambda v: v > 0, "above 0"),
    "wd": (lambda v: v >= 0, "0 or more"),
    "finetune_wd": (lambda v: v >= 0, "0 or more"),
    "momentum": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "warmup_epochs": (lambda v: v >= 0, "0 or more"),
    "accum": (lambda v: v >= 1, "1 or more"),
    "image_size": (lambda v: v >= 8, "8 or more"),
    "jitter": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "shots": (lambda v: v >= 1, "1 or more"),
    "views": (lambda v: v >= 0, "0 or more"),
    "workers": (lambda v: v >= 0, "0 or more"),
    "gpu": (lambda v: v >= 0, "0 or more"),
    "seed": (lambda v: v >= 0, "0 or more"),
    "subset_seed": (lambda v: v >= 0, "0 or more"),
    "imb_ratio": (lambda v: v >= 1, "a number of 1 or more"),
    "val_fraction": (lambda v: 0 < v < 1, "between 0 and 1"),
    "seeds": (lambda v: v >= 0, "0 or more"),
    "path": (lambda v: v > 0, "above 0"),
    "scale": (lambda v: v > 0, "above 0"),
    **dict.fromkeys(("tau", "rho", "gamma", "max_margin", "alpha", "lam"), (lambda v: v >= 0, "0 or more")),
    **dict.fromkeys(("beta", "eps_head", "eps_tail"), (lambda v: 0 <= v < 1, "at least 0 and below 1")),
    "max_norm": (lambda v: 0 <= v <= 1, "between 0 and 1"),
}


class Config:
    """Read-only settings of one run, by name: `config.lr`. `source(name)` tells where a value came from."""

    def __init__(self, values: dict, sources: dict) -> None:
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_sources", sources)

    def __getattr__(self, name: str) -> object:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"this run has no setting {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a configuration is fixed once it is resolved")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def source(self, name: str) -> str:
        return self._sources[name]

    @property
    def data_name(self) -> str:
        """The data set's name in paths: of a user's own images with their folder's."""
        return data_name(self.dataset, self.data_dir) if "data_dir" in self else self.dataset

    def as_dict(self) -> dict:
        """Plain data, ready for JSON and for a checkpoint."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in self._values.items()
        }


def resolve(script: str, given: dict, known: dict | None = None) -> Config:
    """Merge `given` (the user's), `known` (a checkpoint's, None: not read yet) and the preset; check all.

    Raises:
        UserError: a value out of range, arguments that contradict each other, the script or the checkpoint.
    """
    if "imb_ratio" in given and known and known.get("imb_ratio", 1) is None:
        raise UserError("--imb_ratio has no meaning here: the checkpoint or pack has class counts of its own")
    settled = known is not None
    known = {name: value for name, value in (known or {}).items() if value is not None}
    _check_against(known, given)
    dataset = given.get("dataset", known.get("dataset", DEFAULT_DATASET))
    preset = preset_for(dataset, given.get("network", known.get("network")))
    values, sources = {}, {}
    for name in (argument.name for argument in ARGUMENTS if script in argument.scripts):
        origin, label = next(
            (origin, label)
            for origin, label in (
                (given, "given"),
                (known, "checkpoint"),
                (preset, "preset"),
                ({name: None}, "preset"),
            )
            if name in origin
        )
        values[name], sources[name] = origin[name], label
    _scale_rates(values, sources, preset)
    _check_ranges(values)
    _check_network(values, sources)
    _check_pairs(script, given, known, values, preset)
    if "label_smooth" in values:
        _settle_label_smooth(given, values, sources, settled)
    if values.get("workers", 0) is None:
        values["workers"], sources["workers"] = default_workers(), "from the cores"
    if sources.get("warmup_epochs") == "preset":
        values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] - 1)
    if "seed" in values and values["seed"] is None and not values.get("seeds"):
        values["seed"], sources["seed"] = draw_seed(), "drawn"
    if "seeds" in values:
        _settle_seeds(given, values, sources)
    if script != EVALUATE:
        values["cur_stage"] = "stage1" if script == STAGE1 else "stage2"
    return Config(values, sources)


def _scale_rates(values: dict, sources: dict, preset: dict) -> None:
    """The linear rule: where the user changes the batch size alone, a preset's learning rate goes with it.

    The way that training goes, rate times steps, so stays as long as it was (Goyal et al. 2017).
    """
    usual = preset["batch_size"]
    if values.get("batch_size", usual) == usual:
        return
    for name in ("lr", "finetune_lr"):
        if sources.get(name) == "preset" and values[name] is not None and values["batch_size"] > 0:
            values[name] *= values["batch_size"] / usual
            sources[name] = f"preset, times batch size / {usual}"


def _check_network(values: dict, sources: dict) -> None:
    if sources.get("network") == "given":
        try:
            check_network(values["network"])
        except ValueError as error:
            raise UserError(f"--network: {error}") from error


def default_workers() -> int:
    """Loader processes of this process: a core each, one left for itself, at most 16."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // sharing - 1))


def _check_against(known: dict, given: dict) -> None:
    for name in FIXED_BY_CHECKPOINT:
        if name in known and name in given and given[name] != known[name]:
            raise UserError(
                f"the checkpoint or pack was made with --{name} {known[name]}, but --{name} {given[name]} is "
                "asked for: leave the argument out, or name another file"
            )


def _check_ranges(values: dict) -> None:
    for name, several in values.items():
        for value in several if isinstance(several, list) else [several]:
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be a finite number, got {value}")
            if name in _RANGES and value is not None and not _RANGES[name][0](value):
                raise UserError(f"--{name} must be {_RANGES[name][1]}, got {value:g}")
        if isinstance(several, list) and len(set(several)) < len(several) and name != "shots":
            raise UserError(f"--{name} names a value twice: {', '.join(map(str, several))}")


def _check_pairs(script: str, given: dict, known: dict, values: dict, preset: dict) -> None:
    if values.get("allow_partial"):
        preset["num_class"] = None
        values["num_class"] = given.get("num_class", known.get("num_class"))
    if preset["num_class"] is not None and values["num_class"] != preset["num_class"]:
        raise UserError(
            f"--num_class {values['num_class']}, but {values['dataset']} has {preset['num_class']} classes"
        )
    if given.get("gpu") is not None and given.get("device", "auto") not in (
        "auto",
        "cuda",
        f"cuda:{given['gpu']}",
    ):
        raise UserError(f"--gpu {given['gpu']} contradicts --device {given['device']}: give one of them")
    own_stage = {"main_stage1.py": "stage1", "main_stage2.py": "stage2"}.get(script)
    if own_stage and given.get("cur_stage", own_stage) != own_stage:
        raise UserError(f"--cur_stage {given['cur_stage']} contradicts {script}, which runs {own_stage}")
    if given.get("warmup_epochs", -1) >= values.get("epochs", math.inf):
        raise UserError(
            f"--warmup_epochs {values['warmup_epochs']} must be below --epochs {values['epochs']}"
        )
    if values.get("nesterov") and values["momentum"] == 0:
        raise UserError("--nesterov needs a --momentum above 0")
    if "val_fraction" in given and values.get("val_source") != "heldout":
        raise UserError("--val_fraction has a meaning with --val_source heldout only")
    if values.get("bn_mode") == "train" and given.get("views") is None:
        values["views"] = None
    if values.get("bn_mode") == "train" and values["views"] is not None:
        raise UserError("--bn_mode train recomputes the features at every step: --views cannot cache them")
    if "path" in given and "finetune_lr" in given:
        raise UserError("--path and --finetune_lr both set the learning rate: give one of them")
    _check_shots(values)
    _check_pack(given, values)
    _check_files(given, values)
    if values.get("select") == "val" and values["val_source"] == "none":
        ways = "this pack holds none" if "features" in given else "take --val_source own, unused or heldout"
        raise UserError(f"--select val needs validation images: {ways}")


def _check_shots(values: dict) -> None:
    shots = values.get("shots")
    if shots is not None and not (isinstance(shots, list) and len(shots) == 2 and shots[0] <= shots[1]):
        raise UserError(f"--shots takes two limits LOW,HIGH as in 20,100, got {shots}")


def _check_files(given: dict, values: dict) -> None:
    """What speaks of images on disk has no meaning for a set in memory, and lists are for one of them."""
    dataset = values["dataset"]
    if dataset not in FILE_DATASETS and "predict" not in given:
        idle = [name for name in _FILES if name in given]
        if idle:
            raise UserError(f"--{idle[0]} is for images on disk, {dataset} has no use for it")
    lists = [name for name in LISTS if name in given]
    if lists and dataset != "list":
        raise UserError(f"--{lists[0]} goes with --dataset list, not with {dataset}")
    if dataset == "list" and {"train_list", "test_list"} - set(lists) and "predict" not in given:
        raise UserError("--dataset list needs --train_list FILE and --test_list FILE (lines `path label`)")
    for one, other in (("tta", "no_tta"), ("tta", "no_flip")):
        if one in given and other in given:
            raise UserError(f"--{one} and --{other} contradict each other: give one of them")


def _check_pack(given: dict, values: dict) -> None:
    """A feature pack holds the images' features, so what makes or reads images has no meaning beside it."""
    if "features" in given:
        idle = [name for name in _NOT_WITH_PACK if name in given]
        if idle:
            raise UserError(f"--features holds the features already: --{idle[0]} has no use beside it")
    if "pack_dtype" in given and "save_features" not in given:
        raise UserError("--pack_dtype is for --save_features: name a file, or leave it out")
    if "save_features" in given and values["bn_mode"] == "train":
        raise UserError("--save_features needs frozen features, --bn_mode train lets them drift")


def _settle_seeds(given: dict, values: dict, sources: dict) -> None:
    """Fill `seed` or `seeds` from whichever of the two was given; `seeds` becomes a list."""
    if "seed" in given and "seeds" in given:
        raise UserError("--seed and --seeds say the same thing: give one of them")
    seeds = values["seeds"]
    if seeds is None:
        values["seeds"], sources["seeds"] = [values["seed"]], "from --seed"
        return
    values["seeds"] = seeds if isinstance(seeds, list) else [seeds]
    values["seed"], sources["seed"] = values["seeds"][0], "from --seeds"


def _settle_label_smooth(given: dict, values: dict, sources: dict, settled: bool) -> None:
    """Fill `label_smooth` from whichever of δ and the gap was given, or is the preset.

    Not `settled`: the checkpoint that may know the number of classes has still to be found.
    """
    if "label_smooth" in given and "logit_gap" in given:
        raise UserError("--label_smooth and --logit_gap say the same thing: give one of them")
    try:
        if "logit_gap" in given or values["label_smooth"] is None:
            if values["num_class"] is None and not settled:
                return
            if values["num_class"] is None:
                raise UserError("a logit gap needs the number of classes, unknown here: say --num_class")
            values["label_smooth"] = _each(
                values["logit_gap"], lambda gap: label_smooth_for_gap(gap, values["num_class"])
            )
            sources["label_smooth"] = "from --logit_gap" if "logit_gap" in given else "preset"
        _each(values["label_smooth"], check_label_smooth)
        several = values["label_smooth"] if isinstance(values["label_smooth"], list) else []
        if len(set(several)) < len(several):
            raise UserError(f"--logit_gap names values that are the same δ: {values['logit_gap']}")
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _each(value: float | list[float], change: Callable[[float], float]) -> float | list[float]:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def describe(config: Config) -> str:
    """The resolved configuration, a line a value, with where it came from; without what nobody set."""
    rows = [
        (name, json.dumps(value, ensure_ascii=False), config.source(name))
        for name, value in config.as_dict().items()
        if value is not None
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value:<24} {source}" for name, value, source in rows)
