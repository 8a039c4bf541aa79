"""What a configuration must not be: values out of range, arguments that contradict each other.

Every check raises a UserError at the first thing that is wrong.
"""

import math
import os
import re
from pathlib import Path

from datasets import FILE_DATASETS
from datasets.images.decode import ENDINGS
from models import check_network as network_exists
from utils.base.errors import UserError
from utils.base.files import check_output
from utils.settings.table import ARGUMENTS, STAGE1, STAGE2

# what a checkpoint was made with: a later step must not contradict the first, and takes over the second
FIXED_BY_CHECKPOINT = ("dataset", "imb_ratio", "network", "num_class", "subset_seed", "stem")
ON_DISK = ("image_size", "augment", "jitter", "no_flip", "normalise", "tta")
INHERITED = ("val_source", "val_fraction", "shots", *ON_DISK)
LISTS = ("train_list", "val_list", "test_list")
_FILES = ("split_dir", *LISTS, "allow_partial", "data_digest", *ON_DISK)
NOT_WITH_PACK = (
    *("data_dir", "workers", "views", "bn_mode", "val_source", "val_fraction", "save_features"),
    *("subset_seed", "no_tta", "amp", "compile", "predict", *_FILES),
)

MOST_WORKERS, LARGEST_SIDE = 1024, 4096
LARGEST_NUMBER, LARGEST_SEED = 2**31 - 1, 2**63 - 1
PACK_NAME = r"\w[\w.-]*"
# output -> what an earlier one holds, and within how many bytes from its beginning
OUTPUTS = {"save_features": (b"label-over-smoothing feature pack", 1 << 22), "predictions": (b"image,", 6)}
_KINDS = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,)}
_SEEDS = ("seed", "seeds", "subset_seed")
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
    "mixup": (lambda v: v >= 0, "0 or more"),
    "eval_every": (lambda v: v >= 1, "1 or more"),
    "image_size": (lambda v: 8 <= v <= LARGEST_SIDE, f"8 to {LARGEST_SIDE}"),
    "jitter": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "shots": (lambda v: v >= 1, "1 or more"),
    "views": (lambda v: v >= 0, "0 or more"),
    "workers": (lambda v: 0 <= v <= MOST_WORKERS, f"0 to {MOST_WORKERS}"),
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


def check_network(values: dict, sources: dict) -> None:
    if sources.get("network") == "given":
        try:
            network_exists(values["network"])
        except ValueError as error:
            raise UserError(f"--network: {error}") from error


def check_known(path: Path, known: dict, given: dict, is_pack: bool = False) -> None:
    """What a file says of its making obeys the rules of the arguments, and chooses no code to run.

    Raises:
        UserError: it does not; names the file.
    """
    for argument in ARGUMENTS:
        name, value = argument.name, known.get(argument.name)
        if value is None:
            continue
        several = value if argument.sweep and isinstance(value, list) else [value]
        if any(type(one) not in _KINDS[argument.kind] for one in several):
            raise UserError(f"{path} is of no use: its {name} is {value!r:.60}")
        own = is_pack and name == "dataset"  # a pack may have any name that a folder can have
        wrong = own and not re.fullmatch(PACK_NAME, value)
        if wrong or (argument.choices and value not in argument.choices and not own):
            raise UserError(f"{path} is of no use: there is no {name} {value!r:.60}")
    try:
        _check_shots(known)
        check_ranges({argument.name: known.get(argument.name) for argument in ARGUMENTS})
        if known.get("network") is not None and not is_pack:
            network_exists(known["network"])
    except (UserError, ValueError) as error:
        raise UserError(f"{path} is of no use: {error!s:.200}") from error
    if not is_pack and ":" in (known.get("network") or "") and "network" not in given:
        raise UserError(
            f"{path} was made with --network {known['network']}, code of its own that no file may choose to "
            "run: say --network yourself"
        )


def check_against(known: dict, given: dict) -> None:
    for name in FIXED_BY_CHECKPOINT:
        if name in known and name in given and given[name] != known[name]:
            raise UserError(
                f"the checkpoint or pack was made with --{name} {known[name]}, but --{name} {given[name]} is "
                "asked for: leave the argument out, or name another file"
            )


def check_ranges(values: dict) -> None:
    for name, several in values.items():
        for value in several if isinstance(several, list) else [several]:
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be a finite number, got {value}")
            if name in _RANGES and value is not None and not _RANGES[name][0](value):
                raise UserError(f"--{name} must be {_RANGES[name][1]}, got {value}")
            largest = LARGEST_SEED if name in _SEEDS else LARGEST_NUMBER
            if isinstance(value, int) and value > largest:
                raise UserError(f"--{name} must be at most {largest}, got {value}")
        if isinstance(several, list) and len(set(several)) < len(several) and name != "shots":
            raise UserError(f"--{name} names a value twice: {', '.join(map(str, several))}")


