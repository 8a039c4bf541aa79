"""Every argument in one row: all lists of arguments, their help, ranges and page are derived from here.

Defaults that depend on the data set are in presets.py.
"""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from datasets import AUGMENTS, CHANNELS, DATASETS, VAL_SOURCES
from losses import LOSSES
from models import NETWORKS
from utils.settings.methods import DECLARED
from utils.settings.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, ONE_OR_MORE, Range, within, written

STAGE1, STAGE2, EVALUATE = "main_stage1.py", "main_stage2.py", "evaluate.py"
CHECK = "datasets.check"
ALL = (STAGE1, STAGE2, EVALUATE)
DATA = (*ALL, CHECK)
TRAIN = (STAGE1, STAGE2)
LARGEST_NUMBER, LARGEST_SEED = 2**31 - 1, 2**63 - 1
LARGEST_SIDE, MOST_WORKERS = 4096, 1024


class Mark(Enum):
    """What sets an argument apart from others; the value is what docs/arguments.md says of those marked."""

    FIXED = "A checkpoint or pack was made with one value, and a later step must not contradict it"
    INHERITED = "A later step takes the value of the checkpoint over where nothing is given"
    VIEW = "They say how image files are looked at, and are inherited as well"
    FILES = "They have a meaning for images on disk only"
    LIST = "They name the lists of `--dataset list`"
    NOT_WITH_PACK = "They have no meaning beside `--features`; nor have those of images on disk"
    RUNNING = "They may change where a run goes on"
    PLACE = "They name a place, which may be another where a run goes on; so do the lists"
    SHARED = "A printed command that makes a missing checkpoint repeats them where they were given"
    CELL = "A grid of `utils.reproduce` says them by keys of its own"
    RUNNER = "The runner of a grid says them"
    PUBLIC = "The public code's words: a script that has no use for one says so and goes on"


@dataclass(frozen=True)
class Argument:
    """`default` is that of all presets, None where it is not set or each has its own. `allowed` is the range
    of each value, `most` the largest of whole numbers. `sweep`: several values with commas between.
    """

    name: str
    kind: type
    scripts: tuple[str, ...]
    default: object = None
    help: str = ""
    allowed: Range | None = None
    most: int = LARGEST_NUMBER
    choices: tuple[str, ...] | None = None
    sweep: bool = False
    marks: frozenset[Mark] | set[Mark] = frozenset()
    group: str = ""


