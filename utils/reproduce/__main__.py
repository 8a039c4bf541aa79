"""Run a declared grid of both stages, go on where it was cut off, and write the pages of results.

    python -m utils.reproduce --grid thin|paper|FILE [--out output] [--jobs N] [--device cuda] [--list]

Below OUT/reproduce each cell of the grid has a folder of its own. What is done is skipped. A cell that fails
is named, the others go on, and the status is 1. SIGTERM and SIGINT are passed on: the runs save, and the same
command goes on. So they do where this process is killed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from utils.base.errors import UserError, complain, exit_cleanly, say
from utils.base.files import open_regular
from utils.base.signals import Signals, Stopped
from utils.reproduce.cell import Cell
from utils.reproduce.grid import read_grid
from utils.reproduce.pages import write_pages
from utils.reproduce.results import NOT_RUN, rows_of, write_tables
from utils.run.folder import check_writable
from utils.run.lock import FolderLock
from utils.settings.parse import STAGE1, STAGE2, Parser

ROOT = Path(__file__).resolve().parent.parent.parent
# becomes the command behind the number of this process, whose end Linux then tells it by SIGTERM
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.getppid() == int(sys.argv[1]) or sys.exit(143)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Runner(Signals):
    """Runs what is missing of the cells, `jobs` of them at once; a signal is passed on to what runs.

    The runs hold the `lock` too: while one of them has not ended, nobody else may begin.
    """

    def __init__(self, cells: Sequence[Cell], jobs: int, words: Sequence[str], lock: FolderLock) -> None:
        super().__init__()
        self.lock = lock
        self.cells, self.jobs, self.words = cells, jobs, [*words, "--quiet"]
        self.children: set[subprocess.Popen] = set()
        self.failed: list[str] = []

    def _hear(self, number: int) -> None:
        for child in list(self.children):
            with suppress(OSError):
                child.send_signal(number)

    def run(self) -> None:
        """Raises Stopped where a signal has come."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._cell, self.cells))
        if self.asked:
            complain("stopped by a signal: the runs have saved, the same command goes on")
            raise Stopped(self.asked)

    def _cell(self, cell: Cell) -> None:
        """Stage 1 of a cell, then the stage 2 of each selection; what is done is skipped."""
        try:
            stage1 = cell.stage1(look=True)
            if stage1 is None:
                words = [*cell.stage1_words(), "--resume", str(cell.finished_stage1() or "auto")]
                if not self._call(cell, "stage1", STAGE1, words):
                    return
                stage1 = cell.stage1(look=True)
            for select in cell.selections if stage1 else ():
                if not cell.stage2(select, stage1):
                    words = [*cell.stage2_words(select, stage1), "--resume", "auto"]
                    self._call(cell, cell.label(select), STAGE2, words)
        except (UserError, OSError) as error:
            self._fail(cell, str(error))

    def _call(self, cell: Cell, label: str, script: str, words: Sequence[str]) -> bool:
        """One run in a process of its own, which prints to a log in the cell's folder. Is it at its end?"""
        if self.asked:
            return False
        cell.place.mkdir(parents=True, exist_ok=True)
        log, name = cell.place / f"{label}.log", f"{cell.name} {label}"
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        complain(f"{name}: begins")
        started = time.monotonic()
        tied = ["-c", _TIED, str(os.getpid())] if sys.platform == "linux" else []
        command = [sys.executable, *tied, str(ROOT / script), *words, *self.words]
        with open_regular(log, "ab") as out:
            options = {"stdout": out, "stderr": out, "env": environment}
            child = subprocess.Popen(command, pass_fds=(self.lock.fileno(),), **options)
        self.children.add(child)
        if self.asked:  # the signal came in between
            child.terminate()
        status = child.wait()
        self.children.discard(child)
        seconds = time.monotonic() - started
        with open_regular(cell.place / f"{label}.seconds", "ab") as out:
            out.write(f"{seconds:.1f}\n".encode())
        if status and not self.asked:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            self._fail(cell, f"{label} ended with status {status}: {lines[-1]} (see {log})")
        elif not status:
            complain(f"{name}: done in {seconds / 60:.1f} minutes")
        return status == 0

    def _fail(self, cell: Cell, why: str) -> None:
        self.failed.append(f"{cell.name}: {why}")
        complain(f"failed: {self.failed[-1]}")


def report(cells: Sequence[Cell], results: Path) -> str:
    """Write results/*.csv of the cells and the pages of all csv files there; returns a line about it."""
    rows = []
    for cell in cells:
        stage1, stage2 = cell.found()
        for select, run in stage2.items():
            rows += rows_of(cell, select, stage1, run)
    missing = sum(row["status"] == NOT_RUN for row in rows)
    tables = write_tables(rows, results / "results") if missing < len(rows) else []
    paths = sorted((results / "results").glob("*.csv"))
    if not paths:
        raise UserError(f"no run of this grid is here, and no csv file in {results / 'results'}")
    page = write_pages(paths, results)
    if not tables:
        return f"{page} of {len(paths)} csv files; no run of this grid is here, they stay as they are"
    return f"{page} and {len(tables)} table(s): {len(rows)} rows, {missing} of them {NOT_RUN}"


def survey(cells: Sequence[Cell]) -> list[str]:
    """A line a run: is it done, and of a stage 1 where it comes from."""
    lines = []
    for cell in cells:
        stage1, stage2 = cell.found()
        lines.append(f"{cell.name} stage1: {f'done, {stage1.source}' if stage1 else NOT_RUN}")
        for select, run in stage2.items():
            lines.append(f"{cell.name} {cell.label(select)}: {'done' if run else NOT_RUN}")
    return lines


def _parser() -> Parser:
    parser = Parser("python -m utils.reproduce", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--grid", required=True, help="thin, paper, or a TOML file (see utils/reproduce/grid.py)")
    add("--out", type=Path, default=Path("output"), help="the run folders lie in OUT/reproduce")
    add("--results", type=Path, default=Path("."), help="where RESULTS.md and results/ are left")
    add("--data_dir", type=Path, help="folder with the data files, where it is not data")
    add("--jobs", type=int, default=1, help="cells at once; on one GPU they share it")
    add("--device", default="auto", help="for all runs: auto, cpu, cuda or cuda:N")
    add("--list", action="store_true", help="print what is done and what is not, and end")
    add("--report_only", action="store_true", help="write the results of what is there, and end")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    asked = _parser().parse_args(argv)
    if asked.jobs < 1:
        raise UserError(f"--jobs must be 1 or more, got {asked.jobs}")
    cells = read_grid(asked.grid, asked.data_dir, asked.out)
    if asked.list:
        say(*survey(cells))
        return
    check_writable(asked.results / "results")
    failed: list[str] = []
    if not asked.report_only:
        place = asked.out / "reproduce"
        check_writable(place)
        place.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(place, "or take another --out; --list tells what is done")
        with closing(lock), Runner(cells, asked.jobs, ["--device", asked.device], lock) as runner:
            runner.run()
        failed = runner.failed
    for line in failed:
        complain(f"failed: {line}")
    say(report(cells, asked.results))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    exit_cleanly(main)
