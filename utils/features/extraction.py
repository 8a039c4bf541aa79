"""The frozen features of a run, put on disk once: for image files, and for several processes.

Shapes: N images, D feature, V views.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets import LongTailedData
from datasets.images.on_disk import FileImages
from datasets.images.open import Images
from datasets.types import FileSet
from utils.base.distributed import World
from utils.features.frozen import StoredViews
from utils.features.store import Extract, FeatureStore, Views
from utils.features.views import Watch, eval_batches, view_batches
from utils.run.folder import Run
from utils.settings.config import Config


@dataclass(frozen=True)
class Origin:
    """What features depend on: the backbone, the images, how they are looked at."""

    backbone: str  # what its checkpoint is known by
    data: LongTailedData
    seed: int
    mirror: bool

    def as_dict(self) -> dict:
        parts = {"train": self.data.train, "val": self.data.val, "test": self.data.test}
        digests = {name: part.digest() for name, part in parts.items() if part is not None}
        views = repr(self.data.views)
        return {"backbone": self.backbone, "views": views, "seed": self.seed, "mirror": self.mirror} | digests


def gathering_folder(config: Config, run: Run) -> Path:
    """Where the features of a run are gathered, beside the pack that they become where there is one."""
    pack = config.save_features
    return pack.with_name(f"{pack.name}.parts") if pack else run.folder / "features"


def extract_to_disk(
    config: Config,
    origin: Origin,
    model: nn.Module,
    images: dict[str, Images],
    run: Run,
    epochs: int,
    world: World,
    watch: Watch,
) -> tuple[StoredViews, dict[str, Tensor], FeatureStore]:
    """Training views, the parts that are scored [V, N, D] by name, as mapped files, and the store of these.

    Where the user names no --views, every one of the `epochs` has its own. A run that was cut off is gone on
    with: with --save_features by the same command, else by --resume.

    Raises:
        UserError: see `FeatureStore`.
    """
    views = epochs if config.views is None else config.views
    half = config.pack_dtype == "fp16" and (config.save_features or isinstance(origin.data.train, FileSet))
    dtype = torch.float16 if half else torch.float32
    shapes = _shapes(images, views, _width(model, images["test"]), 2 if origin.mirror else 1)
    folder = gathering_folder(config, run)
    listed = ", ".join(f"{name} {v} x {n:,}" for name, (v, n, _) in shapes.items())
    gigabytes = sum(v * n * d for v, n, d in shapes.values()) * dtype.itemsize / 2**30
    run.log(f"features as {dtype} to {folder}: {gigabytes:.2f} GiB (views x images: {listed})")
    store = FeatureStore(folder, origin.as_dict() | {"count": views, "amp": config.amp}, dtype, world)

    def plain(part: str, mirror: bool) -> Extract:
        return lambda _, start, stop: eval_batches(model, images[part], mirror, watch, start, stop)

    def augmented(which: Views, start: int, stop: int) -> Iterator[Tensor]:
        return view_batches(model, images["train"], origin.seed, which[0], watch, start, stop)

    def fill(name: str, extract: Extract) -> Tensor:
        stamp = getattr(origin.data, "train" if name == "plain" else name).stamp
        return store.fill(name, shapes[name], _passes(name, shapes[name][0]), extract, stamp)

    parts = {name: fill(name, plain(name, origin.mirror)) for name in images if name != "train"}
    train = fill("train", augmented if views else plain("train", False))
    unchanged = fill("plain", plain("train", False)) if views else train
    for part in images.values():
        if isinstance(part, FileImages):
            part.close()
    labels = images["train"].labels
    device = labels.device
    return StoredViews(train.to(device), labels, unchanged[0].to(device)), parts, store


def _width(model: nn.Module, images: Images) -> int:
    inputs, _ = next(iter(images.batches(2, 0, 2)))
    with torch.no_grad():
        return model.forward_features(inputs).shape[1]


def _shapes(images: dict[str, Images], views: int, width: int, test_views: int) -> dict[str, tuple]:
    """Name of an array -> [V, N, D]; `plain` are the training images as they are, where `train` is not."""
    number = len(images["train"])
    shapes = {name: (test_views, len(part), width) for name, part in images.items() if name != "train"}
    shapes["train"] = (max(views, 1), number, width)
    return shapes | ({"plain": (1, number, width)} if views else {})


def _passes(name: str, views: int) -> list[Views]:
    """Augmented views are a pass over the images each, an image and its mirror image come together."""
    return [(view, view + 1) for view in range(views)] if name == "train" else [(0, views)]