_ONE, _TWO = (STAGE1,), (STAGE2,)
_DELTA = Range(
    BELOW_ONE.holds,
    "at least 0 and below 1 (at 1 every label is 1/K, above it the true class would be the least likely)",
)
_SHARE = Range(lambda v: 0 < v < 1, "above 0 and below 1")
# group of --help -> its arguments
# fmt: off
_GROUPS = {
    "data": (
        Argument("dataset", str, DATA, choices=tuple(DATASETS), marks={Mark.FIXED, Mark.CELL},
            help="which data set; your own images: folder (a sub-folder a class) or list (text files)"),
        Argument("data_dir", Path, DATA, "data", marks={Mark.NOT_WITH_PACK, Mark.PLACE, Mark.RUNNER},
            help="folder with the data files; CIFAR is downloaded there where missing"),
        Argument("split_dir", Path, DATA, marks={Mark.FILES, Mark.PLACE},
            help="folder of the split lists or annotations, if not --data_dir"),
        *(Argument(f"{part}_list", Path, DATA, marks={Mark.LIST},
            help=f"list of the {meaning} images, lines `path label`; for --dataset list")
          for part, meaning in (("train", "training"), ("val", "validation"), ("test", "test"))),
        Argument("allow_partial", bool, DATA, False, marks={Mark.FILES},
            help="go on with a named data set whose totals are not its own"),
        Argument("imb_ratio", float, DATA, allowed=Range(lambda v: v >= 1, "a number of 1 or more"),
            marks={Mark.FIXED, Mark.CELL},
            help="images of the most frequent class per image of the rarest; own images are cut down to it"),
        Argument("num_class", int, DATA, allowed=Range(lambda v: v >= 2, "2 or more"), marks={Mark.FIXED},
            help="number of classes; must be the data set's own"),
        Argument("subset_seed", int, DATA, allowed=NOT_NEGATIVE, most=LARGEST_SEED,
            marks={Mark.FIXED, Mark.NOT_WITH_PACK},
            help="draw the kept images with this seed instead of the first of each class"),
        Argument("shots", int, ALL, allowed=ONE_OR_MORE, sweep=True, marks={Mark.INHERITED},
            help="limits LOW,HIGH of the shot groups: few below LOW training images, many above HIGH; of "
                 "own images thirds of the classes, where the usual 20,100 leave a group next to none"),
        Argument("test_fraction", float, DATA, allowed=_SHARE, marks={Mark.FIXED, Mark.FILES},
            help="share of each class that tests, where own images have no test part; the same in all runs"),
        Argument("val_source", str, (*TRAIN, CHECK), choices=VAL_SOURCES,
            marks={Mark.INHERITED, Mark.NOT_WITH_PACK},
            help="validation images: own (the data set's list or folder), unused (left out by the long-"
                 "tailed set, up to 20 a class), heldout (taken from it before stage 1), none"),
        Argument("val_fraction", float, (*TRAIN, CHECK), 0.1,
            allowed=_SHARE, marks={Mark.INHERITED, Mark.NOT_WITH_PACK},
            help="share of each class's training images held out; given, --val_source is heldout"),
        Argument("workers", int, DATA, 0, allowed=within(0, MOST_WORKERS),
            marks={Mark.NOT_WITH_PACK, Mark.RUNNING},
            help="loader processes of images on disk, for each process"),
    ),
    "images on disk": (
        Argument("data_digest", str, TRAIN, choices=("sample", "full"), marks={Mark.FILES, Mark.RUNNING},
            help="what is compared where a run goes on or starts from a model of the same images: sample "
                 "(names, sizes, times, bytes of 1,024 files), or full (all bytes)"),
        Argument("image_size", int, ALL, allowed=within(8, LARGEST_SIDE), marks={Mark.VIEW},
            help="pixels of a side that the network sees"),
        Argument("resize", int, ALL, allowed=within(8, 2 * LARGEST_SIDE), marks={Mark.VIEW},
            help="pixels of the shorter side at test, before the centre is cropped; default: 256/224 of "
                 "--image_size"),
        Argument("interpolation", str, ALL, choices=("bilinear", "bicubic"), marks={Mark.VIEW},
            help="how images are resized (default bilinear)"),
        Argument("augment", str, ALL, choices=AUGMENTS, marks={Mark.VIEW},
            help="training view: resized_crop (of 8 to 100 % of the area), pad_crop (resize, pad, crop: "
                 "for small images), plain"),
        Argument("jitter", float, ALL, allowed=BELOW_ONE, marks={Mark.VIEW},
            help="strength of the colour jitter, 0 to below 1"),
        Argument("no_flip", bool, ALL, False, marks={Mark.VIEW}, help="no mirror images in training"),
        Argument("normalise", str, ALL, choices=tuple(CHANNELS), marks={Mark.VIEW},
            help="channel mean and deviation of which set; for CIFAR too, whose own is the default there"),
    ),
    "model": (
        Argument("network", str, ALL, marks={Mark.FIXED, Mark.CELL},
            help=f"{', '.join(NETWORKS)}, any classification model of torchvision by its name, or "
                 "module:function of your own"),
        Argument("stem", str, ALL, "small", choices=("small", "imagenet"), marks={Mark.FIXED},
            help="first layers of resnet18, 34, 50, ...: small (3x3, for images up to about 64 pixels) or "
                 "imagenet (7x7 with stride 2, max-pool)"),
        Argument("pretrained", Path, _ONE, marks={Mark.PLACE},
            help="start stage 1 from the weights of this file, all but the classifier"),
        Argument("pretrained_pth", Path, (STAGE2, EVALUATE), marks={Mark.PUBLIC, Mark.PLACE, Mark.CELL},
            help="checkpoint to start from or to evaluate; default: that which the stage before has left"),
        Argument("head", str, (EVALUATE,),
            help="method whose head is taken, where --pretrained_pth is the last.pth of a run of several"),
    ),
    "optimisation": (
        Argument("epochs", int, _ONE, allowed=ONE_OR_MORE, marks={Mark.PUBLIC}, help="stage-1 epochs"),
        Argument("batch_size", int, TRAIN, allowed=ONE_OR_MORE, marks={Mark.PUBLIC},
            help="images a step, over all processes; a preset's learning rate is scaled with it"),
        Argument("accum", int, _ONE, 1, allowed=ONE_OR_MORE,
            help="parts in which a process takes its share of a step"),
        Argument("lr", float, _ONE, allowed=ABOVE_ZERO, marks={Mark.PUBLIC},
            help="stage-1 learning rate at its peak; cosine to 0, a value an epoch"),
        Argument("warmup_epochs", int, _ONE, allowed=NOT_NEGATIVE,
            help="epochs over which the learning rate rises linearly"),
        Argument("loss", str, _ONE, "ce", choices=tuple(LOSSES),
            help="loss, with the options that stage 2 gives the method of its name (ldam: scale 1)"),
        Argument("momentum", float, TRAIN, allowed=BELOW_ONE, marks={Mark.PUBLIC},
            help="SGD momentum, 0 to below 1"),
        Argument("wd", float, _ONE, allowed=NOT_NEGATIVE, marks={Mark.PUBLIC},
            help="stage-1 weight decay, on all parameters"),
        Argument("nesterov", bool, TRAIN, False, marks={Mark.PUBLIC}, help="Nesterov momentum"),
        Argument("mixup", float, _ONE, 0.0, allowed=NOT_NEGATIVE,
            help="α above 0: train on mixtures of two images, in shares λ and 1 - λ, λ ~ Beta(α, α) for "
                 "each batch, or part of one; train_accuracy then counts hits of the label with the larger "
                 "share; 0: off"),
        Argument("finetune_epoch", int, _TWO, allowed=ONE_OR_MORE, sweep=True, marks={Mark.PUBLIC},
            help="stage-2 epochs"),
        Argument("finetune_lr", float, _TWO, allowed=ABOVE_ZERO, sweep=True, marks={Mark.PUBLIC},
            help="stage-2 learning rate; cosine to 0, a value an epoch"),
        Argument("finetune_wd", float, _TWO, allowed=NOT_NEGATIVE, sweep=True, marks={Mark.PUBLIC},
            help="stage-2 weight decay, on the classifier"),
    ),
    "re-training methods": (
        Argument("method", str, _TWO, "los", marks={Mark.CELL},
            help="how the classifier is re-trained: names with commas between, all, list (prints them and "
                 "ends), or module:function of your own"),
        Argument("budget", str, _TWO, choices=("source", "preset", "equal"),
            help="settings of each method: its source's; but los and ce with the defaults of data set and "
                 "network (preset); its source's, but 20 epochs for all (equal). Default: preset for one "
                 "method, source for several; what you give wins"),
        Argument("seeds", int, _TWO, allowed=NOT_NEGATIVE, sweep=True, most=LARGEST_SEED, marks={Mark.CELL},
            help="several seeds of stage 2, with commas between, as further heads over the same features"),
    ),
    "label over-smoothing": (
        Argument("label_smooth", float, TRAIN, allowed=_DELTA, sweep=True, marks={Mark.PUBLIC},
            help="δ of the over-smoothed label (1 - δ) onehot + δ/K; 0 is cross-entropy, stage 1's default"),
        Argument("logit_gap", float, _TWO, allowed=ABOVE_ZERO, sweep=True,
            help="instead of δ: gap g between the true and the other logits at the optimum, the same for "
                 "any K: δ = K / (K - 1 + e^g); g = 1.11 is δ = 0.98 at K = 100"),
        Argument("path", float, _TWO, allowed=ABOVE_ZERO, sweep=True,
            help="los, ce: in place of a learning rate, the logit drop of the most frequent class that LOS"
                 " makes to first order; los_step: the drop itself"),
    ),
    "options of methods (commas make a sweep)": (
        *(Argument(name, float, _TWO, allowed=allowed, sweep=True, help=help)
          for name, (allowed, help) in DECLARED.items()),
        Argument("option", str, _TWO,
            help="options that a method of your own declares, as `name=value name=value,value`"),
    ),
    "frozen features": (
        Argument("features", Path, (STAGE2, EVALUATE), marks={Mark.PLACE, Mark.SHARED, Mark.CELL},
            help="feature pack instead of images, from stage 2 or `python -m utils.features`"),
        Argument("save_features", Path, _TWO, marks={Mark.NOT_WITH_PACK, Mark.PLACE},
            help="write the frozen features, labels and stage-1 classifier to this pack"),
        Argument("pack_dtype", str, _TWO, "fp16", choices=("fp16", "fp32"),
            help="number type of --save_features, and of features that a run keeps on disk"),
        Argument("views", int, _TWO, allowed=NOT_NEGATIVE, marks={Mark.NOT_WITH_PACK, Mark.CELL},
            help="augmented views of the training set to compute once and reuse in turn; 0: the plain "
                 "images; default: a fresh view every epoch, after 20 the same in turn"),
        Argument("bn_mode", str, _TWO, "eval", choices=("eval", "train"), marks={Mark.NOT_WITH_PACK},
            help="eval: batch-norm frozen with the backbone; train: its statistics drift"),
    ),
    "selection and report": (
        Argument("select", str, TRAIN, "last", choices=("last", "val", "test"), marks={Mark.CELL},
            help="what chooses the epoch and among a method's settings: last (nothing), val (validation "
                 "images), test (published protocol, optimistic)"),
        Argument("protocol", str, ALL, "honest", choices=("honest", "published"),
            help="published: as the public code does, optimistic: both stages keep the best epoch on test, "
                 "batch-norm drifts in stage 2, mirror averaging; single switches win over it"),
        Argument("publish", str, _TWO, choices=("best", "first"),
            help="which of several methods is left for evaluate: best (on what selects; the default with "
                 "--select val) or first (the first named, los under all; the default else)"),
        Argument("target_prior", str, (STAGE2, EVALUATE),
            help="correct logits for class shares of a test set: known (those of the report's shifted test "
                 "sets) or a number above 0 for each class, commas between; the rest stays as it is"),
        Argument("eval_every", int, _ONE, 1, allowed=ONE_OR_MORE,
            help="score the validation (or test) part after every N-th epoch only, and after the last"),
        Argument("no_tta", bool, ALL, False, marks={Mark.NOT_WITH_PACK},
            help="evaluate the image alone, without averaging in its mirror image"),
        Argument("tta", bool, ALL, False, marks={Mark.VIEW},
            help="average in the mirror image at test where the data set's protocol does not"),
        Argument("predictions", Path, (EVALUATE,),
            help="write a csv file with a row a test image: label, the three first classes, confidences"),
        Argument("logits", Path, (EVALUATE,),
            help="write features, logits, labels and class names of the test set to this .npz file"),
        Argument("predict", Path, (EVALUATE,), marks={Mark.NOT_WITH_PACK},
            help="in place of the test set: predict every image below this folder, this image, or with "
                 "--features the rows of this .npy file, labels unknown, into --predictions (default: "
                 "predictions.csv in the run folder)"),
        Argument("encoder", str, (EVALUATE,), marks={Mark.PLACE},
            help="with --predict and a classifier of features: the encoder that made them, its file of "
                 "weights or its module:function"),
    ),
    "run": (
        Argument("cur_stage", str, ALL, choices=("stage1", "stage2"), marks={Mark.RUNNER},
            help="stage of the run, or of the checkpoint to evaluate"),
        Argument("out", Path, ALL, "output", marks={Mark.RUNNING, Mark.SHARED, Mark.RUNNER},
            help="folder for the run folders"),
        Argument("ckpt_dir", Path, ALL, "checkpoints", marks={Mark.RUNNING, Mark.SHARED, Mark.RUNNER},
            help="folder where a stage leaves its checkpoint for the next"),
        Argument("resume", Path, TRAIN, marks={Mark.RUNNING, Mark.RUNNER},
            help="last.pth or run folder of a run that was cut off: go on in its folder; auto: the newest "
                 "unfinished run of this very configuration, else a fresh one"),
        Argument("overwrite", bool, TRAIN, False, marks={Mark.RUNNING, Mark.RUNNER},
            help="leave the model in the place of one of other data or more epochs, kept under a number"),
        Argument("save_every", str, TRAIN,
            allowed=written(r"[1-9]\d*m?", "a number of steps, or of minutes as 10m"), marks={Mark.RUNNING},
            help="save within the epochs too: a number of steps, or of minutes as 10m"),
        Argument("seed", int, TRAIN, allowed=NOT_NEGATIVE, most=LARGEST_SEED, marks={Mark.PUBLIC, Mark.CELL},
            help="seed of initialisation, order and augmentation; drawn and recorded where not given"),
        Argument("device", str, ALL, "auto", marks={Mark.RUNNING, Mark.SHARED, Mark.RUNNER},
            help="auto, cpu, cuda or cuda:N"),
        Argument("deterministic", bool, ALL,
            help="the same bits from run to run on CUDA too; a network that cannot is refused"),
        Argument("amp", str, ALL, "off", choices=("off", "bf16", "fp16"), marks={Mark.NOT_WITH_PACK},
            help="mixed precision of the backbone; fp16 needs CUDA; off is torch's default"),
        Argument("compile", bool, ALL, False, marks={Mark.NOT_WITH_PACK},
            help="torch.compile the backbone for full batches"),
        Argument("cuda_graphs", bool, _ONE, False,
            help="record a training step once and replay it on a CUDA device, for less work of the host"),
        Argument("gpu", int, ALL, allowed=NOT_NEGATIVE, marks={Mark.RUNNING, Mark.SHARED, Mark.RUNNER},
            help="number of the CUDA device, short for --device cuda:N"),
        Argument("quiet", bool, ALL, False, marks={Mark.RUNNING, Mark.RUNNER},
            help="print the result line only; log.txt keeps the rest"),
        Argument("verbose", bool, ALL, False, marks={Mark.RUNNING, Mark.RUNNER},
            help="print the whole configuration at the start, as config.json has it"),
    ),
}
# fmt: on
_OF_THE_MODEL = ("data", "images on disk", "model")
ARGUMENTS = tuple(replace(row, group=group) for group, rows in _GROUPS.items() for row in rows)


def arguments_of(script: str) -> list[Argument]:
    return [argument for argument in ARGUMENTS if script in argument.scripts]


def marked(*marks: Mark) -> tuple[str, ...]:
    """The names of the arguments that have one of these marks."""
    return tuple(argument.name for argument in ARGUMENTS if argument.marks.intersection(marks))


FIXED_BY_CHECKPOINT = marked(Mark.FIXED)
ON_DISK = marked(Mark.VIEW)
INHERITED = marked(Mark.INHERITED, Mark.VIEW)
LISTS = marked(Mark.LIST)
OF_FILES = marked(Mark.FILES, Mark.VIEW, Mark.LIST)
NOT_WITH_PACK = (*marked(Mark.NOT_WITH_PACK), *OF_FILES)
SHARED = tuple(row.name for row in ARGUMENTS if row.group in _OF_THE_MODEL or Mark.SHARED in row.marks)
RUNNING = marked(Mark.RUNNING)
FREE = marked(Mark.RUNNING, Mark.PLACE, Mark.LIST)  # what may change where a run goes on
