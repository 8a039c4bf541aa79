"""A trained head as a checkpoint holds it: what is published of one, and those that last.pth keeps."""

from dataclasses import replace
from statistics import fmean

from torch import Tensor

from models import head_from_state
from utils.base.errors import UserError, reason
from utils.features.scale import Scale
from utils.run.checkpoint import Checkpoint
from utils.settings.method import Method
from utils.settings.methods import METHODS

# heads whose state is that of an nn.Linear
_LINEAR = ("linear", "los_step", "samn", "logreg")
_LAST = ("fc.weight", "fc.bias")


def published(
    method: Method, options: dict, state: dict[str, Tensor], backbone: dict[str, Tensor], scale: Scale | None
) -> dict:
    """`model`, `head` and `head_state` of a checkpoint: a linear head as the network's own last layer.

    Others stand beside the network. One that is affine in the features is folded into the last layer too. Of
    the rest the network's last layer is left out, so that who loads the network alone is refused and does not
    get the stage-1 classifier. Features that were standardised for training are taken as they came: the scale
    is folded in, or kept with the head.
    """
    options, last = method.head_options(options), {}
    if method.head in _LINEAR:
        last = state["weight"], state["bias"]
    else:
        head = head_from_state(method.head, state, **options)
        if hasattr(head, "folded"):
            last = tuple(value.detach() for value in head.folded())
    if scale is not None:
        last, state = last and scale.folded(*last), dict(state) | scale.state()
    # no reader has the code of a head from outside: it is kept as the nn.Linear that it comes to
    if method.head in _LINEAR or callable(method.head) or (last and scale is not None):
        content = {"head": {"kind": "linear"}}
    else:
        content = {"head": {"kind": method.head, "options": options}, "head_state": dict(state)}
    rest = {name: value for name, value in backbone.items() if name not in _LAST}
    return content | {"model": rest | (dict(zip(_LAST, last, strict=True)) if last else {})}


def kept_head(file: Checkpoint, name: str, scale: Scale | None) -> Checkpoint:
    """A last.pth of stage 2 with the head of the method `name` on its network: that of the run's table.

    Of several settings it is the one that was selected, else the first. Raises UserError: there is none.
    """
    every, failed = [], set()  # a setting with a failed seed is out
    for state in file.facts.get("heads", []):
        every += [state] if "weights" in state else []
        failed |= {(state["method"], state["setting"])} if "failure" in state else set()
    own = [state for state in every if state["method"] == name]
    if not own or name not in METHODS:
        names = ", ".join(dict.fromkeys(state["method"] for state in every if state["method"] in METHODS))
        holds = f"it has {names}" if names else "the last.pth of a run of stage 2 has all of its run"
        raise UserError(f"--head {name}: {file.path} has no such head, {holds}")
    select, chosen = file.facts.get("args", {}).get("select"), own[0]
    if best := select in ("val", "test"):
        groups: dict[str, list[dict]] = {}
        for state in own:
            if (name, state["setting"]) not in failed and state["progress"]["best_score"] is not None:
                groups.setdefault(state["setting"], []).append(state)
        chosen = max(groups.values(), key=_mean_score, default=own)[0]
        best = "best_state" in chosen
    try:
        words = dict(word.split("=") for word in chosen["setting"].split())
        options = {option: float(value) for option, value in words.items()}
        state, moved = ("best_state", "best_backbone") if best else ("weights", "statistics")
        backbone = file.state | chosen.get(moved, {})
        content = published(METHODS[name], options, chosen[state], backbone, scale)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file.path}: its head {name} cannot be read: {reason(error)}") from error
    facts = {key: value for key, value in file.facts.items() if key not in ("heads", "head", "head_state")}
    facts |= {"selected_on": select if best else "last"}
    facts |= {"epoch": chosen["progress"]["best_epoch" if best else "epoch"]}
    facts |= {key: chosen[key] for key in ("method", "setting", "seed")} | content
    note = f"head {name} {chosen['setting']} (seed {chosen['seed']})"
    return replace(file, state=facts.pop("model"), facts=facts, notes=[*file.notes, note])


def _mean_score(seeds: list[dict]) -> float:
    return fmean(state["progress"]["best_score"] for state in seeds)
