"""Signals that ask a run to end: the first is noted and the step finished, a later one ends at once."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before the end
_LOST = (
    b"error: a file that is read where it lies was cut short, or its disk failed, while it was in use: "
    b"restore it and run it again\n"
)
# what comes this soon after the first is the same wish: Ctrl-C reaches torchrun, which passes it on once more
SAME_WISH_SECONDS = 1.0


class Stopped(SystemExit):
    """The run has saved its state and ends with the status that the signal asks for."""


class Interrupted(KeyboardInterrupt):
    """A signal has come where no step is to be finished; `status` is the one to end with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = _status(number)


class Signals:
    """Within `with`: `asked` is 0, or the exit status of the signal that has come (143, SIGINT 130).

    A second signal ends the process where it stands; files are replaced whole, so none is harmed.
    """

    def __init__(self) -> None:
        self.asked, self._first = 0, 0.0
        self._before: dict[int, Callable | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in ASKING}
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._first = _status(number), time.monotonic()
            self._hear(number)
        elif time.monotonic() - self._first > SAME_WISH_SECONDS:
            os._exit(_status(number))

    def _hear(self, number: int) -> None:
        pass


class Interrupting(Signals):
    """The same, but the first signal raises Interrupted where it comes: for all that is not a step."""

    def _hear(self, number: int) -> None:
        raise Interrupted(number)


@contextmanager
def lost_pages_told() -> Iterator[None]:
    """Within: a mapped file that was cut short ends this process in one line, and a forked one as ever.

    SIGBUS comes back for as long as its instruction is tried again. A handler of Python's runs after the
    instruction and so never does: this one is called by the system itself.
    """
    install, process = ctypes.CDLL(None).signal, os.getpid()
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def tell(number: int) -> None:
        if os.getpid() == process:
            os.write(2, _LOST)
            os._exit(2)
        install(number, None)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(tell)
    before = install(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGBUS, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that ask a run to end wait; a process that is started within never gets one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # inherited from a process's first moment
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _status(number: int) -> int:
    return 130 if number == signal.SIGINT else 143
