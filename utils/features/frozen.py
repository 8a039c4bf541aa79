"""What the heads of stage 2 are trained and scored on: frozen features of a backbone or of a feature pack.

Shapes: N images, D feature, K classes, V views at test (the image, and its mirror image where there is one).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from datasets import OWN_DATASETS
from datasets.long_tail import SHOTS
from datasets.types import ImageSet, LongTailedData
from models.heads.los_path import path_strength
from utils.features.scale import Scale
from utils.features.views import FeatureViews, StoredViews
from utils.packs.pack import Pack, narrowed
from utils.run.facts import OWN
from utils.settings.config import Config
from utils.settings.presets import NOTES
from utils.settings.table import FIXED_BY_CHECKPOINT, INHERITED


class Representation:
    """Training views, scored parts and the stage-1 classifier: all that a head ever sees.

    `train_counts` [K] are the images that train, `class_counts` [K] those that define the shot groups.
    `compute` gives the features [V, N, D] of a part by name: once, and anew where batch-norm has drifted.
    `discard` takes away what lies on disk of them. `scale`: how they were standardised; None: they are as
    they came.
    """

    def __init__(
        self,
        fc: nn.Linear,
        train: FeatureViews,
        compute: Callable[[str], Tensor],
        labels: dict[str, Tensor],
        data: LongTailedData,
        drifting: bool = False,
        discard: Callable[[], None] = lambda: None,
        scale: Scale | None = None,
    ) -> None:
        self.fc, self.train, self.labels, self.drifting = fc, train, labels, drifting
        self.class_counts, self.train_counts = data.class_counts, data.train_counts
        self.shots, self.num_classes, self.discard = data.shots, data.num_classes, discard
        self.scale, self.judged = scale, data.judged
        self._compute, self._known = compute, {}
        self.moves: dict[tuple, float] = {}  # of heads at their start (utils/heads/move.py)

    def part(self, name: str) -> Tensor:
        """Features [V, N, D] of `val` or `test`."""
        at, features = self._known.get(name, (None, None))
        if features is None or at is not self.train.at:
            features = self._compute(name)
            self._known[name] = self.train.at, features
        return features

    @cached_property
    def strength_of_path(self) -> float:
        """The strength of `los_step` whose logit drop is 1; it grows with the drop in proportion."""
        return path_strength(1.0, self.train.plain(), self.train.labels, self.num_classes)


# ---- from a pack


def pack_classifier(pack: Pack) -> nn.Linear:
    fc = nn.Linear(pack.fc_weight.shape[1], pack.fc_weight.shape[0])
    fc.load_state_dict({"weight": pack.fc_weight, "bias": pack.fc_bias})
    return fc


def pack_scale(pack: Pack) -> Scale | None:
    """How the features of a pack are standardised before heads are trained; None: they are not."""
    own = pack.known["preset"] == OWN
    return Scale.of(pack.train[0] if pack.plain is None else pack.plain) if own else None


def pack_representation(
    pack: Pack, device: torch.device, data: LongTailedData | None = None
) -> Representation:
    """The representation that a pack holds; `data` in place of its own counts and shot limits."""
    labels = {"test": pack.test_labels, "val": pack.val_labels}
    labels = {name: own.to(device) for name, own in labels.items() if own is not None}
    fc, data, scale = pack_classifier(pack), data or pack_data(pack), pack_scale(pack)
    if scale is not None:
        fc = scale.unfolded(fc)

    def compute(name: str) -> Tensor:
        features = getattr(pack, name).to(device)
        return features if scale is None else scale.apply(features)

    plain = None if pack.plain is None else compute("plain")
    train = StoredViews(compute("train"), pack.train_labels.to(device), plain)
    return Representation(fc.to(device), train, compute, labels, data, scale=scale)


@dataclass(frozen=True)
class PackPart(ImageSet):
    """A part of a pack in the place of images; `known_digest` is that of the images that it was made from."""

    known_digest: str = ""

    def digest(self) -> str:
        return self.known_digest


def pack_data(pack: Pack) -> LongTailedData:
    """A pack as a data set whose "images" are its features: for the counts, names and notes of a report."""
    facts, preset = pack.facts, pack.known["preset"]
    views = f"{len(pack.train)} fixed {facts['train_views']} view(s)"
    notes = [f"features of {pack.path}: {views} in training, no fresh augmentation"]
    own = "features of your own: standardised for training, the classifier takes them as they come"
    notes += [own if preset == OWN else f"features of a network trained here ({preset}): at their own scale"]
    return LongTailedData(
        name=facts["dataset"],
        class_names=facts["class_names"],
        class_counts=facts["class_counts"],
        train=PackPart(pack.train[0], pack.train_labels, facts.get("train_digest") or f"pack {pack.digest}"),
        val=None if pack.val is None else PackPart(pack.val[0], pack.val_labels),
        val_source=facts["val_source"],
        test=None if pack.test is None else PackPart(pack.test[0], pack.test_labels),
        views=None,
        shots=tuple(facts.get("shots", SHOTS)),
        notes=notes + ([NOTES[preset]] if preset in NOTES else []),
    )


# ---- to a pack


def make_pack(frozen: Representation, config: Config, facts: dict, clean: bool) -> Pack:
    """The pack of a representation: the views that `--views` caches and the plain training images.

    `facts` are the checkpoint facts of the run, with the seed of the backbone; `clean`: that never saw the
    validation images.
    Raises UserError where --pack_dtype cannot hold the features.
    """
    dtype = {"fp16": np.float16, "fp32": np.float32}[config.pack_dtype]

    def kept(features: Tensor, name: str) -> Tensor:
        array, advice = features.cpu().numpy(), "take --pack_dtype fp32"
        return torch.from_numpy(narrowed(array, dtype, f"the part {name}", advice))

    count = config.views or 0
    taken = [*FIXED_BY_CHECKPOINT, *INHERITED, "seed", "class_names", "class_counts"]
    taken += ["train_digest", "stage1_digest", "environment"]
    labels = {name: values.cpu() for name, values in frozen.labels.items()}
    parts = {name: kept(frozen.part(name), name) for name in labels}
    return Pack(
        train=kept(frozen.train.stacked(count), "train"),
        plain=kept(frozen.train.plain(), "plain") if count else None,
        train_labels=frozen.train.labels.cpu(),
        test=parts.get("test"),
        test_labels=labels.get("test"),
        val=parts.get("val"),
        val_labels=labels.get("val"),
        fc_weight=frozen.fc.weight.detach().cpu().float(),
        fc_bias=frozen.fc.bias.detach().cpu().float(),
        facts={name: facts[name] for name in taken}
        | {"dataset": config.place_name, "preset": config.dataset}
        | {"val_clean": clean and "val" in parts, "train_views": "augmented" if count else "plain"}
        | {"selected_on": facts["stage1_selected_on"] or "unknown"}
        | ({"batch_size": config.batch_size} if config.dataset in OWN_DATASETS else {}),
    )
