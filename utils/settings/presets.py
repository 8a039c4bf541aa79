"""Defaults per data set, one readable table. What a user gives always wins over them."""

from datasets import DATASETS
from models import THIN_NETWORKS
from utils.settings.method import at_nearest
from utils.settings.table import ARGUMENTS

# Where they are from, column by column:
# cifar100_lt   the published recipe of LOS (ResNet-34)
# cifar10_lt    not published; CIFAR100-LT's, with the δ that gives 10 classes the same logit gap (1.11)
# digits_lt     ours, seconds on a CPU; chosen on the unused images
# the others    LOS's own settings are UNKNOWN. Stage 1 is the Decoupling protocol (Kang et al. 2020), which
#               the field shares; of places_lt ours, after the usual ResNet-152 that starts from ImageNet's
#               weights; of a user's own images (folder) ours. Stage 2 is ours, for any number of classes and
#               any size of the features: by the logit gap, and the path, a length in logits.
_USUAL = [20, 100]  # shot limits
# fmt: off
_SETS = ("cifar100_lt", "cifar10_lt", "digits_lt", "imagenet_lt", "places_lt", "inaturalist18", "folder")
_TABLE = {
    "num_class":      (100, 10, 10, 1000, 365, 8142, None),
    "imb_ratio":      (100.0, 100.0, 50.0, None, None, None, None),
    "network":        ("resnet34", "resnet34", "resnet8", "resnet50", "resnet152", "resnet50", "resnet50"),
    "stem":           ("small", "small", "small", "imagenet", "imagenet", "imagenet", "imagenet"),
    "shots":          (_USUAL, _USUAL, _USUAL, _USUAL, _USUAL, _USUAL, None),  # None: by the counts
    "val_source":     ("unused", "unused", "unused", "own", "own", "none", "own"),
    "data_digest":    (None, None, None, "sample", "sample", "sample", "sample"),
    "image_size":     (None, None, None, 224, 224, 224, 224),
    "augment":        (None, None, None, "resized_crop", "resized_crop", "resized_crop", "resized_crop"),
    "jitter":         (None, None, None, 0.4, 0.4, 0.0, 0.0),
    "normalise":      (None, None, None, "imagenet", "imagenet", "inaturalist", "imagenet"),
    "workers":        (0, 0, 0, None, None, None, None),  # None: by the number of cores
    "batch_size":     (64, 64, 64, 512, 256, 512, 256),
    "momentum":       (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9),
    "epochs":         (200, 200, 120, 90, 30, 90, 90),
    "lr":             (0.01, 0.01, 0.1, 0.2, 0.01, 0.2, 0.1),
    "warmup_epochs":  (0, 0, 2, 0, 0, 0, 0),
    "wd":             (5e-3, 5e-3, 2e-3, 5e-4, 5e-4, 1e-4, 5e-4),
    "views":          (None, None, None, 2, 2, 2, 2),
    "finetune_epoch": (20, 20, 20, 10, 10, 30, 10),
    "finetune_lr":    (5e-4, 5e-4, 1e-3, None, None, None, None),
    "finetune_wd":    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "label_smooth":   (0.98, 0.83, 0.9, None, None, None, None),
    "logit_gap":      (None, None, None, 1.11, 1.11, 1.11, 1.11),
    "path":           (None, None, None, 5.0, 5.0, 5.0, 5.0),
}
# fmt: on
PRESETS = {name: {row: values[k] for row, values in _TABLE.items()} for k, name in enumerate(_SETS)}
PRESETS["list"] = PRESETS["folder"]
# ours, for a feature pack of the user's own
_SCALE_FREE = ("num_class", "imb_ratio", "finetune_lr", "label_smooth", "logit_gap", "path")
OWN_FEATURES = PRESETS["cifar100_lt"] | {name: PRESETS["folder"][name] for name in _SCALE_FREE}
OWN_FEATURES |= {"network": "features", "val_source": "none"}
# for a data set that has no column yet
LIKE_CIFAR = PRESETS["cifar100_lt"] | {"num_class": None, "label_smooth": None, "logit_gap": 1.11}
# ours, for ResNet-20/32/44/56 on CIFAR: the usual recipe of these networks, shortened
THIN_ON_CIFAR = {"epochs": 60, "lr": 0.1, "warmup_epochs": 2, "wd": 1e-3, "finetune_lr": 1e-4}
# imbalance ratio of CIFAR100-LT -> their stage-2 rate, by the validation images of the released packs
THIN_RATES = {100.0: 1e-4, 50.0: 5e-5, 10.0: 3e-5}
# LOS as published, for ResNet-34; `--budget source` has it for any network
_PUBLISHED = ("finetune_epoch", "finetune_lr", "finetune_wd", "label_smooth", "path")
PUBLISHED = {"cifar100_lt": {name: PRESETS["cifar100_lt"][name] for name in _PUBLISHED}}

_UNKNOWN = "LOS's own settings on this set are UNKNOWN: stage 2 takes a logit gap and a path of ours"
NOTES = {
    "imagenet_lt": f"preset of stage 1: the Decoupling protocol (Kang et al. 2020); {_UNKNOWN}",
    "inaturalist18": f"preset of stage 1: the Decoupling protocol (Kang et al. 2020); {_UNKNOWN}",
    "places_lt": f"preset of stage 1: ours, meant to start from ImageNet weights by --pretrained; {_UNKNOWN}",
}


def preset_for(
    dataset: str, network: str | None = None, kind: str | None = None, ratio: float | None = None
) -> dict:
    """Defaults for a data set and, where they matter, network and imbalance ratio (None: the data set's own).

    `kind`: the data set whose defaults they are, where `dataset` is but the name that a pack's maker chose.
    """
    kind = dataset if kind is None else kind
    common = {argument.name: argument.default for argument in ARGUMENTS}
    own = LIKE_CIFAR if kind in DATASETS else OWN_FEATURES
    preset = common | {"dataset": dataset} | PRESETS.get(kind, own)
    if kind in ("cifar100_lt", "cifar10_lt") and network in THIN_NETWORKS:
        preset |= THIN_ON_CIFAR
        if kind == "cifar100_lt":
            preset["finetune_lr"] = at_nearest(THIN_RATES, ratio or preset["imb_ratio"])
    return preset


def made_alike(made: dict, wanted: dict) -> bool:
    """Does what a run recorded of its settings hold those of `wanted`, which name its data set and network?

    What its code did not know yet was off, or as the preset has it.
    """
    preset = preset_for(wanted["dataset"], wanted["network"], ratio=wanted.get("imb_ratio"))
    unknown = {name: value for name, value in wanted.items() if name not in made}
    known = all(made[name] == value for name, value in wanted.items() if name in made)
    return known and all(value in (None, preset.get(name)) for name, value in unknown.items())
