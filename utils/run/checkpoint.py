"""Checkpoints: one safe file of weights and plain data, written atomically, with its digest inside.

Readers never unpickle code. Foreign files (bare or nested state dicts, safetensors, prefixes of wrappers,
another name for the last layer) are read as weights without facts.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from datasets import OWN_DATASETS, LongTailedData
from models import head_from_state, network_label
from models.pretrained import (
    differences,
    first_not_finite,
    first_of_other_kind,
    load_state,
    with_own_names,
    without_bias,
)
from utils.base.digest import changes, content_digest, same_bits
from utils.base.errors import NoMemoryError, UserError, reason
from utils.base.files import open_regular, require_file, write_atomically
from utils.base.safe_load import load_plain
from utils.engine.device import environment
from utils.run.facts import PACK_FORMAT, CheckpointFacts, problems
from utils.settings.commands import command, option
from utils.settings.config import Config
from utils.settings.table import FIXED_BY_CHECKPOINT, INHERITED, ON_DISK, SHARED

FORMAT = "label-over-smoothing checkpoint"
# 2: saved within an epoch, which a reader of version 1 would take for its end
WHOLE, VERSION = 1, 2
RELEASED = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "released"
_IDENTITY = ("model", "head", "head_state", "train_digest", "seed", *FIXED_BY_CHECKPOINT, *INHERITED)
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights", "state_dict_best")
# backbone and classifier apart: in the public code of Decoupling (Kang et al. 2020), and in that of MiSLAS
_PARTS = (
    *(("feat_model", "classifier"), ("state_dict_model", "state_dict_classifier")),
    *((name, "classifier") for name in ("backbone", "encoder", "model")),
)
_SCALES = "state_dict_lws_model"  # of MiSLAS: a factor on each logit
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # how the first pickle of torch's format of before 2020 ends
_AS_WEIGHTS = "save the weights by torch.save(model.state_dict(), ...)"
# what is often taken for a file of weights: how it begins, what the line says
_OTHERS = (
    (rb"version https://git-lfs", "is a Git-LFS pointer in place of the file: fetch that by `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page, not a file of weights: download the file itself"),
    (rb"\x1f\x8b", "is compressed by gzip: unpack it, and name the file of weights that comes out"),
    (rb".{257}ustar", "is a tar archive: unpack it, and name the file of weights inside"),
    (rb"\x89HDF", f"is an HDF5 file, not one of PyTorch: {_AS_WEIGHTS}"),
    (
        # not the length of safetensors' header, which a { follows; nor torch's format of before 2020
        rb"\x80[\x02-\x05](?!.{2}\0{4}\{)(?!.{0,20}" + re.escape(_LEGACY) + rb")",
        f"is a plain pickle, and may run code: not read; {_AS_WEIGHTS}",
    ),
)
# what a command that makes a checkpoint says always
_BASIC = ("dataset", "imb_ratio", "network")


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: where from, its digest, the weights, and its facts (empty for a foreign file).

    `notes` say for the log what of a foreign file was taken, and what was assumed.
    """

    path: Path
    digest: str
    state: dict[str, Tensor]
    facts: CheckpointFacts
    notes: list[str] = field(default_factory=list)

    @cached_property
    def identity(self) -> str:
        """What later steps know a model by: of a published one its weights, data and recipe, else the digest.

        That covers the words of the run too, and so is another where a finished run is resumed once more.
        """
        return identity_of(self.facts | {"model": self.state}) if "identity" in self.facts else self.digest

    @property
    def known(self) -> dict:
        """What a later step must not contradict, or takes over."""
        return {name: self.facts[name] for name in FIXED_BY_CHECKPOINT + INHERITED if name in self.facts}


# ---- writing


def model_facts(config: Config, data: LongTailedData, device: torch.device) -> dict:
    """The facts of a checkpoint: plain data that says what the weights are and how they were made."""
    settings = ("dataset", "imb_ratio", "network", "subset_seed", "test_fraction", "stem", "seed", *ON_DISK)
    facts = {
        "format": FORMAT,
        "version": WHOLE,
        "stage": config.cur_stage,
        **{name: getattr(config, name) for name in settings},
        "head": {"kind": "linear"},
        "num_class": data.num_classes,
        "shots": list(data.shots),
        "val_source": data.val_source,
        "val_fraction": config.val_fraction if data.val_source == "heldout" else None,
        "class_names": data.class_names,
        "class_counts": data.class_counts,
        "test_images": len(data.test or ()),
        "train_digest": data.train.digest(),
        **({"train_files": data.train.contents} if data.train.contents else {}),
        "args": config.as_dict(),
        "environment": environment(device),
    }
    for problem in problems(facts, CheckpointFacts, whole=False):
        raise UserError(f"{data.name}: no checkpoint can hold what it says of itself: {problem}")
    return facts


