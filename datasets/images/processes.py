"""Processes that read files for this one: a torch DataLoader behind an interface of requests and answers."""

import io
import mmap
import multiprocessing
import multiprocessing.context
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch.utils.data import DataLoader, Dataset

from utils.base.errors import UserError
from utils.base.signals import held_back


class Processes:
    """`workers` processes that answer requests in their order by `dataset[request]`; 0: this process does.

    They start with the first request and stay until `close`, or until this process ends, in whatever way;
    signals that ask a run to end they leave to this process, whose step may need them. A new series of
    requests ends the one before. `pin` puts tensors into memory that a GPU fetches by itself.
    """

    def __init__(self, dataset: Dataset, workers: int, pin: bool = False) -> None:
        self.workers = workers
        self._options = {
            "dataset": dataset,
            "batch_size": None,
            "collate_fn": _as_it_is,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": pin,
            "worker_init_fn": _end_with_lost_answers,
            # a forked process is there at once and shares what `dataset` holds
            "multiprocessing_context": _Forking() if workers and sys.platform == "linux" else None,
        }
        self._requests = _Requests()
        self._loader: DataLoader | None = None
        self._answers: Iterator = iter(())
        self._series = 0
        self._kill: Callable = lambda: None

    def answers(self, requests: Iterable) -> Iterator:
        """The answers in the order of the requests, which are read some way ahead.

        Raises UserError: the processes cannot start, or one died.
        """
        self._series += 1
        mine = self._series
        self._requests.current = requests
        with self._naming_faults():
            self._answers = self._start()
        while True:
            if mine != self._series:
                raise RuntimeError("a later series of requests, or close(), has ended this one")
            with self._naming_faults():
                answer = next(self._answers, _END)
            if answer is _END:
                return
            yield answer

    def close(self) -> None:
        """End the processes; later requests start new ones."""
        self._series += 1
        self._answers, self._loader = iter(()), None

    def _start(self) -> Iterator:
        with _own_signals(), warnings.catch_warnings():
            # more processes than cores are the user's choice; a forked process uses one thread
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            if self._loader is not None:
                return iter(self._loader)
            # without a generator of its own it would draw from torch's global one
            loader = DataLoader(sampler=self._requests, generator=torch.Generator(), **self._options)
            others = set(multiprocessing.active_children())
            try:
                answers = iter(loader)
            finally:  # some may have started where one cannot
                started = set(multiprocessing.active_children()) - others
                # at the exit before multiprocessing's turn, which would wait for what it asks by SIGTERM
                self._kill = weakref.finalize(self, _end, started, os.getpid())
            self._loader = loader
            return answers

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            # what the data set raised in a process, or in this one, is no fault of the processes
            ours = not isinstance(error, RuntimeError) or _FAULTS.match(str(error))
            if not self.workers or not ours or str(error).startswith("Caught "):
                raise
            self._kill()
            _let_go(error)
            self.close()
            fewer = f"--workers {self.workers // 2} instead of {self.workers}, or " * (self.workers > 1)
            died = "a loader process died or could not start: memory, /dev/shm, open files (ulimit -n) or"
            died += " processes (ulimit -u) may have run out"
            raise UserError(f"{died}; try {fewer}--workers 0, which needs none of these") from error


_END = object()
# how torch and Python begin to tell that processes cannot work here
_FAULTS = re.compile("DataLoader worker|Pin memory thread|Too many open files|can't start new|unable to ")


class _Requests:
    """The DataLoader's sampler: the series of requests under way."""

    def __init__(self) -> None:
        self.current: Iterable = ()

    def __iter__(self) -> Iterator:
        return iter(self.current)


class _Flag:
    """An event that forked processes share, without the lock that one of them may be killed with."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._byte[0] = 1

    def is_set(self) -> bool:
        return self._byte[0] == 1


class _Forking(multiprocessing.context.ForkContext if sys.platform == "linux" else object):
    """How the loader processes start, with events that nobody can wait for in vain."""

    def Event(self) -> _Flag:  # noqa: N802 - the name that torch asks for
        return _Flag()


def _let_go(error: Exception) -> None:
    """End the DataLoader's iterator that `error` comes from, half built perhaps, and free what it holds."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if hasattr(iterator, "_shutdown_workers"):
            with suppress(Exception):  # which it would print when it goes
                iterator._shutdown_workers()
    traceback.clear_frames(error.__traceback__)  # the way out needs a file or two


def _end_with_lost_answers(_: int) -> None:
    """From now on this process ends where an answer cannot be sent: the other side would wait for ever.

    What ends it is told by that side, in a line.
    """
    sys.stderr = io.StringIO()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda *_: os._exit(1))


def _as_it_is(answer: object) -> object:
    return answer


@contextmanager
def _own_signals() -> Iterator[None]:
    """What is started within never gets a signal that asks a run to end; this process does.

    Undoes torch's handler of SIGCHLD too, which raises a process's death in whatever code is running: `next`
    on the DataLoader's iterator finds a dead process as well, within five seconds.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    with held_back():
        try:
            yield
        finally:
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)


def _end(started: set[multiprocessing.Process], parent: int) -> None:
    """Kill what `parent` started and has not closed; a copy of it that was forked has no say."""
    if os.getpid() == parent:
        for process in started:
            process.kill()
