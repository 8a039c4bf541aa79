"""Weights from elsewhere: under the names that a network here has, and as the start of stage 1."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from models.adapt import Adapted

# torchvision's weight files keep the names that DenseNet's and ViT's layers had when they were made
_EARLIER_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0."),
    (r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3."),
)
# what wrappers and other code put before the names: DataParallel, torch.compile, Lightning, mmpretrain, ...
_PREFIXES = ("module", "_orig_mod", "model", "encoder", "backbone", "head", "net", "network", "classifier")


def with_own_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `model`, as far as that is clear; what is not keeps its name.

    Understood are names behind prefixes, of torchvision's earlier versions, of an adapted network before it
    was adapted, and one last layer of another name than `fc`. Counts of batches that old files lack are those
    of `model`; how many models were averaged is left out.
    """
    own = model.state_dict()
    last = f"{model.last}." if isinstance(model, Adapted) else "fc."
    known = {*own, *(name.removeprefix("body.") for name in own), f"{last}weight", f"{last}bias"}
    for pattern, today in _EARLIER_NAMES:
        state = {re.sub(pattern, today, name): value for name, value in state.items()}
    state = _without_prefixes(state, known)
    if isinstance(model, Adapted) and not any(name.startswith("body.") for name in state.keys() & own.keys()):
        state = _with_fc(state, model.last, "body.")
    strangers = [name for name, value in state.items() if name not in own and value.ndim == 2]
    strangers = [name.removesuffix(".weight") for name in strangers if name.endswith(".weight")]
    if "fc.weight" not in state and len(strangers) == 1:
        state = _with_fc(state, strangers[0])
    kept = {name.replace("running_mean", "num_batches_tracked") for name in state}
    return {name: own[name] for name in own if name in kept} | state


def without_bias(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Has the classifier in `state` no bias, but the weights that `own` has? Zeros do the same then."""
    weight = state.get("fc.weight")
    fits = weight is not None and "fc.bias" not in state and "fc.bias" in own
    return fits and weight.shape == own["fc.weight"].shape


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights whose names and shapes were compared; what `state` lacks stays."""
    whole = model.state_dict()  # with the version of its format, for which MNASNet asks
    whole.update(state)
    model.load_state_dict(whole, strict=True)


def first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    return next((name for name, value in state.items() if not value.isfinite().all()), None)


def first_of_other_kind(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor that holds whole or complex numbers where the network has not."""
    for name, value in state.items():
        eighth = value.is_floating_point() and value.dtype.itemsize < 2  # what torch does not compute with
        if own[name].is_floating_point() != value.is_floating_point() or value.is_complex() or eighth:
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, own[name])]
            return f"{name} is {kinds[0]}, its network needs {kinds[1]}"
    return None


def differences(wanted: Mapping[str, tuple], found: Mapping[str, tuple]) -> str:
    """How the names and shapes in a file differ from those of a network, in one line."""
    both = [name for name in wanted if name in found and wanted[name] != found[name]]
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [f"{name} {list(found[name])} instead of {list(wanted[name])}" for name in both],
    }
    parts = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in kinds.items()
        if names
    ]
    return "; ".join(parts)


def _without_prefixes(state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """`state` without what stands before the names in `known`; as it is where two names would become one."""
    first = {name.partition(".")[0] for name in state}
    prefixes = {*_PREFIXES, *(first if len(first) == 1 else ())}

    def bare(name: str) -> str:
        while name not in known and name.partition(".")[0] in prefixes and name.count(".") > 1:
            name = name.partition(".")[2]
        return name

    state = {name: value for name, value in state.items() if name.rpartition(".")[2] != "n_averaged"}
    found = {bare(name): value for name, value in state.items()}
    return found if len(found) == len(state) else state


def _with_fc(state: dict[str, Tensor], last: str, before: str = "") -> dict[str, Tensor]:
    """The layer `last` is called fc, and the names of all others get `before` before them."""
    start = f"{last}."
    return {
        f"fc.{name.removeprefix(start)}" if name.startswith(start) else before + name: value
        for name, value in state.items()
    }
