"""When stage 1 saves within an epoch, and how it ends where a signal asks it to."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.distributed import World
from utils.engine import Partial
from utils.logger import Run
from utils.signals import Signals, Stopped


def resume_command(script: str, folder: Path, world: World) -> str:
    """The command that goes on with the run of `folder`."""
    start = "python" if world.size == 1 else f"torchrun --nproc_per_node {world.size}"
    return f"{start} {script} --resume {shlex.quote(str(folder))}"


def stop(run: Run, script: str, world: World, status: int, where: str) -> None:
    """Say how to go on and end.

    Raises:
        Stopped: always.
    """
    run.result(f"stopped by a signal after {where}; go on with: {resume_command(script, run.folder, world)}")
    world.wait()
    raise Stopped(status)


class Keeper:
    """Asked after every step: `save(partial)` writes last.pth with the position inside the epoch.

    `every`: a number of steps, minutes as `10m`, or None for the ends of epochs alone.
    """

    def __init__(
        self, run: Run, save: Callable[[dict | None], None], signals: Signals, world: World, every: str | None
    ) -> None:
        self.run, self.save, self.signals, self.world = run, save, signals, world
        minutes = every is not None and every.endswith("m")
        self.seconds = int(every[:-1]) * 60 if minutes else None
        self.steps = int(every) if every and not minutes else None
        self.saved_at = time.monotonic()

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

    def after_step(self, partial: Partial, epoch: int) -> None:
        """Save where it is time to; where a signal has come, end.

        Raises:
            Stopped: it has.
            DivergedError: the loss is not finite; nothing was saved with it.
        """
        asked, due = self._wishes()
        if asked or due or (self.steps and partial.step % self.steps == 0):
            self.save(partial.as_dict(self.world))
            self.saved_at = time.monotonic()
        if asked:
            where = f"step {partial.step} of epoch {epoch + 1}"
            stop(self.run, "main_stage1.py", self.world, asked, where)

    def after_epoch(self, epoch: int) -> None:
        """End where a signal has come; the epoch is saved.

        Raises:
            Stopped: it has.
        """
        asked, _ = self._wishes()
        if asked:
            stop(self.run, "main_stage1.py", self.world, asked, f"epoch {epoch}")
