"""Checkpoints: one safe file of weights and plain data, written atomically, with its digest inside.

Readers never unpickle code. Foreign files (bare state dicts, DataParallel prefixes, another name for the last
layer) are read as weights without facts.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from models import NETWORKS, THIN_NETWORKS, build_model, head_from_state, network_label
from models.pretrained import (
    differences,
    first_not_finite,
    first_of_other_kind,
    load_state,
    with_own_names,
)
from utils.config import Config
from utils.config_checks import FIXED_BY_CHECKPOINT, INHERITED
from utils.digest import changes, content_digest, same_bits
from utils.errors import NoMemoryError, UserError
from utils.facts import problems
from utils.files import write_atomically
from utils.safe_load import load_plain

FORMAT = "label-over-smoothing checkpoint"
# 2: saved within an epoch, which a reader of version 1 would take for its end
WHOLE, VERSION = 1, 2
RELEASED = Path(__file__).resolve().parent.parent / "checkpoints" / "released"
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "net", "weights", "state_dict_best")
_PARTS = ("feat_model", "classifier")


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: where from, its digest, the weights, and its facts (empty for a foreign file)."""

    path: Path
    digest: str
    state: dict[str, Tensor]
    facts: dict

    @property
    def known(self) -> dict:
        """What a later step must not contradict, or takes over."""
        return {name: self.facts[name] for name in FIXED_BY_CHECKPOINT + INHERITED if name in self.facts}


def save(path: Path, content: dict) -> str:
    """Write `content` (tensors and plain data) with its digest, atomically. Returns the digest.

    The new file is read back, every bit, before it takes the place of an older one.

    Raises:
        UserError: it cannot be written, or does not read back as it was; an older file is then untouched.
    """
    versions, digest = changes(content), content_digest(content)

    def check(written: Path) -> None:
        try:
            found = load_plain(written, mapped=True)
            same = same_bits(content | {"digest": digest}, found) and changes(content) == versions
        except NoMemoryError:
            raise
        except UserError:
            same = False
        if not same:
            raise UserError(f"{path} does not read back as it was written: look after the disk")

    write_atomically(path, lambda handle: torch.save(content | {"digest": digest}, handle), check)
    return digest


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of ours or a foreign file of weights.

    Raises:
        UserError: missing, truncated or altered, holds Python objects, declares too much, holds no weights.
    """
    content = load_plain(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _own(path, content)
    state = _foreign_state(content)
    if not state:
        raise UserError(f"{path} holds no weights: expected a checkpoint of this project or a state_dict")
    return Checkpoint(path, content_digest(state), state, {})


def _own(path: Path, content: dict) -> Checkpoint:
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise UserError(f"{path} has format version {version}, this code reads up to {VERSION}: update it")
    if type(version) is not int or version < 1:
        raise UserError(
            f"{path} is damaged: there is no format version {version!r:.40}; restore or remake it"
        )
    stored = content.pop("digest", None)
    try:
        found = content_digest(content)
    except TypeError as error:
        raise UserError(f"{path} is damaged: {error}; restore or remake it") from error
    if found != stored:
        raise UserError(
            f"{path} is damaged: its content does not match the digest inside; restore or remake it"
        )
    for problem in problems(content):
        raise UserError(f"{path} was not written by this project's code: {problem}")
    return Checkpoint(path, stored, content.pop("model"), content)


def _foreign_state(content: object) -> dict[str, Tensor]:
    """The weights in a foreign file, DataParallel prefixes removed; empty where there are none.

    The public code of Decoupling (Kang et al. 2020) keeps backbone and classifier apart, as _PARTS.
    """
    if not isinstance(content, dict):
        return {}
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            return _foreign_state(content[key])
    parts = [_foreign_state(content.get(part)) for part in _PARTS]
    if all(parts):
        return parts[0] | parts[1]
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        return {}
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def load_weights(model: nn.Module, checkpoint: Checkpoint, network: str) -> None:
    """Load strictly into `model`, a `network`; a last layer of another name is renamed to `fc`.

    A file whose head is not linear has none, or one that `load_head` replaces: the head's size stands for it.

    Raises:
        UserError: names or shapes differ, or a weight is not finite: says which and what to do.
    """
    weight = checkpoint.facts.get("head_state", {}).get("weight")
    absent = {}
    if weight is not None and weight.ndim == 2:
        absent = {"fc.weight": weight, "fc.bias": weight.new_zeros(len(weight))}
    state = with_own_names(model, absent | checkpoint.state)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        raise UserError(_explain_mismatch(checkpoint, network, wanted, found))
    if other := first_of_other_kind(model.state_dict(), state):
        raise UserError(f"{checkpoint.path}: {other}")
    if broken := first_not_finite(state):
        raise UserError(f"{checkpoint.path}: {broken} holds values that are not finite; the run had diverged")
    load_state(model, state)


def load_head(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a head that is not linear, if the file holds one, in the place of `model.fc`.

    Raises:
        UserError: the head's kind or weights are not what this code knows.
    """
    head = checkpoint.facts.get("head", {"kind": "linear"})
    if head["kind"] == "linear":
        return
    state = checkpoint.facts.get("head_state", {})
    try:
        model.fc = head_from_state(head["kind"], state, **head["options"]).to(model.fc.weight)
    except (ValueError, TypeError) as error:  # an option of the wrong type
        raise UserError(f"{checkpoint.path}: {error}") from error
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"{checkpoint.path}: its {head['kind']} head holds values that are not finite")