def save(path: Path, content: dict) -> str:
    """Write `content` (tensors and plain data) with its digest, which is returned.

    The new file is read back, every bit, before it takes the place of an older one.
    """
    versions, digest = changes(content), content_digest(content)
    whole = content | {"digest": digest}

    def check(written: Path) -> None:
        try:
            same = same_bits(whole, load_plain(written, mapped=True)) and changes(content) == versions
        except NoMemoryError:
            raise
        except UserError:
            same = False
        if not same:
            raise UserError(f"{path} does not read back as it was written: look after the disk")

    write_atomically(path, lambda handle: torch.save(whole, handle), check)
    return digest


def identity_of(content: dict) -> str:
    """What tells the model in a file from others, for the later steps that start from it."""
    return content_digest({name: content[name] for name in _IDENTITY if name in content})


# ---- reading


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of ours or a foreign file of weights.

    Raises UserError: missing, truncated or altered, holds Python objects, declares too much, has no weights.
    """
    content = _load_safetensors(path)
    content = load_plain(path) if content is None else content
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _own(path, content)
    try:
        state, notes = _foreign_state(content)
    except ValueError as error:
        raise UserError(f"{path} {error}") from error
    if not state:
        names = ", ".join(map(repr, list(content)[:5])) if isinstance(content, dict) else "no names"
        kind = type(content).__name__
        raise UserError(f"{path} holds no weights by name: found a {kind} with {names:.200}")
    return Checkpoint(path, content_digest(state), state, {}, notes)


def _load_safetensors(path: Path) -> dict[str, Tensor] | None:
    """The weights of a safetensors file, None of others; raises UserError for what is no file of weights."""
    require_file(path)
    try:
        with open_regular(path) as handle:
            head = handle.read(1 << 22)  # entries of a header come in any order
            for begins, says in _OTHERS:
                if re.match(begins, head, re.DOTALL | re.IGNORECASE):
                    raise UserError(f"{path} {says}")
            if head[8:9] != b"{":
                return None
            if PACK_FORMAT.encode() in head[: 8 + int.from_bytes(head[:8], "little")]:
                raise UserError(f"{path} is a feature pack: stage 2 and evaluate take it by --features")
            return safetensors.torch.load(head + handle.read())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (SafetensorError, KeyError) as error:  # a kind of number that torch has not
        raise UserError(f"{path} is damaged or no file of weights: {reason(error)}") from error


def _own(path: Path, content: dict) -> Checkpoint:
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise UserError(f"{path} has format version {version}, this code reads up to {VERSION}: update it")
    stored, damage = content.pop("digest", None), None
    try:
        if type(version) is not int or version < 1:
            damage = f"there is no format version {version!r:.40}"
        elif content_digest(content) != stored:
            damage = "its content does not match the digest inside"
    except TypeError as error:
        damage = str(error)
    if damage:
        raise UserError(f"{path} is damaged: {damage}; restore or remake it")
    for problem in problems(content, CheckpointFacts):
        raise UserError(f"{path} was not written by this project's code: {problem}")
    return Checkpoint(path, stored, content.pop("model"), content)


def _foreign_state(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a foreign file, none where there are none; notes on which they are of several.

    Raises ValueError where weights alone do not give the logits.
    """
    found = {}
    for name, weights in _dicts_of_tensors(content, ""):
        found.setdefault(name, weights)
    for backbone, last in _PARTS:
        if not found.keys() >= {backbone, last}:
            continue
        if _SCALES in found:
            way_out = "save weight and bias of the classifier times these"
            raise ValueError(f"holds a factor on each logit ({_SCALES}): {way_out}")
        layer = {name if "." in name else f"fc.{name}": value for name, value in found[last].items()}
        return found[backbone] | layer, []
    chosen = next((name for name in (*_STATE_KEYS, "", *found) if name in found), None)
    others = ", ".join(repr(name) for name in found if name not in (chosen, ""))
    notes = [f"its weights are those under {chosen!r}, left out: {others}"] if chosen and others else []
    return found.get(chosen, {}), notes


