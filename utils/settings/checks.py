"""What a configuration must not be: values out of range, arguments that contradict each other.

Every check raises a UserError at the first thing that is wrong.
"""

import math
import os
import re
from numbers import Integral, Real
from pathlib import Path

from datasets import FILE_DATASETS
from models import RESNETS
from models import check_network as network_exists
from utils.base.errors import UserError
from utils.base.files import check_output
from utils.settings.chosen import chosen_methods
from utils.settings.method import TRAINING
from utils.settings.methods import METHODS, OPTIONS
from utils.settings.sizes import PHOTOGRAPHS
from utils.settings.table import (
    ARGUMENTS,
    EVALUATE,
    FIXED_BY_CHECKPOINT,
    LISTS,
    NOT_WITH_PACK,
    OF_FILES,
    STAGE1,
    STAGE2,
    Argument,
)

PACK_NAME = r"\w[\w.-]*"
# output -> what an earlier one holds, and within how many bytes from its beginning
OUTPUTS = {"save_features": (b"label-over-smoothing feature pack", 1 << 22), "predictions": (b"image,", 6)}
OUTPUTS["logits"] = (b"features.npy", 64)
_STAGES = {STAGE1: "stage1", STAGE2: "stage2"}
_KINDS = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,)}
_ARGUMENTS = {argument.name: argument for argument in ARGUMENTS}
_AT_ODDS = {
    ("label_smooth", "logit_gap"): "say the same thing",
    ("seed", "seeds"): "say the same thing",
    ("tta", "no_tta"): "contradict each other",
    ("tta", "no_flip"): "contradict each other",
}


def check_given(script: str, given: dict) -> None:
    """What is wrong with the user's words whatever a checkpoint or pack says."""
    check_ranges(given)
    if "network" in given:
        try:
            network_exists(given["network"])
        except ValueError as error:
            raise UserError(f"--network: {error}") from error
    for pair, why in _AT_ODDS.items():
        if given.keys() >= set(pair):
            raise UserError(f"--{pair[0]} and --{pair[1]} {why}: give one of them")
    own_stage = _STAGES.get(script)
    if own_stage and given.get("cur_stage", own_stage) != own_stage:
        raise UserError(f"--cur_stage {given['cur_stage']} contradicts {script}, which runs {own_stage}")
    if script == EVALUATE and not given.keys() & {"cur_stage", "pretrained_pth"}:
        raise UserError("say what to evaluate: --cur_stage stage1 or stage2, or --pretrained_pth FILE")
    if script == STAGE1 and isinstance(given.get("label_smooth"), list):
        raise UserError("--label_smooth takes one value in stage 1")
    if given.get("protocol") == "published":
        _check_published(given)
    gpu, device = given.get("gpu"), given.get("device", "auto")
    if gpu is not None and device not in ("auto", "cuda", f"cuda:{gpu}"):
        raise UserError(f"--gpu {gpu} contradicts --device {device}: give one of them")
    rows = {"predict"} if given.get("predict", Path()).suffix == ".npy" else set()
    if rows and "features" not in given:
        raise UserError("--predict X.npy continues a pack, --predict FOLDER looks at images: give --features")
    for name in ("logits", "target_prior") if "predict" in given else ():
        if name in given:
            raise UserError(f"--{name} is for images with labels, --predict looks at others: leave it out")
    if "encoder" in given and (rows or "predict" not in given):
        raise UserError("--encoder is for images without labels: name their folder by --predict")
    for name in NOT_WITH_PACK if {"features", "encoder"} & given.keys() == {"features"} else ():
        if name in given.keys() - rows:
            ways = ": name its --encoder, or of a pack of arrays new features by --predict X.npy"
            way_out = ways if name == "predict" else ""
            raise UserError(f"--features holds the features already: --{name} has no use beside it{way_out}")
    if {"pretrained_pth", "features"} <= given.keys() and script == STAGE2:
        raise UserError("--features holds its stage-1 classifier: leave --pretrained_pth out")
    if "resume" not in given:  # the method may be the run's
        _check_options(given)


def _check_published(given: dict) -> None:
    """What the public code does not do, or what a pack cannot."""
    if given.get("select") == "val":
        raise UserError("--protocol published takes the best epoch on test: leave --select val out")
    if "views" in given:
        raise UserError("--protocol published draws a fresh view at every step: leave --views out")
    if "features" in given:
        problem = "--protocol published runs the backbone in training mode, and a pack holds none"
        raise UserError(f"{problem}: of it --select test alone can be had here")


