"""What stage 2 and evaluate start from: a checkpoint with a backbone, or a pack of the features of one.

Both answer the same questions, so that nobody else asks which of the two it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets import OWN_DATASETS, LongTailedData
from datasets.listed.parts import as_seen
from datasets.long_tail import suited_shots
from datasets.types import FileSet
from models.pretrained import with_own_names
from utils.base.distributed import ALONE, World
from utils.base.errors import UserError, about
from utils.engine import scoring
from utils.engine.device import LAYOUT
from utils.engine.precision import speed_up
from utils.features.drifting import DriftingFeatures
from utils.features.frozen import (
    Representation,
    pack_classifier,
    pack_data,
    pack_representation,
    pack_scale,
)
from utils.features.kept import kept_head
from utils.features.logits import logit_batches
from utils.features.store import FeatureStore, Views
from utils.features.views import (
    FRESH_VIEWS,
    StoredViews,
    TrainFeatures,
    Watch,
    eval_features,
    feature_batches,
)
from utils.packs.pack import Pack, read_pack
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint, published_path, read
from utils.run.facts import compared, counts_told
from utils.run.folder import Run
from utils.run.network import build_network, check_apart, note_channels, try_network
from utils.settings.checks import check_known
from utils.settings.config import DEFAULT_DATASET, Config, resolve
from utils.settings.data import load_data, mirror_at_test, open_parts
from utils.settings.presets import preset_for
from utils.settings.sizes import by_size
from utils.settings.table import CHECK, arguments_of


class Source:
    """A file that was read: `known` is what a later step must not contradict, or takes over from it.

    Both kinds have `saw`, a note where the backbone may have seen the validation images; `freeze`, what heads
    see for a number of epochs; `with_head`, which puts the head that evaluate is asked for on the network and
    says where it comes from; `test_logits`, the logits [n, K] of this process's block of test images, all
    labels [N], and whether mirror images are averaged in; `origins`, what a stage-2 checkpoint says of its
    stage 1; `told`, the file in words.
    """

    def __init__(self, file: Checkpoint | Pack) -> None:
        self.file, self.path, self.digest = file, file.path, file.digest
        self.facts, self.known = file.facts, file.known
        self.identity = file.identity  # what later steps know its stage 1 by; None where nobody knows it

    def load(
        self, config: Config, device: torch.device, world: World = ALONE
    ) -> tuple[LongTailedData, nn.Module]:
        """The data and the frozen network on the device: eval, no gradients, only `fc` learns."""
        self.config, self.device, self.world = config, device, world
        self.data, self.model = self._load()
        self.model.to(device, memory_format=LAYOUT).eval().requires_grad_(False)
        self.model.fc.requires_grad_(True)
        return self.data, self.model

    def compared_with(self, data: LongTailedData) -> list[str]:
        """For the log: what of the images was compared with those of the backbone, and what differs."""
        return []

    def label(self, network: str) -> str:
        """The name of the network under which its stage 2 is left."""
        return network

    def check_unchanged(self) -> None:
        """Raise a UserError where the file is read while it is used, and is not what it was."""

    def _of_other_images(self) -> str:
        known = "train_digest" in self.facts
        return f"was trained on {'other images than this training set' if known else 'unknown images'}"


class CheckpointSource(Source):
    """A checkpoint, ours or foreign weights."""

    def _load(self) -> tuple[LongTailedData, nn.Module]:
        config = self.config
        data = self.world.in_turn(lambda: load_data(config))
        self._check_class_names(data)
        check_apart(self.file, data)
        model = build_network(config, data.num_classes, data.in_channels)
        checkpoint.load_weights(model, self.file, config.network)
        note_channels(self.file, data.views)
        model.to(self.device, memory_format=LAYOUT)
        rows = None
        if "bn_mode" in config and config.bn_mode == "train":
            rows = min(2, config.batch_size, len(data.train) % config.batch_size or 2)
        try_network(model, config, data, rows)
        speed_up(model, config, self.device)
        return data, model

    def _check_class_names(self, data: LongTailedData) -> None:
        """Of a user's own images labels are the ranks of the names: another set of names shifts them."""
        known = map(as_seen, self.facts.get("class_names", data.class_names))
        for label, (was, now) in enumerate(zip_longest(known, map(as_seen, data.class_names))):
            if self.config.dataset in OWN_DATASETS and was != now:
                raise UserError(f"{self.path} knows class {label} as {was!r}, {data.name} has {now!r} there")

    def saw(self, data: LongTailedData, select: str) -> str | None:
        if compared(self.facts, data.train)[0] is None:
            return None
        if select == "val":
            changed = self._of_other_images() + counts_told(self.facts, data)
            seen = f"the backbone of {self.path} {changed}, the validation images perhaps"
            remedy = "give both stages the same --val_source"
            remedy += "" if data.test is None else ", or take --select last"
            raise UserError(f"{_refused(data)}: {seen}; {remedy}")
        return f"the backbone {self._of_other_images()}{counts_told(self.facts, data)}"

    def compared_with(self, data: LongTailedData) -> list[str]:
        changed, looked = compared(self.facts, data.train)
        note = f"the training images were compared with those of {self.path} {looked}"
        return [f"{note}: {changed}" if changed else note] if looked else []

    def freeze(self, run: Run, epochs: int, watch: Watch) -> Representation:
        """The features of image files, and those of several processes, go through a store on disk.

        In memory views are drawn as the epochs go; with --bn_mode train the statistics drift meanwhile.
        """
        config, data, fc = self.config, self.data, self.model.fc
        drifting = config.bn_mode == "train"
        if not drifting and (isinstance(data.train, FileSet) or self.world.size > 1):
            return self.on_disk(run.folder / "features", epochs, watch, run.log)
        images = open_parts(data, self.device, config.workers)
        labels = {name: part.labels for name, part in images.items() if name != "train"}
        seed, mirror = self.facts.get("seed", config.seed), mirror_at_test(data, config)
        kind = DriftingFeatures if drifting else TrainFeatures
        views = FRESH_VIEWS if config.views is None and epochs > FRESH_VIEWS else config.views
        train = kind(self.model, images["train"], seed, views, watch)

        def compute(name: str) -> Tensor:
            return eval_features(self.model, images[name], mirror, watch)

        return Representation(fc, train, compute, labels, data, drifting)

    def on_disk(
        self, folder: Path | None, epochs: int, watch: Watch, log: Callable[[str], None]
    ) -> Representation:
        """All views as mapped files, in `folder` or beside the pack; `discard` removes them.

        Where the user names no --views, every one of the `epochs` has its own, up to FRESH_VIEWS. A run that
        was cut off is gone on with: with --save_features by the same command, else by --resume.
        """
        config, data, model = self.config, self.data, self.model
        images = open_parts(data, self.device, config.workers)
        seed, mirror = self.facts.get("seed", config.seed), mirror_at_test(data, config)
        views = min(epochs, FRESH_VIEWS) if config.views is None else config.views
        pack = config.save_features
        folder = pack.with_name(f"{pack.name}.parts") if pack else folder
        half = config.pack_dtype == "fp16" and isinstance(data.train, FileSet)
        dtype = torch.float16 if half else torch.float32
        inputs, _ = next(iter(images["train"].batches(2, 0, 2)))
        with torch.no_grad():
            width = model.forward_features(inputs).shape[1]
        # array -> [V, N, D]; `plain` are the training images as they are, where `train` holds others
        seen = 2 if mirror else 1
        shapes = {name: (seen, len(part), width) for name, part in images.items() if name != "train"}
        shapes["train"] = (max(views, 1), len(images["train"]), width)
        if views:
            shapes["plain"] = (1, *shapes["train"][1:])
        listed = ", ".join(f"{name} {v} x {n:,}" for name, (v, n, _) in shapes.items())
        gigabytes = sum(v * n * d for v, n, d in shapes.values()) * dtype.itemsize / 2**30
        log(f"features as {dtype} to {folder}: {gigabytes:.2f} GiB (views x images: {listed})")
        known = {
            "backbone": self.identity,
            "network": config.network,
            "seed": seed,
            "mirror": mirror,
            "views": repr(data.views),
        }
        known |= {name: part.digest() for name, part in data.parts.items()}
        store = FeatureStore(folder, known | {"count": views, "amp": config.amp}, dtype, self.world)

        def fill(name: str) -> Tensor:
            part = "train" if name == "plain" else name
            augmented, count = name == "train" and views > 0, shapes[name][0]

            def extract(which: Views, start: int, stop: int) -> Iterable[Tensor]:
                view = (seed, which[0]) if augmented else None
                both = mirror and part != "train"
                return feature_batches(model, images[part], view, both, watch, start, stop)

            # augmented views are a pass over the images each, an image and its mirror image come together
            passes = [(view, view + 1) for view in range(count)] if augmented else [(0, count)]
            return store.fill(name, shapes[name], passes, extract, getattr(data, part).stamp)

        made = {name: fill(name) for name in shapes}
        for name, part in images.items():
            if isinstance(getattr(data, name), FileSet):
                part.close()
        labels = {name: part.labels for name, part in images.items()}
        device = labels["train"].device
        plain = made.get("plain", made["train"])[0]
        train = StoredViews(made["train"].to(device), labels.pop("train"), plain.to(device))
        seen = (model.fc, train, lambda name: made[name].to(device), labels, data)
        return Representation(*seen, discard=store.remove)

    def with_head(self, given: dict) -> Source:
        checkpoint.load_head(self.model, self.file)
        return self

    def test_logits(self) -> tuple[Iterator[Tensor], Tensor, int]:
        test = open_parts(self.data, self.device, self.config.workers)["test"]
        mirror = mirror_at_test(self.data, self.config)
        logits = scoring.logit_batches(self.model, test, mirror, world=self.world)
        return logits, test.labels, 1 + mirror

    def origins(self) -> dict:
        facts = {"stage1_digest": self.identity, "stage1_selected_on": self.facts.get("selected_on")}
        files = self.facts.get("train_files")
        return facts | ({"stage1_files": files} if files else {})

    def told(self) -> str:
        facts, what = self.facts, "foreign weights without facts"
        if facts:
            what = f"{facts['stage']} {facts['network']}, epoch {facts['epoch']}"
        line = f"checkpoint {self.path} ({what}; sha256 {self.digest[:12]})"
        return "; ".join([line, *self.file.notes])


