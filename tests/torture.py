"""`make torture`: the reliability tests in their long form, one markdown table at the end.

    python -m tests.torture [--quick] [--out FILE]

Every row calls the functions of the tests with larger counts, in a process of its own with a time limit; what
it starts ends with it. The exit status is 1 where a row failed.
"""

import argparse
import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from progress.bar import Bar

from tests.kills import descendants
from tests.torture_rows import ROWS, NotTried, Row

LIMIT = 1500  # seconds that a row may take
SUBREAPER = 36  # of prctl


@dataclass(frozen=True)
class Outcome:
    row: Row
    tried: str
    found: str
    failed: bool
    seconds: float

    @property
    def line(self) -> str:
        found = self.found.replace("|", "/")
        return f"| {self.row.what} | {self.tried} | {'**FAILED** ' if self.failed else ''}{found} |"


def try_row(row: Row, quick: bool, limit: float = LIMIT) -> Outcome:
    """Run a row in a process of its own; nothing of it lives on."""
    started, count = time.monotonic(), row.quick if quick else row.long
    context, before = multiprocessing.get_context("fork"), set(descendants(os.getpid()))
    _adopt_orphans(True)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(row, Path(folder), count, theirs))
        process.start()
        theirs.close()
        try:
            failed, found = ours.recv() if ours.poll(limit) else (True, f"not done after {limit:g} s")
        except EOFError:
            failed, found = True, "its process ended"
        finally:
            process.kill()
            process.join()
            _end_descendants(before)
            _adopt_orphans(False)
    return Outcome(row, row.tried.format(count), found, failed, time.monotonic() - started)


def _work(row: Row, folder: Path, count: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    with open(folder / "said", "w") as said:  # what the runs print
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        answer.send((False, row.work(folder, count)))
    except NotTried as reason:
        answer.send((False, f"not tried: {reason}"))
    except BaseException as error:
        last = traceback.format_exception_only(error)[-1].strip().splitlines()
        answer.send((True, " ".join([last[0], *last[-2:]] if len(last) > 3 else last)[:400]))


def _adopt_orphans(do: bool) -> None:
    """On Linux: a process whose parent has ended becomes a child of this one."""
    ctypes.CDLL(None).prctl(SUBREAPER, int(do))


def _end_descendants(but: set[int]) -> None:
    """Kill and await all that descends from this process, `but` those."""
    while found := [pid for pid in descendants(os.getpid()) if pid not in but]:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


class _Bar(Bar):
    suffix = "%(index)d/%(max)d %(left)s to go"
    left = "?"


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def try_rows(rows: Sequence[Row], quick: bool) -> list[Outcome]:
    """Every row in turn, with a bar on standard error where that is a terminal, else a line each."""
    outcomes, started, drawn = [], time.monotonic(), sys.stderr.isatty()
    bar = _Bar("torture", max=len(rows), hide_cursor=False) if drawn else None
    for row in rows:
        if bar:
            bar.message = f"{row.what[:50]:50}"
            bar.update()
        outcomes.append(try_row(row, quick))
        done = sum(one.row.seconds for one in outcomes)
        ahead = sum(other.seconds for other in rows[len(outcomes) :])
        left = _in_words((time.monotonic() - started) / done * ahead)
        if bar:
            bar.left = left
            bar.next()
        else:
            end = "FAILED" if outcomes[-1].failed else "done"
            took = _in_words(outcomes[-1].seconds)
            print(
                f"{len(outcomes)}/{len(rows)} {row.what}: {end} in {took}, {left} to go",
                file=sys.stderr,
                flush=True,
            )
    if bar:
        bar.finish()
    return outcomes


def table(outcomes: list[Outcome], quick: bool) -> str:
    """The markdown table, with where and how long it ran above it."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        processor = cpu[0].partition(":")[2].strip()
    minutes = sum(one.seconds for one in outcomes) / 60
    failed = sum(one.failed for one in outcomes)
    where = (
        f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    form = "quick form" if quick else "long form"
    head = f"{len(outcomes)} rows ({form}), {failed} failed, {minutes:.1f} minutes; {where}\n\n"
    return head + "\n".join(["| what | tried | found |", "|---|---|---|", *(one.line for one in outcomes)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small counts: a few minutes")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--only", help="rows whose name holds this text")
    args = parser.parse_args(argv)
    rows = [row for row in ROWS if args.only is None or args.only in row.what]
    if not rows:
        parser.error(f"no row has {args.only!r} in its name")
    outcomes = try_rows(rows, args.quick)
    text = table(outcomes, args.quick)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return int(any(one.failed for one in outcomes))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # not without ending what is under way
    sys.exit(main())
