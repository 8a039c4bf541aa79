"""The command line as one table: name, type, meaning, scripts that take it. Defaults live in presets.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import DATASETS
from datasets.split import VAL_SOURCES
from datasets.types import AUGMENTS, CHANNELS
from losses import LOSSES
from models import NETWORKS

STAGE1, STAGE2, EVALUATE = "main_stage1.py", "main_stage2.py", "evaluate.py"
CHECK = "datasets.check"
ALL = (STAGE1, STAGE2, EVALUATE)
DATA = (*ALL, CHECK)
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
    Argument(
        "dataset",
        str,
        "which data set; your own images: folder (a sub-folder a class) or list (text files)",
        "data",
        DATA,
        choices=tuple(DATASETS),
    ),
    Argument(
        "data_dir",
        Path,
        "folder with the data files; CIFAR is downloaded there where missing",
        "data",
        DATA,
    ),
    Argument("split_dir", Path, "folder of the split lists or annotations, if not --data_dir", "data", DATA),
    *(
        Argument(
            f"{part}_list",
            Path,
            f"list of the {meaning} images, lines `path label`; for --dataset list",
            "data",
            DATA,
        )
        for part, meaning in (("train", "training"), ("val", "validation"), ("test", "test"))
    ),
    Argument("allow_partial", bool, "go on with a named data set whose totals are not its own", "data", DATA),
    Argument(
        "imb_ratio",
        float,
        "images of the most frequent class per image of the rarest, 1 or more; your own images: made "
        "long-tailed so, else as they are",
        "data",
        DATA,
    ),
    Argument("num_class", int, "number of classes; must be the data set's own", "data", DATA),
    Argument(
        "subset_seed",
        int,
        "draw the kept images with this seed instead of the first of each class",
        "data",
        DATA,
    ),
    Argument(
        "shots",
        int,
        "limits LOW,HIGH of the shot groups: few below LOW training images, many above HIGH; 20,100",
        "data",
        sweep=True,
    ),
    Argument(
        "val_source",
        str,
        "validation images: own (the data set's list or folder), unused (left out by the long-tailed set, "
        "up to 20 a class), heldout (taken from it before stage 1), none",
        "data",
        (*TRAIN, CHECK),
        choices=VAL_SOURCES,
    ),
    Argument(
        "val_fraction",
        float,
        "share of each class held out, with --val_source heldout",
        "data",
        (*TRAIN, CHECK),
    ),
    Argument(
        "workers",
        int,
        "loader processes of images on disk, for each process; sets that live on the device need none",
        "data",
        DATA,
    ),
    Argument(
        "data_digest",
        str,
        "what is compared where a run goes on or starts from a model of the same images: sample (names, "
        "sizes, times, bytes of 1,024 files), or full (all bytes)",
        "images on disk",
        TRAIN,
        choices=("sample", "full"),
    ),
    Argument("image_size", int, "pixels of a side that the network sees", "images on disk"),
    Argument(
        "augment",
        str,
        "training view: resized_crop (of 8 to 100 % of the area), pad_crop (resize, pad, crop: for "
        "small images), plain",
        "images on disk",
        choices=AUGMENTS,
    ),
    Argument("jitter", float, "strength of the colour jitter, 0 to below 1", "images on disk"),
    Argument("no_flip", bool, "no mirror images in training", "images on disk"),
    Argument(
        "normalise",
        str,
        "channel mean and deviation of which set; for CIFAR too, whose own is the default there",
        "images on disk",
        choices=tuple(CHANNELS),
    ),
    Argument(
        "network",
        str,
        f"{', '.join(NETWORKS)}, any classification model of torchvision by its name, or module:function of "
        "your own",
        "model",
    ),
    Argument(
        "stem",
        str,
        "first layers of resnet18, 34, 50, ...: small (3x3, for images up to about 64 pixels) or imagenet "
        "(7x7 with stride 2, max-pool)",
        "model",
        choices=("small", "imagenet"),
    ),
    Argument(
        "pretrained",
        Path,
        "start stage 1 from the weights of this file, all but the classifier",
        "model",
        (STAGE1,),
    ),
    Argument(
        "pretrained_pth",
        Path,
        "checkpoint to start from or to evaluate; default: the one that the stage before left behind",
        "model",
        (STAGE2, EVALUATE),
    ),
    Argument("epochs", int, "stage-1 epochs", "optimisation", (STAGE1,)),
    Argument(
        "batch_size",
        int,
        "images a step, over all processes; a preset's learning rate is scaled with it",
        "optimisation",
        TRAIN,
    ),
    Argument("accum", int, "parts in which a process takes its share of a step", "optimisation", (STAGE1,)),
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
    Argument(
        "loss",
        str,
        "loss, with the options that stage 2 gives the method of its name; ldam is made for cosines",
        "optimisation",
        (STAGE1,),
        choices=tuple(LOSSES),
    ),
    Argument("momentum", float, "SGD momentum, 0 to below 1", "optimisation", TRAIN),
    Argument("wd", float, "stage-1 weight decay, on all parameters", "optimisation", (STAGE1,)),
    Argument("nesterov", bool, "Nesterov momentum", "optimisation", TRAIN),
    Argument(
        "mixup",
        float,
        "α above 0: train on mixtures of two images, in shares λ and 1 - λ, λ ~ Beta(α, α) for each batch; "
        "train_accuracy then counts hits of the label with the larger share; 0: off",
        "optimisation",
        (STAGE1,),
    ),
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
        "δ = K / (K - 1 + e^g); g = 1.11 is δ = .98 at K = 100, .998 at 1000, .99975 at 8142",
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
        "number type of --save_features, and of features that a run keeps on disk",
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
        "eval_every",
        int,
        "score the validation (or test) part after every N-th epoch only, and after the last",
        "selection and report",
        (STAGE1,),
    ),
    Argument(
        "no_tta",
        bool,
        "evaluate the image alone, without averaging in its mirror image",
        "selection and report",
    ),
    Argument(
        "tta",
        bool,
        "average in the mirror image at test where the data set's protocol does not",
        "selection and report",
    ),
    Argument(
        "predictions",
        Path,
        "write a csv file with a row a test image: label, predicted class, confidence",
        "selection and report",
        (EVALUATE,),
    ),
    Argument(
        "predict",
        Path,
        "in place of the test set: predict every image below this folder, labels unknown, into --predictions "
        "(default: predictions.csv in the run folder)",
        "selection and report",
        (EVALUATE,),
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
    Argument(
        "resume",
        Path,
        "last.pth or run folder of a run that was cut off: go on in its folder; auto: the newest unfinished "
        "run of this very configuration, else a fresh one",
        "run",
        TRAIN,
    ),
    Argument(
        "overwrite",
        bool,
        "leave the model in the place of one of other data or of more epochs, which is kept under a number",
        "run",
        TRAIN,
    ),
    Argument("force_resume", bool, "resume under another configuration or other images", "run", TRAIN),
    Argument(
        "save_every",
        str,
        "save within the epochs too: a number of steps, or of minutes as 10m",
        "run",
        TRAIN,
    ),
    Argument(
        "seed",
        int,
        "seed of initialisation, order and augmentation; drawn and recorded where not given",
        "run",
        TRAIN,
    ),
    Argument("device", str, "auto, cpu, cuda, cuda:N or mps", "run"),
    Argument(
        "deterministic",
        bool,
        "the same bits from run to run on CUDA too, at some speed; a network that cannot is refused (the CPU "
        "repeats its bits anyway)",
        "run",
    ),
    Argument(
        "amp",
        str,
        "mixed precision of the backbone; fp16 needs CUDA; off is torch's default (there TF32 convolutions)",
        "run",
        choices=("off", "bf16", "fp16"),
    ),
    Argument(
        "compile",
        bool,
        "torch.compile the backbone for full batches",
        "run",
    ),
    Argument("sync_bn", bool, "batch-norm statistics over all processes (CUDA)", "run", (STAGE1,)),
    Argument(
        "cuda_graphs",
        bool,
        "record a training step once and replay it on a CUDA device, for less work of the host",
        "run",
        (STAGE1,),
    ),
    Argument("gpu", int, "number of the CUDA device, short for --device cuda:N", "run"),
    Argument("quiet", bool, "print the result line only; log.txt keeps the rest", "run"),
]
