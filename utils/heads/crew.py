"""An epoch of many heads in several forked processes: each trains a share, this one takes their states back.

A forked process sees the features where they lie, and heads do not know of one another: the bits are those of
one process.
"""

import io
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch

from utils.base.errors import UserError
from utils.base.signals import held_back

if TYPE_CHECKING:
    from utils.heads.stack import HeadRun

# steps of all heads together in an epoch from which on a fork and a state's way back are little beside them
WORTH_STEPS = 1000
SECONDS_TO_HEAR = 0.05
_RAISED = 1  # the exit code of a process of multiprocessing whose work raised; it has printed why


class _Halt(BaseException):
    """A signal has come: the step is done, and this process gives back what it has."""


class Crew:
    """`size` processes, new for every epoch; where `asked()` turns true all of them end after their step."""

    def __init__(self, size: int, asked: Callable[[], object] = lambda: False) -> None:
        self.size, self._asked = size, asked

    def suits(self, heads: Sequence["HeadRun"]) -> bool:
        """Is there work enough for it? Forks and the threads of an accelerator do not mix."""
        trained = [head.steps for head in heads if head.steps]
        can = self.size > 1 and sys.platform == "linux" and not torch.accelerator.is_available()
        return can and len(trained) > 1 and sum(trained) >= WORTH_STEPS

    def run_epoch(self, heads: Sequence["HeadRun"], epoch: int, scored: Sequence[str]) -> None:
        """As `head.run_epoch(epoch, scored)` for each; where a signal comes, as far as they are then.

        Raises:
            UserError: a process died.
            RuntimeError: the code of a head or loss has a mistake; its traceback is on standard error.
        """
        with closing(mmap.mmap(-1, 1)) as halt, _started(self._shares(heads), epoch, scored, halt) as waiting:
            while waiting:
                for answer in connection.wait(list(waiting), SECONDS_TO_HEAR):
                    share, process = waiting.pop(answer)
                    try:
                        states = torch.load(io.BytesIO(answer.recv_bytes()), weights_only=True)
                    except EOFError as error:
                        process.join()
                        if process.exitcode == _RAISED:
                            raise RuntimeError("code of a head or loss: see the traceback above") from error
                        raise UserError(
                            "a process that trains heads died, as happens where memory runs out: "
                            "OMP_NUM_THREADS=1 trains them one after another"
                        ) from error
                    for head, state in zip(share, states, strict=True):
                        head.restore(state)
                halt[0] = halt[0] or bool(self._asked())

    def _shares(self, heads: Sequence["HeadRun"]) -> list[list["HeadRun"]]:
        """Shares of about the same time, by what each head has taken so far: the longest first."""
        shares = [[] for _ in range(min(self.size, len(heads)))]
        for head in sorted(heads, key=lambda head: -head.seconds):
            min(shares, key=lambda share: (sum(one.seconds for one in share), len(share))).append(head)
        return shares


@contextmanager
def _started(
    shares: list[list["HeadRun"]], epoch: int, scored: Sequence[str], halt: mmap.mmap
) -> Iterator[dict[connection.Connection, tuple[list["HeadRun"], BaseProcess]]]:
    """The end of a pipe for each share's states -> the share, its process; no process is left behind."""
    context, waiting, processes = get_context("fork"), {}, []
    try:
        with held_back(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            for share in shares:
                answer, own = context.Pipe(duplex=False)
                words = (share, epoch, scored, halt, os.getpid(), own)
                processes.append(context.Process(target=_work, args=words, daemon=True))
                processes[-1].start()
                own.close()  # so that a death is the end of the pipe
                waiting[answer] = share, processes[-1]
        yield waiting
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(
    share: list["HeadRun"],
    epoch: int,
    scored: Sequence[str],
    halt: mmap.mmap,
    parent: int,
    answer: connection.Connection,
) -> None:
    def after_step() -> None:
        if halt[0]:
            raise _Halt
        if os.getppid() != parent:  # killed: nobody waits for this
            os._exit(1)

    try:
        for head in share:
            head.run_epoch(epoch, scored, after_step)
    except _Halt:
        pass
    states = io.BytesIO()
    torch.save([head.state() for head in share], states)
    answer.send_bytes(states.getbuffer())