class PackSource(Source):
    """A feature pack: its "images" are features, its "network" is a classifier."""

    def _load(self) -> tuple[LongTailedData, nn.Module]:
        data = pack_data(self.file)
        shots = tuple(self.config.shots or data.shots)  # a pack of one's own need not say them
        suited, note = suited_shots(data.class_counts)
        data = replace(data, shots=shots, notes=data.notes + [note] * (note != "" and suited == shots))
        return data, nn.ModuleDict({"fc": pack_classifier(self.file)})

    def saw(self, data: LongTailedData, select: str) -> str | None:
        if select == "val" and data.val and len(data.val.labels.unique()) < 2:
            raise UserError(f"--select val refused: all validation images of {self.path} are of one class")
        if self.facts["val_clean"] or data.val is None:  # its maker had to know
            return None
        if select == "val":
            seen = "its backbone may have seen the validation images"
            raise UserError(f"{_refused(data)}: {self.path} says that {seen}")
        return f"the backbone {self._of_other_images()}"

    def freeze(self, run: Run, epochs: int, watch: Watch) -> Representation:
        return pack_representation(self.file, self.device, self.data)

    def with_head(self, given: dict) -> Source:
        """The pack's own of stage 1, else that of a stage 2."""
        path = given.get("pretrained_pth")
        if path is None and given["cur_stage"] == "stage1":
            if "head" in given:
                raise UserError("--head takes a head of a run's last.pth: name that by --pretrained_pth")
            return self
        network = self.label(self.config.network)
        file = read_asked(given, path or checkpoint.find_published(self.config, "stage2", network), self.file)
        if file is None:
            raise checkpoint.nothing_published(self.config, "stage2", network)
        if "cur_stage" in given:
            checkpoint.require_stage(file, given["cur_stage"])
        state = with_own_names(self.model, file.state)
        file = replace(file, state={name: value for name, value in state.items() if name.startswith("fc.")})
        checkpoint.load_weights(self.model, file, f"classifier of {self.path}")
        checkpoint.load_head(self.model, file)
        return CheckpointSource(file)

    def test_logits(self) -> tuple[Iterator[Tensor], Tensor, int]:
        if self.file.test is None:
            raise UserError(f"{self.path} has no test features with labels: --predict X.npy needs none")
        features, labels = self.file.test.to(self.device), self.file.test_labels.to(self.device)
        start, stop = self.world.block(len(labels))
        return logit_batches(self.model.fc, features[:, start:stop]), labels, len(features)

    def origins(self) -> dict:
        known = {name: self.facts[name] for name in ("encoder_digest",) if name in self.facts}
        return known | {"stage1_digest": self.identity, "features_digest": self.digest}

    def told(self) -> str:
        return f"feature pack {self.path} (sha256 {self.digest[:12]})"

    def label(self, network: str) -> str:
        """A classifier for features is no whole network."""
        return f"{network.removesuffix('features').rstrip('_')}_features".lstrip("_")

    def check_unchanged(self) -> None:
        self.file.check_unchanged()