def check_pairs(script: str, given: dict, known: dict, values: dict, preset: dict) -> None:
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
    own_stage = {STAGE1: "stage1", STAGE2: "stage2"}.get(script)
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
    _ask_for_folder(given, values["dataset"])
    _check_resuming(given, values)
    _check_targets(given, values)
    _check_shots(values)
    _check_pack(given, values)
    _check_files(given, values)
    if values.get("select") == "val" and values["val_source"] == "none":
        ways = "this pack holds none" if "features" in given else "take --val_source own, unused or heldout"
        raise UserError(f"--select val needs validation images: {ways}")


def _ask_for_folder(given: dict, dataset: str) -> None:
    """A user who names a folder of photographs and no data set does not want CIFAR downloaded into it."""
    place = given.get("data_dir")
    if place is None or "dataset" in given or not dataset.startswith("cifar") or any(place.glob("cifar-*")):
        return
    names = (path.name.lower() for depth in ("*", "*/*") for path in place.glob(depth))
    if (place / "train").is_dir() or any(name.endswith((*ENDINGS, ".heic", ".heif")) for name in names):
        raise UserError(
            f"--data_dir {place} holds images, no CIFAR: was --dataset folder meant? (else say --dataset "
            f"{dataset} as well)"
        )


def _check_targets(given: dict, values: dict) -> None:
    """What is to be written at the end must not turn out to be a folder then, or to take an input's place."""
    for name in ("save_features", "predictions"):
        if name in given:
            check_output(name, given[name], *OUTPUTS[name])
    if values["dataset"] != "folder":
        return
    images = {os.path.realpath(Path(values["data_dir"]) / part) for part in ("train", "val", "test")}
    for name in ("out", "ckpt_dir", "save_features", "predictions"):
        place = Path(os.path.realpath(given.get(name, "")))
        if name in given and images & {str(place), *map(str, place.parents)}:
            raise UserError(f"--{name} {given[name]} lies among the images of --data_dir: name another place")


def _check_resuming(given: dict, values: dict) -> None:
    if not re.fullmatch(r"[1-9]\d*m?", values.get("save_every") or "1"):
        raise UserError(
            f"--save_every takes a number of steps, or of minutes as 10m, got {values['save_every']}"
        )
    if given.get("force_resume") and "resume" not in given:
        raise UserError("--force_resume has a meaning with --resume only")


def _check_shots(values: dict) -> None:
    shots = values.get("shots")
    if shots is not None and not (isinstance(shots, list) and len(shots) == 2 and shots[0] <= shots[1]):
        raise UserError(f"--shots takes two limits LOW,HIGH as in 20,100, got {shots}")


def _check_files(given: dict, values: dict) -> None:
    """What speaks of images on disk has no meaning for a set in memory, and lists are for one of them."""
    dataset = values["dataset"]
    if dataset not in FILE_DATASETS and "predict" not in given:
        takes = ("normalise",) if dataset.startswith("cifar") else ()
        idle = [name for name in _FILES if name in given and name not in takes]
        if idle:
            raise UserError(f"--{idle[0]} is for images on disk, {dataset} has no use for it")
    lists = [name for name in LISTS if name in given]
    if lists and dataset != "list":
        raise UserError(f"--{lists[0]} goes with --dataset list, not with {dataset}")
    images = not {"predict", "features"} & given.keys()
    if dataset == "list" and images and {"train_list", "test_list"} - set(lists):
        raise UserError("--dataset list needs --train_list FILE and --test_list FILE (lines `path label`)")
    for one, other in (("tta", "no_tta"), ("tta", "no_flip")):
        if one in given and other in given:
            raise UserError(f"--{one} and --{other} contradict each other: give one of them")


def _check_pack(given: dict, values: dict) -> None:
    """A feature pack holds the images' features, so what makes or reads images has no meaning beside it."""
    if "features" in given:
        idle = [name for name in NOT_WITH_PACK if name in given]
        if idle:
            raise UserError(f"--features holds the features already: --{idle[0]} has no use beside it")
    on_disk = values["dataset"] in FILE_DATASETS or os.environ.get("WORLD_SIZE", "1") != "1"
    if "pack_dtype" in given and "save_features" not in given and not on_disk:
        raise UserError("--pack_dtype is for --save_features: name a file, or leave it out")
    if "save_features" in given and values["bn_mode"] == "train":
        raise UserError("--save_features needs frozen features, --bn_mode train lets them drift")
