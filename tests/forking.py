"""Commands of this repository without their start: forks of a process that has read the code, seconds each.

Tests of how a command starts, or of what a signal does to it, take real processes (tests/kills.py).
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Mapping
from contextlib import chdir
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers import HANG

ROOT = Path(__file__).resolve().parent.parent
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.warmed"])


def _run(words: list[str], variables: Mapping[str, str], out: str, err: str) -> None:
    """In the new process: a script, or behind -m a module, as `python` runs it."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    assert "tests.warmed" in sys.modules, "the process that forks has not read the code"
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


class Forked:
    """A command in the place of a subprocess.Popen: [..., a script or -m and a module, words].

    It holds no descriptors of its starter and is not told of its end: a Popen's other `options` are let pass.
    """

    def __init__(self, line: list, stdout: object, stderr: object, env: Mapping, **options: object) -> None:
        words = [str(word) for word in line]
        first = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        task = (words[first:], dict(env), stdout.name, stderr.name)
        self.process = _FORKING.Process(target=_run, args=task)
        with chdir(ROOT):  # where the process that forks finds the code
            self.process.start()
        # another thread's start would ask for its end, which can be read once
        multiprocessing.process._children.discard(self.process)
        self.pid = self.process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        self.process.join(HANG)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def forked(words: list, processes: int = 1) -> tuple[int, str, str]:
    """Run a command to its end, in several processes as torchrun would: status, standard output and error."""
    ranks, shared = [{}] * processes, {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]
    started: list[Forked] = []
    with (
        TemporaryDirectory() as folder,
        open(f"{folder}/out", "w+") as out,
        open(f"{folder}/err", "w+") as err,
    ):
        try:
            for rank in ranks:
                started.append(Forked(words, out, err, os.environ | shared | rank))
            going = [one.process for one in started]
            while going:  # one that fails ends the others
                ended = wait([process.sentinel for process in going], HANG)
                failed = any(process.exitcode for process in going if process.sentinel in ended)
                going = [process for process in going if process.sentinel not in ended]
                if failed or not ended:
                    break
        finally:
            for one in started:
                if one.process.exitcode is None:
                    one.terminate()
        return max((one.wait() for one in started), key=abs), out.read(), err.read()
