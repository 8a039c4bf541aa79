"""Processes that read files for this one: a torch DataLoader behind an interface of requests and answers."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from utils.errors import UserError
from utils.signals import held_back


class Processes:
    """`workers` processes that answer requests in their order by `dataset[request]`; 0: this process does.

    They start with the first request and stay until `close`, or until this process ends, in whatever way;
    signals that ask a run to end they leave to this process, whose step may need them. One series of requests
    at a time: a new one ends the one before. `pin` puts tensors into memory that a GPU fetches by itself;
    `prepare` runs first in each process, with its number.
    """

    def __init__(
        self, dataset: Dataset, workers: int, pin: bool = False, prepare: Callable[[int], None] | None = None
    ) -> None:
        self.workers = workers
        self._options = {
            "dataset": dataset,
            "batch_size": None,  # an answer is taken as it is
            "collate_fn": _as_it_is,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": pin,
            "worker_init_fn": prepare,
            # a forked process is there at once and shares what `dataset` holds
            "multiprocessing_context": "fork" if workers and sys.platform == "linux" else None,
        }
        self._requests = _Requests()
        self._loader: DataLoader | None = None
        self._answers: Iterator = iter(())
        self._series = 0

    def answers(self, requests: Iterable) -> Iterator:
        """The answers in the order of the requests, which are read some way ahead.

        Raises:
            UserError: a process died.
        """
        self._series += 1
        mine = self._series
        self._requests.current = requests
        with self._naming_deaths():
            self._answers = self._start()
        while True:
            if mine != self._series:
                raise RuntimeError("a later series of requests, or close(), has ended this one")
            with self._naming_deaths():
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
            if self._loader is None:
                # without a generator of its own it would draw from torch's global one
                self._loader = DataLoader(
                    sampler=self._requests, generator=torch.Generator(), **self._options
                )
                others = set(multiprocessing.active_children())
                answers = iter(self._loader)
                started = set(multiprocessing.active_children()) - others
                # at the exit before multiprocessing's turn, which would wait for what it asks by SIGTERM
                weakref.finalize(self, _end, started, os.getpid())
                return answers
            return iter(self._loader)

    @contextmanager
    def _naming_deaths(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            raise UserError(
                f"a loader process died, as happens where memory or /dev/shm runs out: "
                f"try --workers {self.workers // 2} instead of {self.workers}"
            ) from error


_END = object()


class _Requests:
    """The DataLoader's sampler: the series of requests under way."""

    def __init__(self) -> None:
        self.current: Iterable = ()

    def __iter__(self) -> Iterator:
        return iter(self.current)


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
