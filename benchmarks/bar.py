"""A progress bar over measured turns, on standard error where that is a terminal."""

import sys
import time

from progress.bar import Bar


class TurnsBar(Bar):
    """Turns of unequal length: `weights` are the seconds that each is expected to take, in order."""

    suffix = "%(index)d/%(max)d turns, eta %(eta_td)s"
    hide_cursor = False

    def __init__(self, weights: list[float]) -> None:
        super().__init__("", max=len(weights))
        self.weights = weights
        self.began = time.monotonic()

    @property
    def eta(self) -> int:
        """Seconds left, by the pace so far."""
        done, left = sum(self.weights[: self.index]), sum(self.weights[self.index :])
        pace = (time.monotonic() - self.began) / done if done else 1.0
        return round(left * pace)


class Turns:
    """Counts turns; shows them where somebody looks."""

    def __init__(self, weights: list[float]) -> None:
        self._bar = TurnsBar(weights) if sys.stderr is not None and sys.stderr.isatty() else None

    def begin(self, name: str) -> None:
        """Say what is measured from here on."""
        if self._bar:
            self._bar.message = name
            self._bar.update()

    def tick(self) -> None:
        """One more turn is measured."""
        if self._bar:
            self._bar.next()

    def end(self) -> None:
        """Leave the line to others."""
        if self._bar:
            self._bar.finish()
