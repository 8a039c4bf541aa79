"""What one step of training computes, the same for every way to run it, and the loss of stage 1.

Shapes: N batch, K classes.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from losses import build_loss, label_smooth_for_gap
from utils.base.distributed import gradients_kept_local
from utils.base.errors import UserError
from utils.engine.steps import Part
from utils.settings.config import Config
from utils.settings.methods import METHODS
from utils.settings.presets import preset_for

# losses that take shares of the classes in place of labels, and are linear in them
OF_MIXED_LABELS = ("ce", "los", "bsce")


class DivergedError(UserError):
    """The loss is not finite; nothing was updated with it."""


def training_loss(config: Config, class_counts: Sequence[int]) -> nn.Module:
    """The loss that `--loss` names, with the options that stage 2 gives the method of that name.

    What the method leaves to the run is the preset's; without such a method the loss's own options count.

    Raises:
        UserError: it does not go with `--mixup`, or with these class counts.
    """
    name = config.loss
    if config.mixup and name not in OF_MIXED_LABELS:
        raise UserError(
            f"--mixup mixes labels, --loss {name} takes none that are mixed: {', '.join(OF_MIXED_LABELS)} do"
        )
    options = METHODS[name].loss_options(METHODS[name].options) if name in METHODS else {}
    if name == "los":
        preset = preset_for(config.dataset, config.network)
        gap = preset["logit_gap"]
        options = {"label_smooth": preset["label_smooth"] or label_smooth_for_gap(gap, len(class_counts))}
    try:
        return build_loss(name, class_counts, **options)
    except ValueError as error:
        raise UserError(f"--loss {name}: {error}") from error


@dataclass(frozen=True)
class TrainStep:
    """Forward, loss and backward of a part, and after the last part of a step the optimiser's update.

    `scaler` keeps fp16 gradients in range. `look`: on a CPU the host checks every loss before its update; on
    an accelerator that would stall the device.
    """

    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    look: bool = True

    def __call__(self, inputs: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Summed loss and hits, both [], of images [N, ...] with labels [N].

        Where `targets` are the shares of the classes, float [N, K], a hit is the class with the largest one.

        Raises:
            DivergedError: the host looked, and the loss is not finite.
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
