"""Defaults per data set, one readable table. What a user gives always wins over them."""

from models import THIN_NETWORKS

# CIFAR100-LT: the published recipe of LOS (ResNet-34)
CIFAR100_LT = {
    "num_class": 100,
    "imb_ratio": 100.0,
    "network": "resnet34",
    "val_source": "unused",
    "batch_size": 64,
    "momentum": 0.9,
    "epochs": 200,
    "lr": 0.01,
    "warmup_epochs": 0,
    "wd": 5e-3,
    "finetune_epoch": 20,
    "finetune_lr": 5e-4,
    "finetune_wd": 0.0,
    "label_smooth": 0.98,
}

# LOS's own settings on the large sets are UNKNOWN. Stage 1: the Decoupling protocol (Kang et al. 2020), which
# the field shares. Stage 2: ours, by the logit gap, which serves any K, and the path, a length in logits.
IMAGENET_LT = {
    "num_class": 1000,
    "imb_ratio": None,
    "network": "resnet50",
    "stem": "imagenet",
    "val_source": "own",
    "data_digest": "sample",
    "image_size": 224,
    "augment": "resized_crop",
    "jitter": 0.4,
    "normalise": "imagenet",
    "batch_size": 512,
    "momentum": 0.9,
    "epochs": 90,
    "lr": 0.2,
    "warmup_epochs": 0,
    "wd": 5e-4,
    "finetune_epoch": 10,
    "finetune_lr": None,
    "finetune_wd": 0.0,
    "label_smooth": None,
    "logit_gap": 1.11,
    "path": 5.0,
    "views": 2,
    "workers": None,  # by the number of cores
}

PRESETS = {
    "cifar100_lt": CIFAR100_LT,
    # not published: CIFAR100-LT's, with the δ that gives 10 classes the same logit gap (1.11)
    "cifar10_lt": CIFAR100_LT | {"num_class": 10, "label_smooth": 0.83},
    # ours: seconds on a CPU; chosen on the unused images
    "digits_lt": CIFAR100_LT
    | {
        "num_class": 10,
        "imb_ratio": 50.0,
        "network": "resnet8",
        "epochs": 120,
        "lr": 0.1,
        "warmup_epochs": 2,
        "wd": 2e-3,
        "finetune_lr": 1e-3,
        "label_smooth": 0.9,
    },
    "imagenet_lt": IMAGENET_LT,
    "inaturalist18": IMAGENET_LT
    | {
        "num_class": 8142,
        "val_source": "none",
        "jitter": 0.0,
        "normalise": "inaturalist",
        "wd": 1e-4,
        "finetune_epoch": 30,
    },
    # ours after the usual ResNet-152 that starts from ImageNet weights (--pretrained)
    "places_lt": IMAGENET_LT
    | {"num_class": 365, "network": "resnet152", "batch_size": 256, "epochs": 30, "lr": 0.01},
    # ours, for a user's own images
    "folder": IMAGENET_LT | {"num_class": None, "jitter": 0.0, "batch_size": 256, "lr": 0.1},
}
PRESETS["list"] = PRESETS["folder"]

_UNKNOWN = "LOS's own settings on this set are UNKNOWN: stage 2 takes a logit gap and a path of ours"
NOTES = {
    "imagenet_lt": f"preset of stage 1: the Decoupling protocol (Kang et al. 2020); {_UNKNOWN}",
    "inaturalist18": f"preset of stage 1: the Decoupling protocol (Kang et al. 2020); {_UNKNOWN}",
    "places_lt": f"preset of stage 1: ours, meant to start from ImageNet weights by --pretrained; {_UNKNOWN}",
}

# ours, for a feature pack of the user's own: stage 2 by scale-free settings, whatever K and the feature norms
OWN_FEATURES = CIFAR100_LT | {
    "num_class": None,
    "imb_ratio": None,
    "network": "features",
    "val_source": "none",
    "label_smooth": None,
    "logit_gap": 1.11,
    "finetune_lr": None,
    "path": 5.0,
}

# ours, for ResNet-20/32/44/56 on CIFAR: the usual recipe of these networks, shortened
THIN_ON_CIFAR = {"epochs": 60, "lr": 0.1, "warmup_epochs": 2, "wd": 1e-3, "finetune_lr": 1e-4}

COMMON = {
    "data_dir": "data",
    "split_dir": None,
    "train_list": None,
    "val_list": None,
    "test_list": None,
    "allow_partial": False,
    "subset_seed": None,
    "shots": [20, 100],
    "data_digest": None,
    "image_size": None,
    "augment": None,
    "jitter": None,
    "no_flip": False,
    "normalise": None,
    "stem": "small",
    "pretrained": None,
    "val_fraction": 0.1,
    "workers": 0,
    "pretrained_pth": None,
    "accum": 1,
    "loss": "ce",
    "mixup": 0.0,
    "nesterov": False,
    "method": "los",
    "budget": "source",
    "seeds": None,
    "logit_gap": None,
    "path": None,
    "features": None,
    "save_features": None,
    "pack_dtype": "fp16",
    "views": None,
    "bn_mode": "eval",
    "select": "last",
    "no_tta": False,
    "tta": False,
    "predictions": None,
    "predict": None,
    "amp": "off",
    "compile": False,
    "sync_bn": False,
    "cuda_graphs": False,
    "eval_every": 1,
    "out": "output",
    "ckpt_dir": "checkpoints",
    "resume": None,
    "force_resume": False,
    "overwrite": False,
    "save_every": None,
    "seed": None,
    "device": "auto",
    "gpu": None,
    "quiet": False,
}


def preset_for(dataset: str, network: str | None = None, kind: str | None = None) -> dict:
    """Defaults for a data set and, where it matters, a network (None: the data set's own).

    `kind`: the data set whose defaults they are, where `dataset` is but the name that a pack's maker chose.
    """
    kind = dataset if kind is None else kind
    preset = COMMON | {"dataset": dataset} | PRESETS.get(kind, OWN_FEATURES)
    if kind in ("cifar100_lt", "cifar10_lt") and network in THIN_NETWORKS:
        preset |= THIN_ON_CIFAR
    return preset


def made_alike(made: dict, wanted: dict) -> bool:
    """Does what a run recorded of its settings hold those of `wanted`, which name its data set and network?

    What its code did not know yet was as the preset has it.
    """
    preset = preset_for(wanted["dataset"], wanted["network"])
    return all(made.get(name, preset.get(name)) == value for name, value in wanted.items())
