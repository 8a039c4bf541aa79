"""What a run leaves behind in its folder, what it prints, and its progress bar."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Self

import pandas as pd
from progress.bar import Bar

from utils.base.distributed import ALONE, World
from utils.base.errors import UserError, complain, printable, reason, show
from utils.base.files import json_text, open_regular, sweep, write_atomically
from utils.metrics.percent import in_percent
from utils.run.lock import FolderLock
from utils.settings.config import Config

BAR_SECONDS = 0.2
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes a text for that begins so


class Run:
    """A run folder `out/<dataset>_IR=<r>_<stage>/<time>/`. Creating it is the first thing that a run writes.

    Of several processes only the first one writes and prints. `lock`: that on `folder`, where it is held.
    """

    def __init__(
        self,
        config: Config,
        stage: str,
        folder: Path | None = None,
        also_writable: Iterable[Path] = (),
        world: World = ALONE,
        lock: FolderLock | None = None,
    ) -> None:
        self.main, self.quiet = world.main, config.quiet or not world.main
        parent = stage_folder(config, stage)
        self._lock, self._lost = lock, set()
        for place in (parent, *also_writable) if self.main else ():
            check_writable(place)
        self.folder = world.agree(folder or _new_folder(parent) if self.main else None)
        for place in (self.folder, *also_writable) if self.main else ():
            sweep(place)  # what a killed run left half-written

    def __enter__(self) -> Self:
        """Have the folder to itself; raises UserError where another run has it."""
        self._lock = self._lock or (FolderLock(self.folder) if self.main else None)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._lock:
            self._lock.close()

    def place(self, name: str) -> Path:
        """Where a file of this run is written, in a folder that is still its own; else raises UserError."""
        if self._lock:
            self._lock.keep()
        return self.folder / name

    def log(self, *lines: str, always: bool = False) -> None:
        """Lines to log.txt and, unless quiet, to standard output; a line break within one is escaped."""
        if not self.main:
            return
        self._keep(lines)
        if always or not self.quiet:
            with self._going_on("standard output"):
                show(*lines)

    def warn(self, text: str) -> None:
        """A warning: to log.txt, and to standard error even when quiet."""
        if self.main:
            complain(f"warning: {text}")
            self._keep([f"warning: {text}"])

    def result(self, line: str) -> None:
        """The closing line: printed even when quiet."""
        self.log(line, always=True)

    def _keep(self, lines: Iterable[str]) -> None:
        path = self.place("log.txt")
        with self._going_on(path), open_regular(path, "ab") as handle:
            handle.write("".join(f"{printable(line)}\n" for line in lines).encode())

    @contextmanager
    def _going_on(self, log: object) -> Iterator[None]:
        """A log that cannot be written does not end a run that may well save; it is said once of each."""
        try:
            yield
        except (OSError, ValueError, UserError) as error:
            if log not in self._lost:
                self._lost.add(log)
                what = "" if isinstance(error, UserError) else f"{log} cannot be written: "
                complain(f"warning: {what}{reason(error)}; the run goes on")

    def write_text(self, name: str, text: str) -> None:
        """A file of the run folder, replaced whole."""
        if self.main:
            content = text.encode("utf-8", "backslashreplace")  # names of other bytes; JSON reads them back
            write_atomically(self.place(name), lambda handle: handle.write(content))

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json_text(content, indent=2) + "\n")

    def write_rows(self, name: str, rows: list[dict] | dict) -> None:
        """A csv file of rows, or of columns, with a header; replaced whole: a resume leaves no row twice.

        Fractions become percent, see `in_percent`.
        metrics.csv is a log: its rows are in last.pth too, and the next epoch writes them again.
        """
        text = csv_text(in_percent(rows))
        with self._going_on(self.place(name)) if name == "metrics.csv" else nullcontext():
            self.write_text(name, text)

    def bar(self, steps: Iterable, total: int, title: str) -> Iterator:
        """Pass `steps` through, drawing a bar with its ETA on standard error where that is a terminal."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield from steps
            return
        suffix = "%(index)d/%(max)d eta %(eta_td)s"
        bar = Bar(title, max=total, suffix=suffix, file=sys.stderr, hide_cursor=False)
        drawn, pending = 0.0, 0
        for step in steps:
            yield step
            pending += 1
            if time.monotonic() - drawn > BAR_SECONDS:
                with self._going_on("the progress bar"):
                    bar.next(pending)
                drawn, pending = time.monotonic(), 0
        with self._going_on("the progress bar"):
            bar.writeln("")
            print("\r", end="", file=sys.stderr, flush=True)


def csv_text(rows: list[dict] | dict | pd.DataFrame, **options: object) -> str:
    """Rows, or columns, as a csv file; a text that a spreadsheet takes for a formula gets a ' before it."""
    frame = pd.DataFrame(rows)
    for name, column in frame.items():
        formulas = [isinstance(cell, str) and cell.startswith(_FORMULA) for cell in column]
        if any(formulas):
            frame.loc[formulas, name] = "'" + column[formulas]
    return frame.to_csv(index=False, **options)


def stage_folder(config: Config, stage: str) -> Path:
    """Where the run folders of a stage lie."""
    ratio = "" if config.imb_ratio is None else f"_IR={config.imb_ratio:g}"
    return Path(config.out) / f"{config.data_name}{ratio}_{stage}"


def check_writable(folder: Path) -> None:
    """Raise UserError where `folder` is not, or could not become, a folder that we may write to."""
    existing = next((place for place in (folder, *folder.parents) if os.path.exists(place)), folder)
    if not (os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write to {folder}: {existing} is not a folder that you may write to")


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
