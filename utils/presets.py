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
    "subset_seed": None,
    "val_fraction": 0.1,
    "workers": 0,
    "pretrained_pth": None,
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
    "out": "output",
    "ckpt_dir": "checkpoints",
    "resume": None,
    "seed": None,
    "device": "auto",
    "gpu": None,
    "quiet": False,
}


def preset_for(dataset: str, network: str | None = None) -> dict:
    """Defaults for a data set and, where it matters, a network (None: the data set's own)."""
    preset = COMMON | {"dataset": dataset} | PRESETS.get(dataset, OWN_FEATURES)
    if dataset.startswith("cifar") and network in THIN_NETWORKS:
        preset |= THIN_ON_CIFAR
    return preset
