"""The epochs of all heads of a run: which are trained together, on how many threads, and when none is left.

Shapes: N images.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from statistics import fmean

import torch

from utils.base.errors import UserError
from utils.features.frozen import Representation
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan
from utils.heads.stack import run_epoch
from utils.settings.config import Config

# of weights, momentum, gradients and logits of a stack; what is more are several stacks. On a CPU they so lie
# in the cache of a core.
STACK_BYTES = {"cpu": 2**22, "other": 2**30}
# a stack of heads of at most this many weights trains on one CPU thread: its steps are too small to share out
ONE_THREAD_WEIGHTS = 2**18


def start_heads(
    plans: Sequence[HeadPlan], frozen: Representation, scored: Sequence[str], config: Config
) -> list[HeadRun]:
    """A head for each plan, at its start. Features that all share are computed first, on no head's clock."""
    if not frozen.drifting:
        frozen.train.plain()
        for name in (frozen.judged, *scored):
            frozen.part(name)
    with threads_for(frozen):  # rates that follow from the features are the same with any number of threads
        return [HeadRun(plan, frozen, config) for plan in plans]


def all_epochs(heads: Sequence[HeadRun]) -> range:
    """The epochs of the head that has most; heads without training are scored in the first."""
    return range(max([1, *(head.plan.epochs for head in heads)]))


def train_epoch(
    heads: Sequence[HeadRun],
    epoch: int,
    scored: Sequence[str] = (),
    after_step: Callable[[], None] = lambda: None,
    workers: int = 1,
    asked: Callable[[], object] = lambda: False,
) -> bool:
    """Train every head that lacks epoch `epoch` (0: the first) for it and score it; was there one?

    `scored` are the parts that are scored. Of `workers` threads each takes a stack at a time: then
    `after_step()` is called once for all their steps, and they end after the step in which `asked()` turns
    true; else after every step of a stack.

    Raises:
        UserError: no head is left.
    """
    todo = [head for head in heads if head.lacks(epoch)]
    if not todo:
        return False
    frozen = todo[0].frozen
    if not frozen.drifting:
        frozen.train.of_epoch(epoch)  # on no head's clock
    with threads_for(frozen) as small:
        stacks = list(stacks_of(todo))
        if small and workers > 1 and len(stacks) > 1:
            _share_out(stacks, epoch, scored, workers, asked)
            keep_best(heads)
            after_step()
        else:
            for stack in stacks:
                run_epoch(stack, epoch, scored, after_step)
            keep_best(heads)
    named = [head for head in heads if head.plan.named]
    if all(head.failed for head in named):
        raise UserError(nothing_left(named))
    return True


def keep_best(heads: Sequence[HeadRun]) -> None:
    """Keep the heads of each setting at its best epoch so far, by the mean over seeds; the first of equals.

    A setting of which a seed lacks the epoch has to wait for it.
    """
    for group in settings_of([head for head in heads if not head.failed]):
        scores, best = [head.score() for head in group], [head.progress.best_score for head in group]
        if None in scores or len({len(head.progress.rows) for head in group}) != 1:
            continue
        if None in best or fmean(scores) > fmean(best):
            for head in group:
                head.keep()


def settings_of(heads: Sequence[HeadRun]) -> list[list[HeadRun]]:
    """The heads by method and setting; those of one differ by seed."""
    groups: dict[tuple, list[HeadRun]] = {}
    for head in heads:
        groups.setdefault((head.plan.method.name, head.plan.setting), []).append(head)
    return list(groups.values())


class _Halted(BaseException):
    """The step is done in which a signal has come."""


def _share_out(
    stacks: list[list[HeadRun]], epoch: int, scored: Sequence[str], workers: int, asked: Callable[[], object]
) -> None:
    def after_step() -> None:
        if asked():
            raise _Halted

    with ThreadPoolExecutor(workers) as pool:
        work = [pool.submit(run_epoch, stack, epoch, scored, after_step) for stack in stacks]
        for done in work:
            with suppress(_Halted):
                done.result()


def stacks_of(heads: Sequence[HeadRun]) -> Iterator[list[HeadRun]]:
    """Heads that take their steps together; those that cannot be stacked, and more than fit, stand apart."""
    kinds: dict[tuple, list[HeadRun]] = {}
    for head in heads:
        kinds.setdefault(head.kind, []).append(head)
    for kind in kinds.values():
        first, size = kind[0].head, 1
        kind.sort(key=lambda head: str(head.loss_kind or ""))  # those of one loss stand side by side
        if kind[0].stacks and kind[0].frozen.drifting:
            size = len(kind)  # a pass of the backbone costs more than any cache saves
        elif kind[0].stacks:
            numbers = 3 * first.weight.numel() + 4 * kind[0].config.batch_size * len(first.weight)
            limit = STACK_BYTES["cpu" if first.weight.device.type == "cpu" else "other"]
            size = max(1, limit // (numbers * first.weight.element_size()))
        yield from (kind[start : start + size] for start in range(0, len(kind), size))


@contextmanager
def threads_for(frozen: Representation) -> Iterator[bool]:
    """One CPU thread for a step of small heads, which is faster. Is it so?"""
    before, weight = torch.get_num_threads(), frozen.fc.weight
    small = weight.device.type == "cpu" and weight.numel() <= ONE_THREAD_WEIGHTS and not frozen.drifting
    if small:
        torch.set_num_threads(1)
    try:
        yield small
    finally:
        torch.set_num_threads(before)


def nothing_left(heads: Sequence[HeadRun]) -> str:
    """The line with which a run ends whose heads have all failed."""
    first = next(head for head in heads if head.failed)
    who = "" if len(heads) == 1 else f"no method is left of {len(heads)} heads; {first.plan.method.name}: "
    return f"{who}{first.failure}; nothing was published"
