"""What a process has done that forks runs: it has read the modules that every run reads, for all of them."""

from importlib import import_module

import torch

from datasets import build_data
from models import build_model

MODULES = ("datasets.images.on_disk", "datasets.listed.published", "sklearn.datasets", "utils.plots.drawing")


def warm() -> None:
    """One thread, and no gradient: torch refuses forks of a process that has computed one on a device."""
    torch.set_num_threads(1)
    for name in MODULES:
        import_module(name)
    build_data("digits_lt", imb_ratio=50)
    torch.optim.SGD(build_model("resnet8", 10, in_channels=1).parameters(), 0.1)
