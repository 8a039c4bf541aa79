"""The command line as one table: name, type, meaning, scripts that take it. Defaults live in presets.py."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from datasets import DATASETS
from datasets.split import VAL_SOURCES
from models import NETWORKS
from utils.errors import UserError

STAGE1, STAGE2, EVALUATE = "main_stage1.py", "main_stage2.py", "evaluate.py"
ALL = (STAGE1, STAGE2, EVALUATE)
TRAIN = (STAGE1, STAGE2)


@dataclass(frozen=True)
class Argument:
    name: str
    kind: type
    help: str
    group: str
    scripts: tuple[str, ...] = ALL
    choices: Sequence[str] | None = None
    sweep: bool = False  # several values with commas between


ARGUMENTS = [
    Argument("dataset", str, "which data set", "data", choices=tuple(DATASETS)),
    Argument("data_dir", Path, "folder with the data files; CIFAR is downloaded there where missing", "data"),
    Argument(
        "imb_ratio", float, "images of the most frequent class per image of the rarest, 1 or more", "data"
    ),
    Argument("num_class", int, "number of classes; must be the data set's own", "data"),
    Argument(
        "subset_seed", int, "draw the kept images with this seed instead of the first of each class", "data"
    ),
    Argument(
        "val_source",
        str,
        "validation images: unused (left out by the long-tailed set, up to 20 a class), heldout (taken from "
        "it before stage 1), none",
        "data",
        TRAIN,
        choices=VAL_SOURCES,
    ),
    Argument("val_fraction", float, "share of each class held out, with --val_source heldout", "data", TRAIN),
    Argument("workers", int, "loader processes; sets that live on the device need none", "data", TRAIN),
    Argument("network", str, "which ResNet", "model", choices=tuple(NETWORKS)),
    Argument(
        "pretrained_pth",
        Path,
        "checkpoint to start from or to evaluate; default: the one that the stage before left behind",
        "model",
        (STAGE2, EVALUATE),
    ),
    Argument("epochs", int, "stage-1 epochs", "optimisation", (STAGE1,)),
    Argument("batch_size", int, "images a step", "optimisation", TRAIN),
    Argument(
        "lr",
        float,
        "stage-1 learning rate at its peak; cosine to 0, a value an epoch",
        "optimisation",
        (STAGE1,),
    ),
    Argument(
        "warmup_epochs", int, "epochs over which the learning rate rises linearly", "optimisation", (STAGE1,)
    ),
    Argument("momentum", float, "SGD momentum, 0 to below 1", "optimisation", TRAIN),
    Argument("wd", float, "stage-1 weight decay, on all parameters", "optimisation", (STAGE1,)),
    Argument("nesterov", bool, "Nesterov momentum", "optimisation", TRAIN),
    Argument("finetune_epoch", int, "stage-2 epochs", "optimisation", (STAGE2,), sweep=True),
    Argument(
        "finetune_lr",
        float,
        "stage-2 learning rate; cosine to 0, a value an epoch",
        "optimisation",
        (STAGE2,),
        sweep=True,
    ),
    Argument(
        "finetune_wd", float, "stage-2 weight decay, on the classifier", "optimisation", (STAGE2,), sweep=True
    ),
    Argument(
        "method",
        str,
        "how the classifier is re-trained: names with commas between, all, or list (prints them and ends)",
        "re-training methods",
        (STAGE2,),
    ),
    Argument(
        "budget",
        str,
        "epochs of each method: its source's, or 20 for all (equal); --finetune_epoch wins over both",
        "re-training methods",
        (STAGE2,),
        choices=("source", "equal"),
    ),
    Argument(
        "seeds",
        int,
        "several seeds of stage 2, with commas between, as further heads over the same features",
        "re-training methods",
        (STAGE2,),
        sweep=True,
    ),
    Argument(
        "label_smooth",
        float,
        "δ of the over-smoothed label (1 - δ) onehot + δ/K, 0 to below 1; 0 is cross-entropy, the control",
        "label over-smoothing",
        (STAGE2,),
        sweep=True,
    ),
    Argument(
        "logit_gap",
        float,
        "instead of δ: gap g between the true and the other logits at the optimum, the same for any K: "
        "δ = K / (K - 1 + e^g); g = 1.11 is δ = .98 at K = 100",
        "label over-smoothing",
        (STAGE2,),
        sweep=True,
    ),
    Argument(
        "path",
        float,
        "los, ce: in place of a learning rate, the logit drop of the most frequent class that LOS makes to "
        "first order; los_step: the drop itself",
        "label over-smoothing",
        (STAGE2,),
        sweep=True,
    ),
    *(
        Argument(name, float, meaning, "options of methods (commas make a sweep)", (STAGE2,), sweep=True)
        for name, meaning in (
            ("tau", "tau_norm: power of the row norms; la, bsce: weight of the log frequencies; 0 or more"),
            ("rho", "disalign, marc: class weights go with frequency to the -ρ, 0 or more"),
            ("beta", "cb, wb: β of the effective number of images, 0 to below 1"),
            ("gamma", "focal: γ of (1 - p)^γ, 0 or more"),
            ("max_margin", "ldam: margin of the rarest class, 0 or more"),
            ("scale", "ldam, etf: factor on the cosines, above 0"),
            ("alpha", "lade: weight of the regulariser, 0 or more"),
            ("lam", "lade: weight of its square, 0 or more"),
            ("eps_head", "label_aware: smoothing of the most frequent class, 0 to below 1"),
            ("eps_tail", "label_aware: smoothing of the rarest class, 0 to below 1"),
            ("max_norm", "wb: row norms may reach the least plus this share of their range, 0 to 1"),
        )
    ),
    Argument(
        "features",
        Path,
        "feature pack to take instead of images: stage 2 or `python -m utils.features pack` makes one",
        "frozen features",
        (STAGE2, EVALUATE),
    ),
    Argument(
        "save_features",
        Path,
        "write the frozen features, labels and stage-1 classifier to this pack (the cached views, else the "
        "plain images)",
        "frozen features",
        (STAGE2,),
    ),
    Argument(
        "pack_dtype",
        str,
        "number type of --save_features",
        "frozen features",
        (STAGE2,),
        choices=("fp16", "fp32"),
    ),
    Argument(
        "views",
        int,
        "augmented views of the training set to compute once and reuse in turn; 0: the plain images; "
        "default: a fresh view every epoch",
        "frozen features",
        (STAGE2,),
    ),
    Argument(
        "bn_mode",
        str,
        "eval: batch-norm frozen with the backbone; train: its statistics drift, as in the public code",
        "frozen features",
        (STAGE2,),
        choices=("eval", "train"),
    ),
    Argument(
        "select",
        str,
        "what chooses the epoch and among a method's settings: last (nothing), val (validation images), test "
        "(published protocol, optimistic)",
        "selection and report",
        TRAIN,
        choices=("last", "val", "test"),
    ),
    Argument(
        "no_tta",
        bool,
        "evaluate the image alone, without averaging in its mirror image",
        "selection and report",
    ),
    Argument(
        "cur_stage",
        str,
        "stage of the run, or of the checkpoint to evaluate",
        "run",
        choices=("stage1", "stage2"),
    ),
    Argument("out", Path, "folder for the run folders", "run"),
    Argument("ckpt_dir", Path, "folder where a stage leaves its checkpoint for the next", "run"),
    Argument("resume", Path, "last.pth of a run that was cut off: go on in its run folder", "run", (STAGE1,)),
    Argument(
        "seed",
        int,
        "seed of initialisation, order and augmentation; drawn and recorded where not given",
        "run",
        TRAIN,
    ),
    Argument("device", str, "auto, cpu, cuda, cuda:N or mps", "run"),
    Argument("gpu", int, "number of the CUDA device, short for --device cuda:N", "run"),
    Argument("quiet", bool, "print the result line only; log.txt keeps the rest", "run"),
]


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _several(kind: type) -> Callable[[str], object]:
    """A value, or where there are commas, the list of values."""

    def convert(text: str) -> object:
        values = [kind(word) for word in text.split(",")]
        return values if len(values) > 1 else values[0]

    convert.__name__ = kind.__name__
    return convert


def parse(script: str, description: str, argv: Sequence[str] | None = None) -> dict:
    """What the user gave, by name; an argument that was not given is absent.

    Raises:
        UserError: an unknown argument, one of another script, or a value of the wrong type.
    """
    parser = Parser(
        prog=script,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="Defaults depend on the data set and network and are printed at the start of a run.",
    )
    groups = {}
    for argument in ARGUMENTS:
        if script not in argument.scripts:
            continue
        group = groups.setdefault(argument.group, parser.add_argument_group(argument.group))
        options = {"help": argument.help.replace("%", "%%")}
        if argument.kind is bool:
            options["action"] = "store_true"
        else:
            options |= {
                "type": _several(argument.kind) if argument.sweep else argument.kind,
                "choices": argument.choices,
                "metavar": argument.kind.__name__.upper() + (",..." if argument.sweep else ""),
            }
        if argument.choices:
            del options["metavar"]
        group.add_argument(f"--{argument.name}", **options)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_explain_unknown(script, unknown[0]))
    return vars(given)


def _explain_unknown(script: str, word: str) -> str:
    name = word.removeprefix("--").partition("=")[0]
    elsewhere = [argument for argument in ARGUMENTS if argument.name == name]
    if word.startswith("--") and elsewhere:
        return f"--{name} is an argument of {' and '.join(elsewhere[0].scripts)}, {script} has no use for it"
    here = [argument.name for argument in ARGUMENTS if script in argument.scripts]
    close = difflib.get_close_matches(name, here, n=1)
    hint = f", did you mean --{close[0]}?" if close else f" (see {script} --help)"
    return f"unknown argument {word}{hint}"
