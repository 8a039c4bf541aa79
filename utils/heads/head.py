"""One head on its way: how it starts, how far it is, why it ended where it failed, and how it is saved.

Shapes: D feature, K classes.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from losses import build_loss, max_norm_, max_norm_limit
from losses.closed_form import has_closed_form, stacks
from models import HEADS, build_head
from models.heads.los_path import los_path_lr
from utils.base.errors import UserError, is_out_of_memory, reason
from utils.base.seeding import generator_for
from utils.engine.loop import Progress, cosine_lr, score_column
from utils.features.frozen import Representation
from utils.heads.move import logit_move
from utils.heads.plan import HeadPlan
from utils.settings.config import Config

DIVERGED = "the {} not finite: training stopped; try a lower learning rate"


class HeadRun:
    """A head of a run; while it is trained its tensors are views into those of a stack.

    `head` is the module, `momentum` that of each tensor it learns. Of the epoch under way `step` steps with
    `images` are done; `loss_sum` and `hit_sum`, both [], are over these.
    """

    def __init__(self, plan: HeadPlan, frozen: Representation, config: Config) -> None:
        self.plan, self.frozen, self.config, self.select = plan, frozen, config, config.select
        self.progress, self.best_state, self.best_backbone = Progress(), None, None
        self.lr, self.failure, self.momentum = plan.lr, None, {}
        self.shifted = plan.method.shifted
        self.head, self.loss_fn, self.limit = None, None, None
        self._spent, self._since, self._beside = 0.0, None, 1
        self._statistics = frozen.train.at
        self._begin_epoch()
        with attempted([self]):
            self._start()

    def _start(self) -> None:
        plan, method, frozen = self.plan, self.plan.method, self.frozen
        options = dict(plan.options)
        path, move = options.pop("path", None), options.pop("move", None)
        if method.head == "los_step":
            options["strength"] = path * frozen.strength_of_path
        elif path is not None:
            self.lr = self._path_lr(path)
        kind = method.head if callable(method.head) else HEADS[method.head]
        if not hasattr(kind, "start"):
            raise UserError("a head needs start(fc), see models/heads")
        if callable(method.head) and not hasattr(kind, "folded"):
            raise UserError(
                "a head of your own needs folded(), see models/heads, or an entry in models.HEADS"
            )
        needs_features = "features" in getattr(kind, "needs", ())
        self.head = build_head(
            method.head,
            frozen.fc,
            frozen.train_counts,
            generator_for(plan.seed, f"head {method.name}"),
            frozen.train.plain() if needs_features else None,
            frozen.train.labels if needs_features else None,
            **method.head_options(options),
        )
        if not method.trained:
            return
        self.loss_fn = build_loss(method.loss, frozen.train_counts, **method.loss_options(options))
        self.loss_fn.to(frozen.fc.weight.device)
        share = options.get("max_norm")
        self.limit = None if share is None else max_norm_limit(self.head.weight, share)
        if move is not None:
            self.lr = self._move_lr(move)
        self.momentum = {name: torch.zeros_like(tensor) for name, tensor in learned(self.head).items()}

    def _begin_epoch(self) -> None:
        self.step, self.images = 0, 0
        self.loss_sum, self.hit_sum = self.frozen.fc.weight.new_zeros(2).unbind()

    def _path_lr(self, path: float) -> float:
        """The learning rate at which los drops by `path` to first order; the control takes it over."""
        deltas = self.config.label_smooth
        own = self.plan.options.get("label_smooth")
        delta = own if own is not None else deltas[0] if isinstance(deltas, list) else deltas
        strength = path * self.frozen.strength_of_path
        return los_path_lr(strength, delta, self._schedule_sum, self.config.momentum)

    def _move_lr(self, move: float) -> float:
        """The learning rate at which the logits move by `move` to first order; heads alike share the work."""
        method, frozen = self.plan.method, self.frozen
        options = self.plan.options | {"move": None}
        key = (method.name, self.plan.seed * (method.start == "fresh"), *options.items())
        if key not in frozen.moves:
            frozen.moves[key] = logit_move(
                self.plan, self.head, self.loss_fn, frozen.train.plain(), frozen.train.labels
            )
        return move * (1 - self.config.momentum) / (self._schedule_sum * frozen.moves[key])

    @property
    def _schedule_sum(self) -> float:
        """Of lr / peak lr over all steps."""
        return self.steps * sum(map(self._schedule, range(self.plan.epochs)))

    def _schedule(self, epoch: int) -> float:
        """lr / peak lr in an epoch (from 0); a single one would learn nothing if it were shifted."""
        epochs = self.plan.epochs
        return cosine_lr(1.0, epoch + (self.shifted and epochs > 1), epochs)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch (from 0)."""
        return self.lr * self._schedule(epoch)

    @property
    def kind(self) -> tuple:
        """Heads of one kind take their steps together, whatever their losses, learning rates and seeds.

        Where the backbone drifts it goes the way of the batches, which are those of a sampler and a seed.
        """
        method = self.plan.method
        options = method.head_options(self.plan.options).items()
        order = method.trained and (method.sampler, self.frozen.drifting and self.plan.seed)
        return type(self.head), *options, order, self.stacks, self.step

    @property
    def stacks(self) -> bool:
        """Can it stand in a stack beside others?"""
        return getattr(self.head, "stacks", False) and (self.loss_fn is None or stacks(self.loss_fn))

    @property
    def loss_kind(self) -> tuple | None:
        """The loss with its options; None: it has the closed form, in which options differ by head."""
        if self.loss_fn is None or has_closed_form(self.loss_fn):
            return None
        method = self.plan.method
        return method.loss, *method.loss_options(self.plan.options).items()

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return -(-len(self.frozen.train.labels) // self.config.batch_size)

    @property
    def failed(self) -> bool:
        return self.failure is not None

    @property
    def seconds(self) -> float:
        """Its share of the time so far, of work under way too: a head is saved within an epoch."""
        under_way = 0.0 if self._since is None else (time.perf_counter() - self._since) / self._beside
        return self._spent + under_way

    def lacks(self, epoch: int) -> bool:
        """Has the head this epoch (0: the first) still to come?"""
        return not self.failed and len(self.progress.rows) == epoch < max(self.plan.epochs, 1)

    def end_steps(self, epoch: int) -> dict:
        """After the last step of an epoch: what its steps have summed, as a row; here a head diverges."""
        if not self.plan.method.trained:
            return {"epoch": 0, "step": 0, "lr": None, "train_loss": None, "train_accuracy": None}
        if self.limit is not None:
            max_norm_(self.head.weight.data, self.limit)
        loss, hits = float(self.loss_sum), float(self.hit_sum)
        if not math.isfinite(loss):
            self.failure = DIVERGED.format("loss is")
        elif not all(tensor.isfinite().all() for tensor in self.head.parameters()):
            self.failure = DIVERGED.format(f"weights after epoch {epoch + 1} are")
        elif hasattr(self.head, "constrain"):
            self.head.constrain()
        row = {"epoch": epoch + 1, "step": (epoch + 1) * self.steps, "lr": self.rate(epoch)}
        return row | {"train_loss": loss / self.images, "train_accuracy": hits / self.images}

    def record(self, row: dict, scores: dict) -> None:
        """Take in a finished epoch with its scores."""
        self._statistics = self.frozen.train.at
        self._begin_epoch()
        self.progress.record(row | scores, None)

    def score(self) -> float | None:
        """That of the last epoch done, on the images that select."""
        rows = self.progress.rows
        return rows[-1].get(score_column(self.select, "val" in self.frozen.labels)) if rows else None

    def keep(self) -> None:
        """The last epoch done is the one to be chosen so far."""
        self.progress.best_epoch, self.progress.best_score = self.progress.epoch, self.score()
        self.best_state, self.best_backbone = copied(self.head.state_dict()), self.statistics

    def load_chosen(self) -> None:
        """Put the selected epoch into the head."""
        if self.select != "last" and self.best_state is not None:
            self.head.load_state_dict(self.best_state)
            self._statistics = self.best_backbone
        self.frozen.train.go_to(self.statistics)

    @property
    def statistics(self) -> dict[str, Tensor] | None:
        """Those of a drifting backbone where the head has brought it; None: it is frozen."""
        return self.frozen.train.at if self._statistics is None else self._statistics

    def take_backbone(self) -> None:
        """From here on, to the end of the epoch, the backbone goes with this head."""
        self.frozen.train.go_to(self.statistics)
        self._statistics = None

    @property
    def chosen_epoch(self) -> int:
        return (self.progress.best_epoch if self.select != "last" else None) or self.progress.epoch

    def state(self) -> dict:
        """How far the head is: plain data and tensors of its own, for a checkpoint."""
        state = self.plan.key | {"progress": self.progress.as_dict(), "seconds": self.seconds}
        state["shifted"] = self.shifted
        if self.failed:  # its weights may be of no use
            return state | {"failure": self.failure}
        state |= {"weights": copied(self.head.state_dict()), "momentum": copied(self.momentum)}
        for name in ("best_state", "best_backbone", "statistics"):
            if getattr(self, name) is not None:
                state[name] = dict(getattr(self, name))
        if self.step:
            sums = {"loss_sum": self.loss_sum, "hit_sum": self.hit_sum}
            state |= {"step": self.step, "images": self.images} | copied(sums)
        return state

    def restore(self, state: dict) -> None:
        """Be where `state` says; the plan must be that of the head which it is from.

        Raises:
            ValueError, RuntimeError: it is not the state of such a head.
        """
        self.progress, self._spent = Progress(**state["progress"]), state["seconds"]
        self.failure = self.failure or state.get("failure")
        self.shifted = bool(state.get("shifted"))  # a run goes on with the schedule that it began with
        if self.failed:
            return
        self.head.load_state_dict(state["weights"])
        self.best_state, self.best_backbone = state.get("best_state"), state.get("best_backbone")
        self._statistics = state.get("statistics", self.frozen.train.at)
        self.frozen.train.go_to(self._statistics)
        momentum = state["momentum"] if "momentum" in state else self._older_momentum(state)
        for name, tensor in self.momentum.items():
            kept = momentum[name]
            if kept.shape != tensor.shape or not kept.isfinite().all():
                raise ValueError(f"its momentum does not fit weights {list(tensor.shape)}")
            tensor.copy_(kept)
        self.step, self.images = state.get("step", 0), state.get("images", 0)
        for name in ("loss_sum", "hit_sum"):
            getattr(self, name).copy_(state.get(name, torch.zeros(())))

    def _older_momentum(self, state: dict) -> dict[str, Tensor]:
        """That of a file which keeps the optimiser of each head, as before heads were stacked."""
        if "partial" in state:
            raise ValueError("it was saved within an epoch, by an earlier version")
        buffers = state["optimizer"]["state"] if self.momentum else {}
        return {name: buffers[place]["momentum_buffer"] for place, name in enumerate(self.momentum)}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: a view would be kept, and saved, with the memory of its whole stack."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def learned(head: nn.Module) -> dict[str, Tensor]:
    """What a head learns, by name."""
    return {name: tensor for name, tensor in head.named_parameters() if tensor.requires_grad}


@contextmanager
def attempted(heads: Sequence[HeadRun]) -> Iterator[None]:
    """Work of these heads together, on their clocks; what lies in numbers, setting or memory ends them alone.

    Anything else is a mistake in the code of a head or loss and goes on its way with its traceback.
    """
    for head in heads:
        head._since, head._beside = time.perf_counter(), len(heads)
    try:
        yield
    except Exception as error:
        if not (isinstance(error, UserError) or is_out_of_memory(error)):
            raise
        for head in heads:
            head.failure = head.failure or reason(error)
    finally:
        for head in heads:
            head._spent, head._since = head.seconds, None
