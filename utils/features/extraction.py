"""What a frozen backbone sees of the images: computed as it is needed, or put on disk once.

Shapes: N images, D feature, V views.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets import LongTailedData
from datasets.images.on_disk import FileImages, Images
from datasets.types import FileSet
from utils.base.distributed import World
from utils.features.frozen import Representation
from utils.features.store import FeatureStore, Views
from utils.features.views import (
    DriftingFeatures,
    StoredViews,
    TrainFeatures,
    Watch,
    eval_features,
    feature_batches,
)
from utils.run.folder import Run
from utils.settings.config import Config


@dataclass(frozen=True)
class Backbone:
    """A frozen network, known by `identity`, and the images that it sees; `seed` decides augmented views."""

    identity: str
    model: nn.Module
    data: LongTailedData
    images: dict[str, Images]
    seed: int
    mirror: bool
    watch: Watch

    @property
    def labels(self) -> dict[str, Tensor]:
        """Of the parts that are scored."""
        return {name: part.labels for name, part in self.images.items() if name != "train"}

    def in_memory(self, config: Config) -> Representation:
        """Views are drawn as the epochs go; with --bn_mode train the statistics drift meanwhile."""
        drifting = config.bn_mode == "train"
        kind = DriftingFeatures if drifting else TrainFeatures
        return Representation(
            self.model.fc,
            kind(self.model, self.images["train"], self.seed, config.views, self.watch),
            lambda name: eval_features(self.model, self.images[name], self.mirror, self.watch),
            self.labels,
            self.data,
            drifting,
        )

    def on_disk(self, config: Config, run: Run, epochs: int, world: World) -> Representation:
        """All views as mapped files, each process a share; `discard` removes them.

        Where the user names no --views, every one of the `epochs` has its own. A run that was cut off is gone
        on with: with --save_features by the same command, else by --resume.
        """
        views = epochs if config.views is None else config.views
        pack = config.save_features
        folder = pack.with_name(f"{pack.name}.parts") if pack else run.folder / "features"
        half = config.pack_dtype == "fp16" and (pack or isinstance(self.data.train, FileSet))
        dtype = torch.float16 if half else torch.float32
        shapes = self._shapes(views)
        listed = ", ".join(f"{name} {v} x {n:,}" for name, (v, n, _) in shapes.items())
        gigabytes = sum(v * n * d for v, n, d in shapes.values()) * dtype.itemsize / 2**30
        run.log(f"features as {dtype} to {folder}: {gigabytes:.2f} GiB (views x images: {listed})")
        store = FeatureStore(folder, self._origin() | {"count": views, "amp": config.amp}, dtype, world)

        def fill(name: str) -> Tensor:
            part = "train" if name == "plain" else name
            images, mirror = self.images[part], self.mirror and part != "train"
            augmented, count = name == "train" and views > 0, shapes[name][0]

            def extract(which: Views, start: int, stop: int) -> Iterable[Tensor]:
                view = (self.seed, which[0]) if augmented else None
                return feature_batches(self.model, images, view, mirror, self.watch, start, stop)

            # augmented views are a pass over the images each, an image and its mirror image come together
            passes = [(view, view + 1) for view in range(count)] if augmented else [(0, count)]
            return store.fill(name, shapes[name], passes, extract, getattr(self.data, part).stamp)

        made = {name: fill(name) for name in shapes}
        for part in self.images.values():
            if isinstance(part, FileImages):
                part.close()
        labels = self.images["train"].labels
        device, plain = labels.device, made.get("plain", made["train"])[0]
        train = StoredViews(made["train"].to(device), labels, plain.to(device))
        seen = (self.model.fc, train, lambda name: made[name].to(device), self.labels, self.data)
        return Representation(*seen, discard=store.remove)

    def _origin(self) -> dict:
        """What the features depend on."""
        known = {"backbone": self.identity, "seed": self.seed, "mirror": self.mirror}
        digests = {name: part.digest() for name, part in self.data.parts.items()}
        return known | digests | {"views": repr(self.data.views)}

    def _shapes(self, views: int) -> dict[str, tuple[int, int, int]]:
        """Array -> [V, N, D]; `plain` are the training images as they are, where `train` holds others."""
        inputs, _ = next(iter(self.images["test"].batches(2, 0, 2)))
        with torch.no_grad():
            width = self.model.forward_features(inputs).shape[1]
        seen = 2 if self.mirror else 1
        shapes = {name: (seen, len(labels), width) for name, labels in self.labels.items()}
        shapes["train"] = (max(views, 1), len(self.images["train"]), width)
        return shapes | ({"plain": (1, *shapes["train"][1:])} if views else {})