def _explain_mismatch(checkpoint: Checkpoint, network: str, wanted: dict, found: dict) -> str:
    classes = [shapes["fc.weight"][0] if "fc.weight" in shapes else None for shapes in (found, wanted)]
    if _backbone(wanted) == _backbone(found) and None not in classes and classes[0] != classes[1]:
        return (
            f"{checkpoint.path} is a {network} with {classes[0]} classes, {classes[1]} are needed: "
            "is it a checkpoint of another data set?"
        )
    fitting = _fitting_network(checkpoint.state)
    advice = f"its weights fit --network {fitting}" if fitting else "no ResNet here has such weights"
    return f"{checkpoint.path} is not a {network}: {differences(wanted, found)}; {advice}"


def _backbone(shapes: dict[str, tuple]) -> dict[str, tuple]:
    return {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}


def _fitting_network(state: dict[str, Tensor]) -> str | None:
    """The ResNet here whose backbone has these names and shapes, as arguments; None: none has."""
    first = state.get("conv1.weight")
    if first is None or first.ndim != 4:
        return None
    stem = "imagenet" if first.shape[-1] == 7 else "small"
    for name in NETWORKS:
        model = _skeleton(name, first.shape[1], stem)
        shapes = [
            _backbone({key: tuple(value.shape) for key, value in some.items()})
            for some in (model.state_dict(), with_own_names(model, state))
        ]
        if shapes[0] == shapes[1]:
            return name if name in THIN_NETWORKS else f"{name} --stem {stem}"
    return None


@cache
def _skeleton(name: str, in_channels: int, stem: str) -> nn.Module:
    """A network without numbers: names and shapes alone."""
    with torch.device("meta"):
        return build_model(name, 1, in_channels, stem)


def published_path(
    root: Path | str,
    data_name: str,
    imb_ratio: float | None,
    network: str,
    stage: str,
    source: Path | str | None = None,
) -> Path:
    """Where a stage leaves its final model for the next; without a ratio, without a folder of it.

    Raises:
        UserError: a folder is in its place, or `source`, the file that the stage starts from.
    """
    folder = Path(root) / data_name
    folder = folder if imb_ratio is None else folder / f"IR={imb_ratio:g}"
    path = folder / f"{network_label(network)}_{stage}.pth"
    if path.is_dir():
        raise UserError(f"{path} is a folder, a checkpoint has its place there: move it away")
    if source is not None and path.exists() and os.path.exists(source) and path.samefile(source):
        raise UserError(f"{source} lies where this run leaves its own model: give another --ckpt_dir")
    return path


def find_published(config: Config, network: str, stage: str) -> Path:
    """The user's own file for the data of `config`, else the released one.

    Raises:
        UserError: neither exists; names the place, the command that makes it, and a file of another network.
    """
    places = [
        published_path(folder, config.data_name, config.imb_ratio, network, stage)
        for folder in (config.ckpt_dir, RELEASED)
    ]
    for place in places:
        if place.is_file():
            return place
    ratio = "" if config.imb_ratio is None else f" --imb_ratio {config.imb_ratio:g}"
    where = f" --data_dir {config.data_dir}" if config.data_name != config.dataset else ""
    command = f"python main_{stage}.py --dataset {config.dataset}{where}{ratio} --network {network}"
    others = sorted(
        {
            p.name.removesuffix(f"_{stage}.pth")
            for place in places
            for p in place.parent.glob(f"*_{stage}.pth")
            if not p.name.endswith(f"features_{stage}.pth")
        }
    )
    hint = f"; there is one for --network {' or '.join(others)}" if others else ""
    raise UserError(
        f"no {stage} checkpoint at {places[0]}: make it with `{command}`, or name one with "
        f"--pretrained_pth{hint}"
    )


def require_stage(checkpoint: Checkpoint, stage: str) -> None:
    """Refuse a file of ours that is of another stage."""
    made = checkpoint.facts.get("stage", stage)
    if made != stage:
        raise UserError(f"{checkpoint.path} is a {made} checkpoint, --cur_stage {stage} needs one of {stage}")
