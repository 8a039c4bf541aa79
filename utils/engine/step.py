"""How the images of an epoch become optimiser steps, what one step computes, and the loss of stage 1.

Shapes: N batch, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from losses import build_loss, label_smooth_for_gap
from utils.base.distributed import ALONE, World, gradients_kept_local
from utils.base.errors import UserError
from utils.settings.config import Config
from utils.settings.methods import METHODS
from utils.settings.presets import preset_for

# losses that take shares of the classes in place of labels, and are linear in them
OF_MIXED_LABELS = ("ce", "los", "bsce")
# losses that are no mean over images of what each of them costs: parts of a batch have other gradients
OF_WHOLE_BATCHES = ("cb", "power", "lade")


class DivergedError(UserError):
    """The loss is not finite; nothing was updated with it."""


def training_loss(config: Config, class_counts: Sequence[int], parts: int = 1) -> nn.Module:
    """The loss that `--loss` names, with the options that stage 2 gives the method of that name, if any.

    `parts` are those that a step is cut into, over all processes.
    """
    name = config.loss
    if parts > 1 and name in OF_WHOLE_BATCHES:
        why = "weighs the images of a step against each other"
        raise UserError(f"--loss {name} {why}: it takes one process and no --accum")
    if config.mixup and name not in OF_MIXED_LABELS:
        raise UserError(f"--loss {name} takes no mixed labels (--mixup): {', '.join(OF_MIXED_LABELS)} do")
    method = METHODS.get(name)
    options = method.loss_options(method.options | method.at_ratio(config.imb_ratio)) if method else {}
    if name == "ldam":  # the logits of stage 1 are no scaled cosines, so the margins are those of logits
        options |= {"scale": 1.0}
    if config.label_smooth is not None:
        if name not in ("ce", "los", "los_weighted"):
            takers = "--loss ce, los and los_weighted"
            raise UserError(f"--label_smooth is for {takers}, {name} has no use for it")
        name = "los" if name == "ce" else name
        options |= {"label_smooth": config.label_smooth}
    elif name in ("los", "los_weighted"):
        preset = preset_for(config.dataset, config.network)
        gap = preset["logit_gap"]
        options |= {"label_smooth": preset["label_smooth"] or label_smooth_for_gap(gap, len(class_counts))}
    try:
        return build_loss(name, class_counts, **options)
    except ValueError as error:
        raise UserError(f"--loss {name}: {error}") from error


@dataclass(frozen=True)
class Part:
    """A batch of this process: its first `rows` count (None: all), with `weight` on their mean loss in the
    step's; `last`: the optimiser steps after it."""

    rows: int | None = None
    weight: float = 1.0
    last: bool = True


@dataclass(frozen=True)
class Steps:
    """How an epoch over `images` is cut: `batch_size` images a step, shared by the processes, each taking its
    share in `accum` parts. The sum of the parts' gradients is that of the whole step's mean loss.
    """

    images: int
    batch_size: int
    accum: int = 1
    world: World = ALONE

    def __post_init__(self) -> None:
        if self.batch_size % (self.world.size * self.accum):
            raise UserError(
                f"--batch_size {self.batch_size} must be a multiple of {self.world.size} process(es) x "
                f"--accum {self.accum}: it counts the images of a step, over all of them"
            )

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    @property
    def part_size(self) -> int:
        """Images that this process takes at a time."""
        return self.batch_size // (self.world.size * self.accum)

    def told(self, lr: float) -> str:
        """What a step is made of, and the linear rule, for the log."""
        rate = f"learning rate {lr:g} here is {256 * lr / self.batch_size:g} at 256 images a step"
        shares = f"{self.world.size} process(es) x {self.accum} part(s) x {self.part_size}"
        return f"a step: {self.batch_size} images = {shares}; linear rule: {rate}"

    def _shares(self) -> Iterator[tuple[int, int, int]]:
        """Of each step: where this process's share starts and stops in the order, the images of the step."""
        for first in range(0, self.images, self.batch_size):
            size = min(self.batch_size, self.images - first)
            start, stop = self.world.block(size)
            yield first + start, first + stop, size

    def own(self, order: Tensor) -> Tensor:
        """This process's images of an epoch in `order` int64 [N], to be cut into parts of `part_size`.

        Batch-norm takes no single image: a last part of one or none is filled up with some that do not count.
        """
        shares = [order[start:stop] for start, stop, _ in self._shares()]
        last = len(shares[-1])
        rows = last % self.part_size or min(last, self.part_size)
        filling = order[-1:].expand(max(min(2, self.part_size) - rows, 0))
        return torch.cat([*shares, filling])

    def parts(self) -> Iterator[Part]:
        """What each of those parts is."""
        for start, stop, size in self._shares():
            left = [min(self.part_size, stop - first) for first in range(start, stop, self.part_size)] or [0]
            for i, rows in enumerate(left):
                yield Part(rows, rows * self.world.size / size, last=i == len(left) - 1)


@dataclass(frozen=True)
class TrainStep:
    """Forward, loss and backward of a part, and after the last part of a step the optimiser's update.

    `look`: on a CPU the host checks every loss before its update; an accelerator would have to wait.
    """

    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    look: bool = True

    def __call__(self, inputs: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Summed loss and hits, both [], of images [N, ...] with labels [N].

        Where `targets` are the shares of the classes, float [N, K], a hit is the class with the largest one.
        """
        # slicing and weighting a whole part would be a twentieth of a small head's step
        whole = part.rows in (None, len(targets))
        labels = targets if whole else targets[: part.rows]
        with nullcontext() if part.last else gradients_kept_local(self.model):
            logits = self.model(inputs)
            logits = logits if whole else logits[: part.rows]
            loss = self.loss_fn(logits, labels) if len(labels) else logits.sum()
            if self.look and loss.device.type == "cpu" and not math.isfinite(loss.item()):
                raise DivergedError(f"the loss is {loss.item()}")
            self.scaler.scale(loss if part.weight == 1 else loss * part.weight).backward()
        classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
        hits = (logits.detach().argmax(dim=1) == classes).sum()
        if part.last:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * len(labels), hits