# ---- finding it


def _refused(data: LongTailedData) -> str:
    """What the validation images are refused for."""
    if data.test is None:
        return "no test images, and validation images refused"
    return "--select val refused"


def find_source(script: str, given: dict, stage: str | None) -> Source:
    """What to start from: the user's pack or file, else what `stage` left behind, else a released one.

    Raises UserError where there is none, it is broken, or it is of another stage.
    """
    if "features" in given:
        with about("--features"):
            pack = read_pack(given["features"])
        check_known(pack.path, pack.known, given, is_pack=True)
        return PackSource(pack)
    file = read_asked(given, given.get("pretrained_pth") or _left_behind(given, stage))
    if file is None:
        config = resolve(script, given)  # a wrong argument is said before a missing file
        raise checkpoint.nothing_published(config, stage, config.network)
    of_features = "features_digest" in file.facts
    check_known(file.path, file.known, given, is_pack=of_features and "encoder" in given)
    if stage is not None:
        checkpoint.require_stage(file, stage)
    if of_features and "encoder" not in given:
        ways = "give the pack that it is for by --features, or to --predict images its --encoder"
        raise UserError(f"{file.path} holds a classifier without a backbone: {ways}")
    if of_features and "head" in given:
        raise UserError(f"{file.path}: beside --head give the pack of its run by --features as well")
    if "encoder" in given and not of_features:
        raise UserError(f"{file.path} is no classifier of features, it has its network: leave --encoder out")
    return CheckpointSource(file)