def _dicts_of_tensors(content: object, name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Those in a file, by the name that each is under."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if any(value.ndim for value in weights.values()):
        yield name, weights
    for key, value in content.items():
        yield from _dicts_of_tensors(value, key)


# ---- into a network


def load_weights(model: nn.Module, checkpoint: Checkpoint, network: str) -> None:
    """Load strictly into `model`, a `network`; a last layer of another name is renamed to `fc`.

    A file whose head is not linear has none, or one that `load_head` replaces: the head's size stands for it.
    """
    weight = checkpoint.facts.get("head_state", {}).get("weight")
    absent = {}
    if weight is not None and weight.ndim == 2:
        absent = {"fc.weight": weight, "fc.bias": weight.new_zeros(len(weight))}
    own, state = model.state_dict(), with_own_names(model, absent | checkpoint.state)
    if not checkpoint.facts and without_bias(state, own):
        state["fc.bias"] = torch.zeros_like(own["fc.bias"])
        checkpoint.notes.append("its classifier has no bias, zeros are taken")
    wanted, found = _shapes(own), _shapes(state)
    if wanted != found:
        raise UserError(f"{checkpoint.path} {_mismatch(network, wanted, found)}")
    if problem := first_of_other_kind(own, state):
        raise UserError(f"{checkpoint.path}: {problem}")
    if broken := first_not_finite(state):
        raise UserError(f"{checkpoint.path}: {broken} holds values that are not finite; the run had diverged")
    load_state(model, state)


def load_backbone(model: nn.Module, checkpoint: Checkpoint, network: str) -> None:
    """`load_weights` of all but the classifier, which stays: even one that fits is of other classes."""
    fc = {name: value for name, value in model.state_dict().items() if name in ("fc.weight", "fc.bias")}
    state = {name: v for name, v in with_own_names(model, checkpoint.state).items() if name not in fc} | fc
    load_weights(model, replace(checkpoint, state=state), network)


def load_head(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a head that is not linear, if the file holds one, in the place of `model.fc`."""
    head = checkpoint.facts.get("head", {"kind": "linear"})
    if head["kind"] == "linear":
        return
    state = checkpoint.facts.get("head_state", {})
    try:
        model.fc = head_from_state(head["kind"], state, **head["options"]).to(model.fc.weight)
    except (ValueError, TypeError) as error:  # an option of the wrong type
        raise UserError(f"{checkpoint.path}: {error}") from error
    if first_not_finite(state):
        raise UserError(f"{checkpoint.path}: its {head['kind']} head holds values that are not finite")


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _mismatch(network: str, wanted: dict, found: dict) -> str:
    """What the shapes `found` in a file, by the names of `network`, are in place of those `wanted`."""
    theirs, ours = (shapes.get("fc.weight", ()) for shapes in (found, wanted))
    backbone, other = (
        {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}
        for shapes in (wanted, found)
    )
    if backbone != other:
        return f"is not a {network}: {differences(wanted, found)}"
    if len(theirs) == 2 and theirs[1] == ours[1] and theirs[0] != ours[0]:
        return f"is a {network} with {theirs[0]} classes, {ours[0]} are needed: is it of another data set?"
    way_out = "--pretrained starts stage 1 from the backbone alone"
    return f"is a {network} with another classifier: {differences(wanted, found)}; {way_out}"


# ---- places of published models


def published_path(
    config: Config, stage: str, network: str, source: Path | str | None = None, root: Path | None = None
) -> Path:
    """Where a stage leaves its final model, below `root` (None: --ckpt_dir): not over `source`, its start."""
    ratio = "" if config.imb_ratio is None else f"IR={config.imb_ratio:g}"
    folder = (root or Path(config.ckpt_dir)) / config.place_name / ratio
    path = folder / f"{network_label(network)}_{stage}.pth"
    if path.is_dir():
        raise UserError(f"{path} is a folder, a checkpoint has its place there: move it away")
    if source is not None and path.exists() and os.path.exists(source) and path.samefile(source):
        raise UserError(f"{source} lies where this run leaves its own model: give another --ckpt_dir")
    return path


def find_published(config: Config, stage: str, network: str) -> Path | None:
    """The user's own file for the data of `config`, else the released one; None: there is neither."""
    places = (published_path(config, stage, network, root=root) for root in (None, RELEASED))
    return next((place for place in places if place.is_file()), None)


def nothing_published(config: Config, stage: str, network: str) -> UserError:
    """Names the place, the command that makes what is missing there, and the files of other networks."""
    place = published_path(config, stage, network)
    beside = sorted(path.name for path in place.parent.glob(f"*_{stage}.pth"))
    hint = f"; beside it: {', '.join(beside)}" if beside else ""
    basic = {} if config.features else {name: getattr(config, name) for name in _BASIC}
    basic |= _shares(config) if stage == "stage1" and config.dataset in OWN_DATASETS else {}
    words = [word for name, value in basic.items() if value is not None for word in option(name, value)]
    script = f"main_{stage}.py"
    line = command(script, *words, *config.given_words(script, set(SHARED) - basic.keys()))
    way_out = f"make it with `{line}`, or name one with --pretrained_pth"
    return UserError(f"no {stage} checkpoint at {place}: {way_out}{hint}")


def _shares(config: Config) -> dict:
    """The shares that stage 1 has to take out of a user's own images where nobody gave them a part."""
    root, there = Path(config.data_dir), {"test"} if config.test_fraction else set()
    there |= {part for part in ("val", "test") if getattr(config, f"{part}_list")}
    there |= {part for part in ("val", "test") if config.dataset == "folder" and any(root.glob(f"{part}/*/"))}
    said = "val_source" in config and config.source("val_source") != "preset"
    selects = "select" in config and config.select == "val" and len(there) < 2
    shares = {} if there else {"test_fraction": 0.2}
    return shares | ({"val_fraction": 0.1} if not said and (selects or not there) else {})


def require_stage(checkpoint: Checkpoint, stage: str) -> None:
    """Refuse a file of ours that is of another stage."""
    made = checkpoint.facts.get("stage", stage)
    if made != stage:
        raise UserError(f"{checkpoint.path} is a {made} checkpoint, --cur_stage {stage} needs one of {stage}")