def _check_options(given: dict) -> None:
    """Every option is one of a method that is to be trained."""
    methods = chosen_methods(given.get("method", _ARGUMENTS["method"].default))
    for name in given:
        option = "label_smooth" if name == "logit_gap" else name
        if option in (*TRAINING, *OPTIONS) and not any(method.takes(option) for method in methods):
            users = ", ".join(method.name for method in METHODS.values() if method.takes(option))
            raise UserError(f"--{name}: no method of this run has it, it is for {users}")
    if given.keys() >= {"path", "finetune_lr"} and any(m.trained and m.takes("path") for m in methods):
        raise UserError("--path and --finetune_lr both set the learning rate: give one of them")


def check_known(path: Path, known: dict, given: dict, is_pack: bool = False) -> None:
    """What a file says of its making obeys the rules of the arguments, and chooses no code to run."""
    try:
        for name, value in known.items():
            if name in _ARGUMENTS and value is not None:
                _check_stored(_ARGUMENTS[name], value, own=is_pack and name == "dataset")
        check_ranges({name: value for name, value in known.items() if name in _ARGUMENTS})
        if known.get("network") is not None and not is_pack:
            network_exists(known["network"])
    except (UserError, ValueError) as error:
        raise UserError(f"{path} is of no use: {error!s:.200}") from error
    for name in ("network", "method"):
        if not is_pack and ":" in (known.get(name) or "") and name not in given:
            made = f"was made with --{name} {known[name]}, code of its own that no file may choose to run"
            raise UserError(f"{path} {made}: say --{name} yourself")


def _check_stored(argument: Argument, value: object, own: bool) -> None:
    """The kind of a value; a pack may have any name that a folder can have (`own`)."""
    several = value if argument.sweep and isinstance(value, list) else [value]
    if any(type(one) not in _KINDS[argument.kind] for one in several):
        raise UserError(f"its {argument.name} is {value!r:.60}")
    known = re.fullmatch(PACK_NAME, value) if own else not argument.choices or value in argument.choices
    if not known:
        raise UserError(f"there is no {argument.name} {value!r:.60}")


def check_against(known: dict, given: dict) -> None:
    for name in FIXED_BY_CHECKPOINT:
        if name in known and name in given and given[name] != known[name]:
            made = f"the checkpoint or pack was made with --{name} {known[name]}, but --{name} {given[name]}"
            raise UserError(f"{made} is asked for: leave the argument out, or name another file")


def check_ranges(values: dict) -> None:
    """Every value is of its kind, finite, within the range of its argument, and no number beyond counting."""
    for name, several in values.items():
        allowed, most, kind = (getattr(_ARGUMENTS[name], word) for word in ("allowed", "most", "kind"))
        number = {int: (Integral, "a whole number"), float: (Real, "a number")}.get(kind, (object, ""))
        for value in several if isinstance(several, list) else [several]:
            if value is not None and not isinstance(value, number[0]):  # from Python it may be anything
                raise UserError(f"--{name} must be {number[1]}, got {value!r:.60}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be a finite number, got {value}")
            if allowed and value is not None and not allowed.holds(value):
                raise UserError(f"--{name} must be {allowed.words}, got {value}")
            if isinstance(value, int) and value > most:
                raise UserError(f"--{name} must be at most {most}, got {value}")
        if name == "shots" and several is not None:
            if not (isinstance(several, list) and len(several) == 2 and several[0] <= several[1]):
                raise UserError(f"--shots takes two limits LOW,HIGH as in 20,100, got {several}")
        elif isinstance(several, list) and len(set(several)) < len(several):
            raise UserError(f"--{name} names a value twice: {', '.join(map(str, several))}")


