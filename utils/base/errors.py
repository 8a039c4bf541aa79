"""The one error class for users' mistakes, and the one place where it is caught."""

import errno
import gc
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from utils.base.signals import Interrupted, Interrupting, lost_pages_told

SECONDS_TO_BE_ENDED = 3
# how torch, its libraries and the system tell of it; CUDA's own class is a RuntimeError too
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|not enough|unable to) (allocate )?memory|alloc_failed|bad_alloc"
    r"|could not create a (primitive|memory)",  # oneDNN
    re.IGNORECASE,
)
# what a terminal obeys, what turns the direction of writing, what breaks a line, halves of pairs
_NOT_SHOWN = ("Cc", "Cf", "Zl", "Zp", "Cs")
_JOINERS = "\u200c\u200d"  # spelling in Persian, in scripts of India, in emoji: they stay
# places that cannot be used, of which the system's own words say why
_OF_A_PLACE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EIO, errno.ESTALE)
_ASKED_FOR = re.compile(r"allocate (\d[\d.]* \w+)")
_SMALLER = {
    "main_stage1.py": "--accum 2, which takes a step in two parts, a smaller --batch_size or fewer --workers",
    "main_stage2.py": "fewer --views, a smaller --batch_size or fewer --workers",
    "evaluate.py": "with more memory free, or fewer --workers",
}


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that says what is wrong and what to do."""


class SettingError(UserError, ValueError):
    """A value with which a loss, a head or a path cannot be."""


class NoMemoryError(UserError):
    """A file could not be read because memory has run out, which says nothing about the file."""


def raise_problem(problem: str) -> NoReturn:
    """What a reader does with a problem unless told to collect them: stop at the first."""
    raise UserError(problem)


def reason(error: Exception) -> str:
    """Why, in a line: the system's words, else the error's own, else its kind."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Has memory run out, be it Python's, torch's or a device's?"""
    return isinstance(error, (MemoryError, NoMemoryError)) or bool(_NO_MEMORY.search(str(error)))


def printable(text: str) -> str:
    """`text` as one line that is what it looks like; all that is printed or logged goes through here."""
    if text.isprintable():
        return text

    def shown(c: str) -> bool:
        return c in _JOINERS or unicodedata.category(c) not in _NOT_SHOWN

    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def show(*lines: object, end: str = "\n") -> None:
    """Lines on standard output. Raises OSError or ValueError: it takes none."""
    print(*(printable(str(line)) for line in lines), sep="\n", end=end, flush=True)


def say(*lines: object, end: str = "\n") -> None:
    """Lines on standard output, where somebody reads it: one who has stopped reading ends no work."""
    with suppress(OSError, ValueError):
        show(*lines, end=end)


def complain(line: str) -> None:
    """A line on standard error, where there is one that takes it."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def about(argument: str) -> Iterator[None]:
    """A complaint within says which argument it is about."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{argument}: {error}") from error


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run `main`; a mistake that the user can mend becomes one line on standard error and exit status 2.

    A signal that asks to end where `main` does not take it: status 143, of SIGINT 130. Under torchrun a
    mistake that the first process makes too ends the others within a moment: what is still there after that
    has something of its own to say.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    rank = os.environ.get("RANK", "0")
    rank = int(rank) if rank.isdecimal() else 0
    with Interrupting():
        try:
            with lost_pages_told():
                main()
        except Interrupted as asked:
            if not rank:
                complain(f"stopped by {asked}: every file that is there is whole")
            sys.exit(asked.status)
        except (UserError, MemoryError, RuntimeError, OSError) as error:
            message = _told(error)
            if message is None:
                raise
            if rank:
                time.sleep(SECONDS_TO_BE_ENDED)
            complain(f"error{f' (process {rank})' if rank else ''}: {message}")
            sys.exit(2)
        finally:
            _let_go_of_output()
            gc.freeze()  # else the end of Python looks for circles in all of torch, which takes a second


def _told(error: Exception) -> str | None:
    """What the user can do something about, in a line; None: it is something else."""
    if isinstance(error, UserError) and not isinstance(error, NoMemoryError):
        return str(error)
    if isinstance(error, OSError) and (isinstance(error, PermissionError) or error.errno in _OF_A_PLACE):
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or reason(error)
    if is_out_of_memory(error):
        return _out_of_memory(error)
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if not found:
        return None
    way_out = "take another network, or leave --deterministic out"
    return f"--deterministic: {operation.split()[-1]} has no deterministic form in torch: {way_out}"


def _out_of_memory(error: Exception) -> str:
    asked = _ASKED_FOR.search(str(error))
    found = f", {asked[1]} more were asked for" if asked else ""
    found = f", {error}" if isinstance(error, NoMemoryError) else found
    smaller = _SMALLER.get(Path(sys.argv[0]).name, "with more memory free")
    device = ", or --device cpu" if "CUDA" in str(error) else ""
    return f"out of memory{found}: try {smaller}{device}; what was saved before, last.pth too, is as it was"


def _let_go_of_output() -> None:
    """Standard output that nobody reads, or on a full disk, must not change the exit status."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
