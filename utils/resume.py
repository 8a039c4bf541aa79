"""Going on with a stage-1 run that was cut off, from its last.pth."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from datasets import LongTailedData
from utils import checkpoint
from utils.arguments import STAGE1
from utils.config import Config, resolve
from utils.device import environment
from utils.distributed import World
from utils.engine import Partial, Progress
from utils.errors import UserError
from utils.logger import stage_folder

# where a run lies and what it runs on may change, what it computes may not
_FREE = (
    *("resume", "force_resume", "save_every", "out", "ckpt_dir", "data_dir", "split_dir"),
    *("train_list", "val_list", "test_list", "pretrained", "device", "gpu", "quiet", "workers"),
)
_SAME_BITS = ("threads", "processes", "device", "torch", "cpu_capability")


@dataclass(frozen=True)
class Resumed:
    """A last.pth and the run folder it lies in; what is changed on the user's word (`forced`)."""

    folder: Path
    source: checkpoint.Checkpoint
    config: dict
    forced: bool = False
    contradictions: list[str] = field(default_factory=list)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        data: LongTailedData,
        config: Config,
        world: World,
    ) -> tuple[Progress, Partial]:
        """Load weights, optimiser and scaler; return how far the run was, and how far within its epoch.

        Raises:
            UserError: the training images are not those of the run.
        """
        if not self.forced and (changed := self._changed_data(data)):
            raise UserError(
                f"{self.source.path} was trained on other images: {changed}; --force_resume goes on"
            )
        facts = self.source.facts
        checkpoint.load_weights(model, self.source, config.network)
        optimizer.load_state_dict(facts["optimizer"])
        scaler.load_state_dict(facts.get("scaler", {}))
        device = next(model.parameters()).device
        partial = Partial.of(facts["partial"], world, device) if "partial" in facts else Partial()
        return Progress(**facts["progress"]), partial

    def _changed_data(self, data: LongTailedData) -> str | None:
        before, now = self.source.facts["class_counts"], data.class_counts
        if before != now:
            pairs = enumerate(zip(before, now, strict=False))
            first = next((f"class {k} had {a}, has {b}" for k, (a, b) in pairs if a != b), None)
            return first or f"there were {len(before)} classes, there are {len(now)}"
        if self.source.facts["train_digest"] != data.train.digest():
            return f"the class counts are those of {data.name} now, the images or their order are not"
        return None

    def notes(self, data: LongTailedData, device: torch.device) -> list[str]:
        """For the log: what the user forced, and what differs from the run's own machine."""
        changed = self._changed_data(data)
        forced = [*self.contradictions, *([f"other images: {changed}"] if changed else [])]
        before, now = self.source.facts["environment"], environment(device)
        bits = [
            f"{name} was {before[name]}, is {now[name]}"
            for name in _SAME_BITS
            if before.get(name, now[name]) != now[name]
        ]
        return [f"forced, the results are of neither run: {one}" for one in forced] + [
            f"the last bits may differ from the unbroken run's: {one}" for one in bits
        ]


def read_resume(given: dict) -> Resumed | None:
    """The run that `--resume` names (its last.pth, its folder, auto); None without one.

    Raises:
        UserError: no such file, not a stage-1 last.pth, or an argument that contradicts the run's.
    """
    if "resume" not in given:
        return None
    path = given["resume"]
    if str(path) == "auto":
        path = _newest_unfinished(given)
        if path is None:
            return None
    path = path / "last.pth" if path.is_dir() else path
    source = checkpoint.read(path)
    if "optimizer" not in source.facts or source.facts["stage"] != "stage1":
        raise UserError(f"{path} is not the last.pth of a stage-1 run, only that can be resumed")
    args = {
        name: value for name, value in source.facts["args"].items() if name not in ("resume", "force_resume")
    }
    contradictions = [
        f"--{name} {value}, the run to resume has --{name} {args[name]}"
        for name, value in given.items()
        if name in args and name not in _FREE and args[name] != value
    ]
    forced = given.get("force_resume", False)
    if contradictions and not forced:
        raise UserError(
            f"{'; '.join(contradictions)}: leave the argument out, or go on regardless with --force_resume"
        )
    known = {name: value for name, value in args.items() if not (forced and name in given)}
    return Resumed(path.parent, source, known, forced, contradictions)


def _newest_unfinished(given: dict) -> Path | None:
    """The newest run folder of the configuration that `given` resolves to, without a summary; None: none."""
    config = resolve(STAGE1, {name: value for name, value in given.items() if name != "resume"})
    free = _FREE if "seed" in given else (*_FREE, "seed")
    wanted = {name: value for name, value in config.as_dict().items() if name not in free}
    found = sorted(
        (folder / "config.json" for folder in stage_folder(config, "stage1").glob("*")),
        key=lambda note: note.parent.stat().st_mtime_ns,
        reverse=True,
    )
    for note in found:
        unfinished = (note.parent / "last.pth").is_file() and not (note.parent / "summary.json").exists()
        if unfinished and note.is_file():
            made = json.loads(note.read_text(encoding="utf-8"))["config"]
            if all(made.get(name) == value for name, value in wanted.items()):
                return note.parent
    return None
