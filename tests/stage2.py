"""Stage 2 on the embedded digits without its script: the frozen features, and heads trained over them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import TrainedDigits
from utils.features.frozen import Representation
from utils.features.source import find_source
from utils.features.views import unwatched
from utils.heads.epochs import all_epochs, start_heads, train_epoch
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan, plan_heads
from utils.run import checkpoint
from utils.settings.config import Config, resolve
from utils.settings.data import scored_parts
from utils.settings.parse import STAGE2, parse


class LargestNewTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation makes, and that operation; a view is not new."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operation = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in filter(torch.is_tensor, tree_leaves(out)):
            if made.numel() > self.elements:
                given = filter(torch.is_tensor, tree_leaves((args, kwargs)))
                known = {one.untyped_storage().data_ptr() for one in given}
                if made.untyped_storage().data_ptr() not in known:
                    self.elements, self.operation = made.numel(), f"{func} {tuple(made.shape)}"
        return out


def settle(digits: TrainedDigits, *argv: object) -> Config:
    """The configuration of a stage-2 command line."""
    words = ["--dataset", "digits_lt", "--pretrained_pth", str(digits.stage1), "--seed", "0"]
    if "--seeds" in argv:
        words = words[:-2]
    given = parse(STAGE2, [*words, *map(str, argv)])
    return resolve(STAGE2, given, find_source(STAGE2, given, "stage1").known)


def frozen_features(digits: TrainedDigits, *argv: object, epochs: int = 1) -> Representation:
    """What the heads of a stage-2 command line see, where the longest of them has `epochs` epochs."""
    config = settle(digits, *argv)
    source = find_source(STAGE2, {"pretrained_pth": digits.stage1}, "stage1")
    source.load(config, torch.device("cpu"))
    return source.freeze(None, epochs, unwatched)


def trained(config: Config, frozen: Representation, plans: Sequence[HeadPlan] | None = None) -> list[HeadRun]:
    """The heads of a command line, or of these plans, after their last epoch."""
    scored = scored_parts(frozen.labels, config.select)
    plans = plan_heads(config)[0] if plans is None else list(plans)
    heads = start_heads(plans, frozen, scored, config)
    for epoch in all_epochs(heads):
        train_epoch(heads, epoch, scored)
    return heads


def same_state(one: HeadRun, other: HeadRun) -> bool:
    """Are two heads equal to the bit?"""
    first, second = one.head.state_dict(), other.head.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read_table(folder: Path, name: str = "table") -> pd.DataFrame:
    """A csv file of a run folder; the setting of a head without options is an empty string."""
    return pd.read_csv(folder / f"{name}.csv").fillna({"setting": ""})


def result_lines(text: str) -> list[dict[str, str]]:
    """The result lines of a run, in order, as name -> value."""
    lines = [line.split() for line in text.splitlines() if line.startswith("test ") and "selected_on" in line]
    return [dict(word.split("=") for word in words[1:]) for words in lines]


def published(root: Path) -> Path:
    return next((root / "ckpt").rglob("*_stage2.pth"))


def left_behind(folder: Path, root: Path) -> dict:
    """All that a run leaves: tables without seconds, heads in last.pth, best.pth, the published weights."""
    last, final = checkpoint.read(folder / "last.pth"), checkpoint.read(published(root))
    heads = [{name: v for name, v in head.items() if name != "seconds"} for head in last.facts["heads"]]
    left = {"heads": checkpoint.content_digest(heads), "model": checkpoint.content_digest(last.state)}
    left["published"] = checkpoint.content_digest([final.state, final.facts.get("head_state", {})])
    left["metrics"] = final.facts["metrics"]
    if (folder / "best.pth").exists():
        left["best"] = checkpoint.content_digest(checkpoint.read(folder / "best.pth").state)
    for name in ("metrics.csv", "per_class.csv", "search.csv", "table.csv"):
        if (folder / name).exists():
            left[name] = pd.read_csv(folder / name).drop(columns="seconds", errors="ignore").to_csv()
    return left
