"""When a run saves, and how it ends where a signal asks it to."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from utils.base.distributed import ALONE, World
from utils.base.signals import Signals, Stopped
from utils.run.folder import Run
from utils.settings.commands import command

# of the time of a stage 2 whose epochs are shorter than a save, where the user names no interval
SHARE = 0.1


class Saver:
    """Asked after every step and epoch; saves where it is time to, ends the run where a signal has come.

    `every`: a number of steps, minutes as `10m`, or None for the ends of epochs alone. `words` are those with
    which the run is gone on with, beside --resume.
    """

    def __init__(
        self,
        run: Run,
        script: str,
        signals: Signals,
        world: World = ALONE,
        every: str | None = None,
        words: Sequence[str] = (),
    ) -> None:
        self.run, self.signals, self.world = run, signals, world
        self.script, self.words, self.processes = script, words, world.size
        minutes = every is not None and every.endswith("m")
        self.seconds = int(every[:-1]) * 60 if minutes else None
        self.steps = int(every) if every and not minutes else None
        self.done, self.saved_at, self.cost = 0, time.monotonic(), 0.0
        self.keeps(lambda: None, lambda: "its start")

    def keeps(self, state: Callable[[], None], where: Callable[[], str]) -> None:
        """`state()` writes last.pth with the position within the epoch, `where()` tells it to people."""
        self._state, self._where = state, where

    def _wishes(self) -> tuple[int, bool]:
        """The status to end with, 0 to go on; is it time to save? All processes hear the same."""
        timely = self.seconds is not None and time.monotonic() - self.saved_at > self.seconds
        asked = self.signals.asked
        if self.world.size > 1:
            # a sum: of 143 and 130 in different processes the wish counts, not the number
            told = self.world.total(
                torch.tensor([asked == 143, asked == 130, self.world.main and timely]).int()
            )
            asked, timely = 143 if told[0] else 130 if told[1] else 0, bool(told[2])
        return asked, timely

    def _save(self) -> None:
        started = time.monotonic()
        self._state()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def after_step(self) -> None:
        """Save where it is time to; raises Stopped where a signal has come."""
        self.done += 1
        asked, timely = self._wishes()
        if asked or timely or (self.steps and self.done % self.steps == 0):
            self._save()
        if asked:
            self._stop(asked)

    def after_epoch(self, saved: bool) -> None:
        """Save the epoch unless it is `saved` or was short; raises Stopped where a signal has come."""
        asked, _ = self._wishes()
        named = self.steps is not None or self.seconds is not None
        if not saved and (asked or named or time.monotonic() - self.saved_at >= self.cost / SHARE):
            self._save()
        if asked:
            self._stop(asked)

    def watch(self, batches: Iterable, total: int, title: str) -> Iterator:
        """Pass batches of a frozen backbone through, with a bar; raises Stopped where a signal has come."""
        for batch in self.run.bar(batches, total, title):
            yield batch
            if self.signals.asked:
                self._save()
                # nobody waits for the others here: each has its own share, and its own signal
                self._stop(self.signals.asked, together=False)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """A process that waits for one which has stopped in `watch` hears of a broken connection."""
        try:
            yield
        except RuntimeError:
            if self.world.size > 1 and self.signals.asked:
                self._stop(self.signals.asked, together=False)
            raise

    def _stop(self, status: int, together: bool = True) -> None:
        words = [*self.words, "--resume", self.run.folder]
        line = command(self.script, *words, processes=self.processes)
        self.run.result(f"stopped by a signal after {self._where()}; go on with: {line}")
        if together:
            self.world.wait()
        raise Stopped(status)