def check_settled(given: dict, values: dict, num_class: int | None) -> None:
    """What is wrong with the values of a run; `num_class` is the data set's own, if it has one."""
    dataset = values["dataset"]
    if num_class is not None and values["num_class"] != num_class:
        raise UserError(f"--num_class {values['num_class']}, but {dataset} has {num_class} classes")
    warm, epochs = given.get("warmup_epochs", -1), values.get("epochs", math.inf)
    drifts, saves = values.get("bn_mode") == "train", "save_features" in given
    stored = saves or dataset in FILE_DATASETS
    problems = {
        f"--warmup_epochs {warm} must be below --epochs {epochs}": warm >= epochs,
        f"--resize {values.get('resize')} is below --image_size {values.get('image_size')}": (
            (values.get("resize") or math.inf) < (values.get("image_size") or 0)
        ),
        f"--stem is for {', '.join(RESNETS)}: {values.get('network')} begins in a way of its own": (
            "stem" in given and values.get("network") not in RESNETS
        ),
        "--subset_seed draws what --imb_ratio keeps or --val_source heldout takes: it has no use here": (
            "subset_seed" in given
            and values.get("imb_ratio") is None
            and values.get("val_source", "heldout") != "heldout"
        ),
        "--resize has no use with --augment pad_crop, which resizes to --image_size": (
            "resize" in given and values.get("augment") == "pad_crop"
        ),
        "--augment plain has no use for --jitter and --no_flip": (
            values.get("augment") == "plain" and bool(given.get("jitter") or given.get("no_flip"))
        ),
        "--nesterov needs a --momentum above 0": values.get("nesterov") and values["momentum"] == 0,
        "--val_fraction has a meaning with --val_source heldout only": (
            "val_fraction" in given and values.get("val_source") != "heldout"
        ),
        "--bn_mode train recomputes the features at every step: --views cannot cache them": (
            drifts and values["views"] is not None
        ),
        "--save_features needs frozen features, --bn_mode train lets them drift": drifts and saves,
        "--pack_dtype is for --save_features: leave it out": "pack_dtype" in given and not stored,
        "--publish best needs what selects: add --select val": (
            given.get("publish") == "best" and values["select"] == "last"
        ),
    }
    for problem, found in problems.items():
        if found:
            raise UserError(problem)
    _ask_for_folder(given, dataset)
    _check_targets(given, values)
    _check_files(given, values)
    if values.get("select") == "val" and values["val_source"] == "none":
        ways = "this pack holds none" if "features" in given else "take --val_source own, unused or heldout"
        raise UserError(f"--select val needs validation images: {ways}")


def _ask_for_folder(given: dict, dataset: str) -> None:
    """A user who names a folder of photographs and no data set does not want CIFAR downloaded into it."""
    place = given.get("data_dir")
    if place is None or "dataset" in given or not dataset.startswith("cifar") or any(place.glob("cifar-*")):
        return
    images = (*PHOTOGRAPHS, ".heic", ".heif")  # these two are of telephones, and cannot be read
    names = (path.name.lower() for depth in ("*", "*/*") for path in place.glob(depth))
    if (place / "train").is_dir() or any(name.endswith(images) for name in names):
        hint = f"was --dataset folder meant? (else say --dataset {dataset} as well)"
        raise UserError(f"--data_dir {place} holds images, no CIFAR: {hint}")


def _check_targets(given: dict, values: dict) -> None:
    """What is to be written at the end must not turn out to be a folder then, or to take an input's place."""
    outputs = [os.path.realpath(given[name]) for name in OUTPUTS if name in given]
    if len(set(outputs)) < len(outputs):
        raise UserError(f"two outputs would be written to {outputs[0]}: name a file for each")
    for name, mark in OUTPUTS.items():
        if name in given:
            check_output(name, given[name], *mark)
    if values["dataset"] != "folder":
        return
    root, places, parts = Path(values["data_dir"]), given, ("train", "val", "test")
    taken = values.get("test_fraction") or values.get("val_source") == "heldout"
    if taken and not (root / "train").is_dir():  # every folder in it is a class
        places, parts = {name: value for name, value in values.items() if value is not None}, ("",)
    images = {os.path.realpath(root / part) for part in parts}
    for name in ("out", "ckpt_dir", *OUTPUTS):
        place = Path(os.path.realpath(places.get(name, "")))
        if name in places and images & {str(place), *map(str, place.parents)}:
            raise UserError(f"--{name} {place} lies among the images of --data_dir: name another place")


def _check_files(given: dict, values: dict) -> None:
    """What speaks of images on disk has no meaning for a set in memory, and lists are for one of them."""
    dataset = values["dataset"]
    takes = {"normalise"} if dataset.startswith("cifar") else set()
    for name in (name for name in OF_FILES if name in given.keys() - takes):
        if dataset not in FILE_DATASETS and "predict" not in given:
            raise UserError(f"--{name} is for images on disk, {dataset} has no use for it")
        if name in LISTS and dataset != "list":
            raise UserError(f"--{name} goes with --dataset list, not with {dataset}")
    needed = not {"predict", "features"} & given.keys()
    if dataset == "list" and needed and "train_list" not in given:
        ways = "--test_list FILE, --test_fraction or --val_fraction"
        raise UserError(f"--dataset list needs --train_list FILE (lines `path label`), and {ways}")
