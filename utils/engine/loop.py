"""The loops: one training epoch, prediction, and the epochs of a run with selection and checkpoints.

Shapes: N batch, C channels, H, W, D feature, K classes, V views of an image.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import repeat

import torch
from torch import Tensor, nn

from utils.base.column import Column
from utils.base.distributed import ALONE, World
from utils.engine.step import DivergedError, TrainStep
from utils.engine.steps import Part

WARM_STEPS, TIMED_STEPS = 3, 10


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
    """Give an optimiser the state of one like it.

    Raises:
        ValueError: it is of parameters of other shapes. What is of another form raises as torch does.
    """
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state[parameter].get("momentum_buffer")
            if kept is not None and (kept.shape != parameter.shape or not kept.isfinite().all()):
                raise ValueError(f"its momentum does not fit weights {list(parameter.shape)}")


@dataclass
class Partial:
    """An epoch so far: the optimiser steps done, and of this process each batch's summed loss and hits."""

    step: int = 0
    losses: Column = field(default_factory=Column)
    hits: Column = field(default_factory=Column)
    images: int = 0

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        self.losses.append(loss)
        self.hits.append(hits)
        self.images += images

    def figures(self, world: World) -> dict:
        """Mean loss and accuracy over all processes.

        Raises:
            DivergedError: the loss is not finite.
        """
        own = [float(self.losses.values.sum()), float(self.hits.values.sum()), self.images]
        loss_sum, hit_sum, images = world.total(torch.tensor(own, dtype=torch.float64)).tolist()
        if not math.isfinite(loss_sum):
            raise DivergedError("the loss is not finite")
        return {"train_loss": loss_sum / images, "train_accuracy": hit_sum / images}

    def as_dict(self, world: World) -> dict:
        """For a checkpoint, with the share of every process: a collective act.

        Raises:
            DivergedError: the loss is not finite, which on an accelerator nobody has looked at yet.
        """
        losses, hits = (column.values.cpu() for column in (self.losses, self.hits))
        losses = world.gather(losses)
        if not losses.isfinite().all():
            raise DivergedError("the loss is not finite")
        counts = world.gather(torch.tensor([[len(self.losses), self.images]]))
        return {"step": self.step, "counts": counts, "losses": losses, "hits": world.gather(hits)}

    @staticmethod
    def of(stored: dict, world: World, device: torch.device) -> "Partial":
        """What this process had; where there are fewer processes now, the first takes over the rest."""
        lengths, images = stored["counts"].T.tolist()
        mine = [i for i in range(len(lengths)) if (i if i < world.size else 0) == world.rank]
        losses, hits = (stored[name].to(device) for name in ("losses", "hits"))
        partial, ends = Partial(stored["step"]), torch.tensor(lengths).cumsum(0).tolist()
        for i in mine:
            part = slice(ends[i] - lengths[i], ends[i])
            partial.losses.extend(losses[part])
            partial.hits.extend(hits[part])
            partial.images += images[i]
        return partial


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr: float,
    parts: Iterable[Part] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    world: World = ALONE,
    partial: Partial | None = None,
    after_step: Callable[[], None] = lambda: None,
    take: Callable[[Tensor, Tensor, Part], tuple[Tensor, Tensor]] | None = None,
) -> dict:
    """One pass of SGD over `batches` of (inputs [N, ...], labels [N]); returns mean loss and accuracy.

    In place of labels there may be shares of the classes [N, K], see TrainStep. The model's train/eval mode
    is the caller's. `parts` says of each batch what it is in its step (None: a step of its own); `scaler`
    keeps fp16 gradients in range. The figures are those of all processes, and of the steps in `partial` too,
    which `batches` must lack; it is kept up to date, `after_step` sees it. `take`: what takes a part in place
    of a TrainStep of the rest, as GraphedSteps does.

    Raises:
        DivergedError: a loss is not finite. On the CPU before its update; on an accelerator, and with `take`,
            at the end of the epoch, before anything is saved.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    partial = Partial() if partial is None else partial
    take = take or TrainStep(model, loss_fn, optimizer, scaler or torch.amp.GradScaler(enabled=False))
    together = zip(batches, repeat(Part()) if parts is None else parts, strict=parts is not None)
    for (inputs, targets), part in together:
        try:
            loss, hits = take(inputs, targets, part)
        except DivergedError as error:
            raise DivergedError(f"{error} at step {partial.step + 1}") from error
        partial.add(loss, hits, len(targets[: part.rows]))
        if part.last:
            partial.step += 1
            after_step()
    return partial.figures(world)


def timed(batches: Iterable, total_steps: int, tell: Callable[[float], None]) -> Iterator:
    """Pass `batches` through; after a dozen steps tell how many seconds `total_steps` will take."""
    started = 0.0
    for step, batch in enumerate(batches):
        if step == WARM_STEPS:
            started = time.monotonic()
        elif step == WARM_STEPS + TIMED_STEPS:
            tell((time.monotonic() - started) / TIMED_STEPS * total_steps)
        yield batch


def score_column(select: str, has_val: bool) -> str | None:
    """The column of metrics.csv that picks the best epoch: on validation every class counts alike."""
    if select == "test":
        return "test_overall"
    return "val_balanced" if has_val else None


@dataclass
class Progress:
    """How far a run is, and its best epoch so far: plain data that last.pth keeps for a resume."""

    epoch: int = 0  # epochs done
    best_epoch: int | None = None
    best_score: float | None = None
    rows: list[dict] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)

    def record(self, row: dict, scored_on: str | None) -> bool:
        """Take in a finished epoch; is it the best so far, the first of equals?"""
        self.epoch = row["epoch"]
        self.rows.append(row)
        score = row[scored_on] if scored_on else None
        best = score is not None and (self.best_score is None or score > self.best_score)
        if best:
            self.best_epoch, self.best_score = row["epoch"], score
        return best


def fit(
    progress: Progress,
    epochs: int,
    schedule: Callable[[int], float],
    train: Callable[[int, float], dict],
    evaluate: Callable[[], dict],
    scored_on: str | None,
    save: Callable[[str], None],
    log: Callable[[float], None],
    eval_every: int = 1,
    columns: Iterable[str] = (),
) -> None:
    """Run the epochs that `progress` still lacks.

    `train(epoch, lr)` and `evaluate()` return the figures of a metrics.csv row; the figure named `scored_on`
    picks the best epoch, the earlier one of equals. `save("last" | "best")` writes; `log(row, seconds left)`
    tells. Only every `eval_every`-th epoch and the last are evaluated; in the rows between, the `columns`
    that `evaluate` fills are None.

    Raises:
        DivergedError: the loss stopped being finite; names the epoch and what is kept.
    """
    started, first = time.monotonic(), progress.epoch
    for epoch in range(first, epochs):
        lr = schedule(epoch)
        try:
            row = {"epoch": epoch + 1, "lr": lr} | train(epoch, lr)
        except DivergedError as error:
            kept = f"last.pth of epoch {epoch} is kept" if epoch else "nothing of it was saved"
            raise DivergedError(
                f"{error} of epoch {epoch + 1}: training stopped, {kept}; try a lower learning rate"
            ) from error
        evaluated = (epoch + 1) % eval_every == 0 or epoch + 1 == epochs
        row |= evaluate() if evaluated else dict.fromkeys(columns)
        if progress.record(row, scored_on):
            save("best")
        save("last")
        log((time.monotonic() - started) / (epoch + 1 - first) * (epochs - epoch - 1))
