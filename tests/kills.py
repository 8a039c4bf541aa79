"""Runs that are killed, or told to stop, at random moments and resumed each time.

`python -m tests.kills JSON` is the process that starts and kills them: they are forked from one that has read
the code, which saves seconds each.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch

from tests.forking import forked
from tests.helpers import HANG, wait_until
from tests.warm import warm
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SAVES, LONGEST_STEP = 3, 1.0
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def start(words: list) -> subprocess.Popen:
    """A command of one thread in a session of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = [str(word) for word in words]
    return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)


def end(process: subprocess.Popen) -> None:
    """Kill it and what it started: nothing is left behind."""
    kill_all(process)
    process.communicate()


def kill_all(process: subprocess.Popen) -> None:
    for pid in descendants(process.pid):  # torchrun's processes have sessions of their own
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that it and its descendants started."""
    children = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has just ended
            children += map(int, listed.read_text().split())
    return [found for child in children for found in (*descendants(child), child)]


def alive(pid: int) -> bool:
    """Does it run, or wait? One that has ended may still be listed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_an_epoch(process: subprocess.Popen) -> None:
    """Until it has told of one; what stands still is ended, so that its output ends too."""
    watch = threading.Timer(HANG, kill_all, [process])
    watch.start()
    try:
        assert any(line.startswith("epoch") for line in process.stdout), "no epoch came to its end"
    finally:
        watch.cancel()


def finished(words: list, seconds: float = HANG) -> tuple[int, str, str]:
    """Run a command to its end: exit status, standard output, standard error; then nothing of it lives on."""
    process = start(words)
    try:
        out, error = process.communicate(timeout=seconds)
        return process.returncode, out, error
    finally:
        end(process)


# ---- SIGKILL


def killed_runs(root: Path, words: list, kills: int, script: str = "main_stage1", spoil: str = "") -> Path:
    """A run of `script` that saves often, killed at random moments and resumed each time; its folder.

    A kill comes somewhere after the first to third save that follows a start. `spoil` takes a protection
    away: see `SPOIL`.

    Raises:
        AssertionError: a start failed, or the run was over too soon.
    """
    task = {"out": str(root / "out"), "words": [str(word) for word in words], "kills": kills}
    task |= {"script": script, "spoil": spoil}
    code, _, error = finished([sys.executable, "-m", "tests.kills", json.dumps(task)], HANG * (1 + kills))
    assert code == 0, error
    [last] = (root / "out").glob("*/*/last.pth")
    return last.parent


def _in_place(path: Path, write: Callable, check: Callable | None = None) -> None:
    """What a writer does that takes no care: the old file is gone before the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as handle:

        class Slow:  # as a disk may be
            name = handle.name

            def write(self, data: bytes) -> int:
                time.sleep(2e-4)
                return handle.write(data)

            def flush(self) -> None:
                handle.flush()

        write(Slow())


def _files_in_place() -> None:
    checkpoint.write_atomically = _in_place


def _no_optimizer() -> None:
    torch.optim.SGD.load_state_dict = lambda self, state: None


SPOIL = {"": lambda: None, "files in place": _files_in_place, "no optimiser state": _no_optimizer}


def _saved(out: Path) -> tuple[Path | None, int]:
    """The last.pth of the only run below a folder, and when it was written."""
    last = next(out.glob("*/*/last.pth"), None)
    return last, last.stat().st_mtime_ns if last else 0


def _wait(out: Path, draws: random.Random, over: Callable[[], bool]) -> None:
    """Wait for one to three saves of the run below `out`, then for a part of the time to the next.

    Raises:
        AssertionError: the run is over, or does not save.
    """
    for _ in range(draws.randint(1, SAVES)):
        started, before = time.monotonic(), _saved(out)
        wait_until(lambda before=before: _saved(out) != before, over)
    time.sleep(draws.random() * min(time.monotonic() - started, LONGEST_STEP))


def _drive(task: dict) -> None:
    main, draws, out = importlib.import_module(task["script"]).main, random.Random(1), Path(task["out"])
    warm()
    SPOIL[task["spoil"]]()
    for attempt in range(task["kills"] + 1):
        last, _ = _saved(out)
        child = os.fork()
        if not child:
            main(["--resume", str(last.parent)] if last else task["words"])
            os._exit(0)
        wanted = 0
        if attempt < task["kills"]:
            wanted = -signal.SIGKILL
            with suppress(AssertionError):
                _wait(out, draws, over=lambda c=child: bool(os.waitid(os.P_PID, c, ENDED)))
            os.kill(child, signal.SIGKILL)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert found == wanted, f"start {attempt + 1}: status {found} in place of {wanted}"


# ---- SIGTERM


def stopped_runs(words: list, stops: int, script: str = "main_stage1.py") -> list[str]:
    """A run as a user calls it, sent SIGTERM at a random moment after an epoch, then resumed as it says.

    Returns:
        the last line of every call that was stopped.

    Raises:
        AssertionError: a stop had another status, or said something on standard error.
    """
    draws, said = random.Random(6), []
    for _ in range(stops):
        process = start([sys.executable, script, *words])
        try:
            wait_for_an_epoch(process)
            time.sleep(0.03 * draws.random())
            process.send_signal(signal.SIGTERM)
            out, error = process.communicate(timeout=HANG)
        finally:
            end(process)
        assert (process.returncode, error) == (143, ""), f"status {process.returncode}: {out}{error}"
        said.append(out.splitlines()[-1])
        words = said[-1].partition(f"{script} ")[2].split()
    code, _, error = forked([script, *words])
    assert code == 0, error
    return said


# ---- several processes


def killed_under_torchrun(root: Path, words: list, kills: int) -> None:
    """A run of two processes that are both killed at a random moment, resumed each time."""
    draws, line = random.Random(3), ["main_stage1.py", *words]
    for _ in range(kills):
        process = start([*TORCHRUN, *line])
        try:
            _wait(root / "out", draws, over=lambda p=process: p.poll() is not None)
            workers = descendants(process.pid)
            assert len(workers) >= 2
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            _, error = process.communicate(timeout=HANG)
        finally:
            end(process)
        assert process.returncode != 0 and "SIGKILL" in error, error
        line = ["main_stage1.py", "--resume", _saved(root / "out")[0].parent]
    code, _, error = finished([*TORCHRUN, *line])
    assert code == 0, error


# ---- what a run ends with


def ending(root: Path) -> dict[str, object]:
    """What must not depend on how a run came to its end: weights left for the next stage, rows, tables."""
    [published] = root.glob("ckpt/**/*.pth")
    [folder] = root.glob("out/*/*/summary.json")
    found = checkpoint.read(published)
    result = {"weights": checkpoint.content_digest([found.state, found.facts.get("head_state", {})])}
    for name in ("metrics.csv", "per_class.csv"):
        result[name] = (folder.parent / name).read_text()
    if (table := folder.parent / "table.csv").is_file():
        result["table.csv"] = pd.read_csv(table).drop(columns="seconds").to_csv()
    return result


def differences(one: Path, other: Path) -> list[str]:
    """The names of what differs in the endings of the runs below two folders."""
    ours, theirs = ending(one), ending(other)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if ours[name] != theirs[name]]


if __name__ == "__main__":
    _drive(json.loads(sys.argv[1]))
