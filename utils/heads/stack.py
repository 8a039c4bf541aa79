"""Many heads over one representation: every head trains by itself, over features that are computed once.

A head's bits depend on its plan and the features alone: it owns its order, its start and its optimiser.

Shapes: N images, D feature, K classes, V views.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from losses import build_loss, max_norm_, max_norm_limit
from models import build_head
from models.heads.los_path import los_path_lr
from utils.base.distributed import ALONE
from utils.base.errors import UserError, is_out_of_memory, reason
from utils.base.seeding import epoch_order, generator_for
from utils.engine import loop
from utils.engine.step import TrainStep
from utils.features.frozen import Representation
from utils.features.views import logit_batches
from utils.heads.crew import Crew
from utils.heads.plan import HeadPlan
from utils.metrics.accuracy import epoch_figures, predictions
from utils.settings.config import Config

# heads of at most this many weights train on one CPU thread: their steps are too small to share out
ONE_THREAD_WEIGHTS = 2**18
_NO_CREW = Crew(1)


def balanced_order(seed: int, epoch: int, labels: Tensor, num_classes: int) -> Tensor:
    """N draws with replacement: a class, each equally likely, then an image of it; int64 [N].

    Source: class-balanced sampling, as in Kang et al. 2020; `labels` int64 [N], every class with an image.
    """
    generator = generator_for(seed, "balanced order", epoch)
    by_class = labels.cpu().argsort(stable=True)
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    first = counts.cumsum(0) - counts
    drawn = torch.randint(num_classes, (len(labels),), generator=generator)
    place = torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[drawn]
    return by_class[first[drawn] + place.long()]


class HeadRun:
    """One head on its way: its loss and optimiser, how far it is, and why it ended where it failed."""

    def __init__(self, plan: HeadPlan, frozen: Representation, config: Config) -> None:
        self.plan, self.frozen, self.batch_size = plan, frozen, config.batch_size
        self.select = config.select
        self.progress, self.best_state, self.best_backbone = loop.Progress(), None, None
        self.failure = None
        self.lr, self.head = plan.lr, None
        self._spent, self._working_since = 0.0, None
        self._attempt(lambda: self._start(config))

    @property
    def seconds(self) -> float:
        """What the head has taken so far, of work under way too: it is saved within an epoch."""
        under_way = 0.0 if self._working_since is None else time.perf_counter() - self._working_since
        return self._spent + under_way

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do it, on this head's clock; what lies in its numbers, setting or memory ends this head alone.

        Anything else is a mistake in the code of a head or loss and goes on its way with its traceback.
        """
        self._working_since = time.perf_counter()
        try:
            work()
        except loop.DivergedError as error:
            self.failure = f"{error}: training stopped; try a lower learning rate"
        except Exception as error:
            if not (isinstance(error, UserError) or is_out_of_memory(error)):
                raise
            self.failure = reason(error)
        finally:
            self._spent, self._working_since = self.seconds, None

    def _start(self, config: Config) -> None:
        plan, method, frozen = self.plan, self.plan.method, self.frozen
        options = dict(plan.options)
        path = options.pop("path", None)
        if method.head == "los_step":
            options["strength"] = path * frozen.strength_of_path
        elif path is not None:
            self.lr = self._path_lr(path, config)
        needs_features = method.head in ("los_step", "ncm")
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
        self.optimizer = loop.sgd(self.head.parameters(), self.lr, config.momentum, plan.wd, config.nesterov)

    def _path_lr(self, path: float, config: Config) -> float:
        """The learning rate at which los drops by `path` to first order; the control takes it over."""
        own = self.plan.options.get("label_smooth")
        delta = _first(config.label_smooth) if own is None else own
        epochs = range(self.plan.epochs)
        schedule_sum = self.steps * sum(loop.cosine_lr(1.0, epoch, self.plan.epochs) for epoch in epochs)
        return los_path_lr(path * self.frozen.strength_of_path, delta, schedule_sum, config.momentum)

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return -(-len(self.frozen.train.labels) // self.batch_size) if self.plan.method.trained else 0

    @property
    def failed(self) -> bool:
        return self.failure is not None

    def lacks(self, epoch: int) -> bool:
        """Has the head this epoch (0: the first) still to come?"""
        return not self.failed and len(self.progress.rows) == epoch < max(self.plan.epochs, 1)

    def run_epoch(
        self, epoch: int, scored: Iterable[str], after_step: Callable[[], None] = lambda: None
    ) -> None:
        """Train the next epoch, or the rest of it, and score; untrained heads score only."""
        self._attempt(lambda: self._run_epoch(epoch, list(scored), after_step))

    def _run_epoch(self, epoch: int, scored: list[str], after_step: Callable[[], None]) -> None:
        plan = self.plan
        if plan.method.trained:
            lr = loop.cosine_lr(self.lr, epoch, plan.epochs)
            row = {"epoch": epoch + 1, "step": (epoch + 1) * self.steps, "lr": lr}
            order = self._order(epoch)[self.progress.step * self.batch_size :]
            batches = self.frozen.train.batches(order, self.batch_size, epoch)
            step = TrainStep(self.head, self.loss_fn, self.optimizer)
            row |= loop.train_epoch(step, batches, self.progress, lr, after_step=after_step)
            if self.limit is not None:
                max_norm_(self.head.weight.data, self.limit)
            if not all(weight.isfinite().all() for weight in self.head.parameters()):
                raise loop.DivergedError(f"the weights are not finite after epoch {epoch + 1}")
        else:
            row = {"epoch": 0, "step": 0, "lr": None, "train_loss": None, "train_accuracy": None}
        row |= self._score(scored)
        if self.progress.record(row, loop.score_column(self.select, "val" in scored)):
            self._keep_best()

    def _order(self, epoch: int) -> Tensor:
        labels, seed = self.frozen.train.labels, self.plan.seed
        if self.plan.method.sampler == "balanced":
            return balanced_order(seed, epoch, labels, self.frozen.num_classes)
        return epoch_order(seed, epoch, len(labels))

    def _score(self, scored: list[str]) -> dict:
        """The columns of metrics.csv for the parts that are scored after every epoch."""
        predicted = {
            name: torch.cat([predictions(z) for z in logit_batches(self.head, self.frozen.part(name))])
            for name in scored
        }
        if any((classes < 0).any() for classes in predicted.values()):
            raise loop.DivergedError("the logits are not finite")
        return epoch_figures(predicted, self.frozen.labels, self.frozen.class_counts, self.frozen.shots)

    def _keep_best(self) -> None:
        self.best_state = deepcopy(self.head.state_dict())
        if self.frozen.drifting:
            self.best_backbone = deepcopy(self.frozen.train.model.state_dict())

    def load_chosen(self) -> None:
        """Put the selected epoch into the head."""
        if self.select != "last" and self.best_state is not None:
            self.head.load_state_dict(self.best_state)
            if self.frozen.drifting:
                self.frozen.train.model.load_state_dict(self.best_backbone)

    @property
    def chosen_epoch(self) -> int:
        return (self.progress.best_epoch if self.select != "last" else None) or self.progress.epoch

    def state(self) -> dict:
        """How far the head is: plain data and tensors, for a checkpoint."""
        state = self.plan.name | {"progress": self.progress.as_dict(), "seconds": self.seconds}
        if self.failed:  # its weights may be of no use
            return state | {"failure": self.failure}
        state["weights"] = dict(self.head.state_dict())
        for name in ("best_state", "best_backbone"):
            if getattr(self, name) is not None:
                state[name] = dict(getattr(self, name))
        if self.plan.method.trained:
            state["optimizer"] = self.optimizer.state_dict()
        return state | ({"partial": self.progress.partial()} if self.progress.step else {})

    def restore(self, state: dict) -> None:
        """Be where `state` says; the plan must be that of the head which it is from.

        Raises:
            ValueError, RuntimeError: it is not the state of such a head.
        """
        self.progress, self._spent = loop.Progress(**state["progress"]), state["seconds"]
        self.failure = self.failure or state.get("failure")
        if self.failed:
            return
        self.head.load_state_dict(state["weights"])
        self.best_state, self.best_backbone = state.get("best_state"), state.get("best_backbone")
        if self.plan.method.trained:
            loop.load_optimizer(self.optimizer, state["optimizer"])
        if "partial" in state:
            self.progress.go_on(state["partial"], ALONE, self.frozen.fc.weight.device)


@contextmanager
def threads_for(frozen: Representation) -> Iterator[bool]:
    """One CPU thread for small heads: faster, and the same bits whatever the number of threads. Is it so?"""
    before = torch.get_num_threads()
    small = frozen.fc.weight.numel() <= ONE_THREAD_WEIGHTS and not frozen.drifting
    if small:
        torch.set_num_threads(1)
    try:
        yield small
    finally:
        torch.set_num_threads(before)


def start_heads(
    plans: list[HeadPlan], frozen: Representation, scored: list[str], config: Config
) -> list[HeadRun]:
    """A head a plan, at its start. Features that all share are computed first, on no head's clock."""
    if not frozen.drifting:
        frozen.train.plain()
        for name in ("test", *scored):
            frozen.part(name)
    return [HeadRun(plan, frozen, config) for plan in plans]


def _first(value: float | list[float]) -> float:
    return value[0] if isinstance(value, list) else value


def train_heads(
    heads: list[HeadRun],
    frozen: Representation,
    scored: list[str],
    after_epoch: Callable[[int], None] = lambda epoch: None,
    after_step: Callable[[], None] = lambda: None,
    crew: Crew = _NO_CREW,
) -> None:
    """Every epoch that a head lacks, epoch by epoch, so that the features of a view are needed once.

    `after_epoch(epoch)` is told the epochs done, `after_step()` every step of a head, or that the `crew` is
    done with all of them.

    Raises:
        UserError: no head is left.
    """
    for epoch in range(max([1, *(head.plan.epochs for head in heads)])):
        todo = [head for head in heads if head.lacks(epoch)]
        if todo and not frozen.drifting:
            frozen.train.of_epoch(epoch)  # on no head's clock
        with threads_for(frozen) as small:
            if small and crew.suits(todo):
                crew.run_epoch(todo, epoch, scored)
                after_step()
            else:
                for head in todo:
                    head.run_epoch(epoch, scored, after_step)
        if all(head.failed for head in heads if head.plan.named):
            raise UserError(nothing_left([head for head in heads if head.plan.named]))
        if todo:
            after_epoch(epoch + 1)


def nothing_left(heads: list[HeadRun]) -> str:
    """The line with which a run ends whose heads have all failed."""
    first = next(head for head in heads if head.failed)
    who = "" if len(heads) == 1 else f"no method is left of {len(heads)} heads; {first.plan.method.name}: "
    return f"{who}{first.failure}; nothing was published"
