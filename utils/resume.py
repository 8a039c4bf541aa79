"""Going on with a stage-1 run that was cut off, from its last.pth."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datasets import LongTailedData
from utils import checkpoint
from utils.device import environment
from utils.engine import Progress
from utils.errors import UserError

# where a run lies and what it runs on may change, what it computes may not
_FREE = (
    *("resume", "out", "ckpt_dir", "data_dir", "split_dir", "train_list", "val_list", "test_list"),
    *("pretrained", "device", "gpu", "quiet", "workers"),
)
_SAME_BITS = ("threads", "processes", "device", "torch", "cpu_capability")


@dataclass(frozen=True)
class Resumed:
    """A last.pth and the run folder it lies in."""

    folder: Path
    source: checkpoint.Checkpoint
    config: dict

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        data: LongTailedData,
        network: str,
    ) -> Progress:
        """Load weights, optimiser and scaler; return how far the run was.

        Raises:
            UserError: the training images are not those of the run.
        """
        if self.source.facts["train_digest"] != data.train.digest():
            raise UserError(
                f"{self.source.path} was trained on other images than {data.name} holds now: cannot resume"
            )
        checkpoint.load_weights(model, self.source, network)
        optimizer.load_state_dict(self.source.facts["optimizer"])
        scaler.load_state_dict(self.source.facts.get("scaler", {}))
        return Progress(**self.source.facts["progress"])

    def changes(self, device: torch.device) -> list[str]:
        """What differs from the run's own machine and can change the last bits."""
        before, now = self.source.facts["environment"], environment(device)
        return [
            f"{name} was {before[name]}, is {now[name]}"
            for name in _SAME_BITS
            if before.get(name, now[name]) != now[name]
        ]


def read_resume(given: dict) -> Resumed | None:
    """The run that `--resume` names (its last.pth or its folder); None without the argument.

    Raises:
        UserError: no such file, not a stage-1 last.pth, or an argument that contradicts the run's.
    """
    if "resume" not in given:
        return None
    path = given["resume"]
    path = path / "last.pth" if path.is_dir() else path
    source = checkpoint.read(path)
    if "optimizer" not in source.facts or source.facts["stage"] != "stage1":
        raise UserError(f"{path} is not the last.pth of a stage-1 run, only that can be resumed")
    args = {name: value for name, value in source.facts["args"].items() if name != "resume"}
    for name, value in given.items():
        if name in args and name not in _FREE and args[name] != value:
            raise UserError(
                f"the run to resume has --{name} {args[name]}, not {value}: leave the argument out"
            )
    return Resumed(path.parent, source, args)
