"""One epoch of training, the learning rate of each, and how far a run is."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor, nn

from utils.base.distributed import ALONE, World
from utils.engine.graphs import GraphedSteps
from utils.engine.step import DivergedError, Part, TrainStep


def cosine_lr(peak: float, epoch: int, epochs: int, warmup_epochs: int = 0) -> float:
    """Learning rate of an epoch (from 0): linear warm-up to `peak`, then a cosine to 0 at `epochs`."""
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def sgd(
    parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.SGD:
    """torch's SGD, fused where the device has it: a fixed choice, since it decides the last bits."""
    parameters = list(parameters)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Give an optimiser the state of one like it; raises ValueError where that is of other shapes."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state[parameter].get("momentum_buffer")
            if kept is not None and (kept.shape != parameter.shape or not kept.isfinite().all()):
                raise ValueError(f"its momentum does not fit weights {list(parameter.shape)}")


@dataclass
class Progress:
    """How far a run is: its epochs and the best of them, and what is done of the epoch under way."""

    epoch: int = 0  # epochs done
    best_epoch: int | None = None
    best_score: float | None = None
    rows: list[dict] = field(default_factory=list)  # of metrics.csv
    # of the epoch under way, the last three of this process
    step: int = field(default=0, compare=False)
    images: int = field(default=0, compare=False)
    # added up on the device, so that no step waits for it
    loss: Tensor | float = field(default=0.0, compare=False)
    hits: Tensor | int = field(default=0, compare=False)

    def as_dict(self) -> dict:
        """The epochs done, as plain data for a checkpoint."""
        return {name: getattr(self, name) for name in ("epoch", "best_epoch", "best_score", "rows")}

    def where(self) -> str:
        """The position, for people."""
        within = f"step {self.step} of epoch {self.epoch + 1}"
        return within if self.step else f"epoch {self.epoch}"

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        """Take in the summed loss and the hits, both [], of a batch."""
        self.loss = self.loss + loss.double()
        self.hits = self.hits + hits
        self.images += images

    def figures(self, world: World = ALONE) -> dict:
        """Mean loss and accuracy of the epoch under way, over all processes; raises DivergedError."""
        own = [float(self.loss), float(self.hits), self.images]
        loss, hits, images = world.total(torch.tensor(own, dtype=torch.float64)).tolist()
        if not math.isfinite(loss):
            raise DivergedError("the loss is not finite")
        return {"train_loss": loss / images, "train_accuracy": hits / images}

    def partial(self, world: World = ALONE) -> dict:
        """The epoch under way for a checkpoint, with the share of every process: a collective act.

        Raises DivergedError: on an accelerator nobody has looked at the loss yet.
        """
        own = (torch.as_tensor(value).cpu().reshape(1) for value in (self.loss, self.hits))
        losses, hits = (world.gather(values) for values in own)
        if not losses.isfinite().all():
            raise DivergedError("the loss is not finite")
        # a share is one sum here; older files have one number a batch
        counts = world.gather(torch.tensor([[1, self.images]]))
        return {"step": self.step, "counts": counts, "losses": losses, "hits": hits}

    def go_on(self, partial: dict, world: World, device: torch.device) -> None:
        """Take over this process's share of an epoch; of fewer processes the first takes the rest too."""
        lengths, images = partial["counts"].T.tolist()
        losses, hits = (partial[name].split(lengths) for name in ("losses", "hits"))
        self.step = partial["step"]
        for i in range(len(lengths)):
            if (i if i < world.size else 0) == world.rank:
                self.add(losses[i].sum().to(device), hits[i].sum().to(device), images[i])

    def record(self, row: dict, scored_on: str | None) -> bool:
        """Take in the row of the epoch, which is done; is it the best so far, the first of equals?"""
        self.epoch = row["epoch"]
        self.rows.append(row)
        self.step, self.images, self.loss, self.hits = 0, 0, 0.0, 0
        score = row[scored_on] if scored_on else None
        best = score is not None and (self.best_score is None or score > self.best_score)
        if best:
            self.best_epoch, self.best_score = row["epoch"], score
        return best


def train_epoch(
    step: TrainStep | GraphedSteps,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Progress,
    lr: float,
    parts: Iterable[Part] | None = None,
    world: World = ALONE,
    after_step: Callable[[], None] = lambda: None,
) -> dict:
    """Take a step on each of `batches` (inputs [N, ...], labels [N]); returns mean loss and accuracy.

    The batches are what the epoch lacks: `progress` holds what was done of it before, is kept up to date, and
    counts in the figures, which are those of all processes. `parts` says what a batch is in its step (None: a
    step of its own). Raises DivergedError where a loss is not finite: on the CPU before its update; on an
    accelerator, and of graphed steps, at the end of the epoch, before anything is saved.
    """
    for group in step.optimizer.param_groups:
        group["lr"] = lr
    together = zip(batches, repeat(Part()) if parts is None else parts, strict=parts is not None)
    for (inputs, targets), part in together:
        try:
            loss, hits = step(inputs, targets, part)
        except DivergedError as error:
            raise DivergedError(f"{error} at step {progress.step + 1}") from error
        progress.add(loss, hits, len(targets[: part.rows]))
        if part.last:
            progress.step += 1
            after_step()
    return progress.figures(world)


def diverged(error: DivergedError, epoch: int) -> DivergedError:
    """The line with which a run ends whose epoch (from 0) had `error`."""
    kept = "what was saved before is as it was"
    return DivergedError(f"{error} in epoch {epoch + 1}: training stopped, {kept}; try a lower learning rate")


def score_column(select: str, has_val: bool) -> str | None:
    """The column of metrics.csv that picks the best epoch: on validation every class counts alike."""
    if select == "test":
        return "test_overall"
    return "val_balanced" if has_val else None