def read_asked(given: dict, path: Path | None, pack: Pack | None = None) -> Checkpoint | None:
    """A checkpoint, of which a complaint says whether the user has named it, with the head of `--head`.

    `pack`: of whose features it must be.
    """
    if path is None:
        return None
    with about("--pretrained_pth") if "pretrained_pth" in given else nullcontext():
        file = read(path)
    if pack and file.facts and file.facts.get("features_digest") != pack.digest:
        stage1 = (file.digest, file.identity, file.facts.get("stage1_digest"))
        if pack.identity is None or pack.identity not in stage1:
            raise UserError(f"{file.path} is a classifier for other features than those of {pack.path}")
    if "head" in given:
        return kept_head(file, given["head"], pack and pack_scale(pack))
    if (count := len({head["method"] for head in file.facts.get("heads", [])})) > 1:
        own = " ".join(filter(None, (file.facts.get(name) for name in ("method", "setting"))))
        file.notes.append(f"head {own}, one of {count} methods in it: --head NAME takes another")
    return file


def _left_behind(given: dict, stage: str) -> Path | None:
    """What `stage` left for the data that the user names, before anything else is known of them."""
    dataset = given.get("dataset", DEFAULT_DATASET)
    wanted = Config(preset_for(dataset, given.get("network")) | by_size(given)[1] | given, {})
    found = checkpoint.find_published(wanted, stage, wanted.network)
    # models of a user's own images once lay in a folder without the digest of where these are
    root, usual = Path(wanted.ckpt_dir), published_path(wanted, stage, wanted.network)
    older = root / wanted.data_name / usual.relative_to(root / wanted.place_name)
    names = {argument.name for argument in arguments_of(CHECK)}
    words = {name: value for name, value in given.items() if name in names}
    if found is None and older.is_file() and ("predict" in given or _of_these_images(older, words)):
        return older
    return found


def _of_these_images(path: Path, words: dict) -> bool:
    """Was the model trained on the images that `words` of `datasets.check` name?"""
    try:
        file = read(path)
        data = load_data(resolve(CHECK, words, file.known))
    except UserError:
        return False
    return compared(file.facts, data.train)[0] is None
