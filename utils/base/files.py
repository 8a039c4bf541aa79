"""The one writer of files: whole and on the disk, or the old file stays; and what a reader looks at first."""

import errno
import io
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from utils.base.errors import UserError, reason

STALE_SECONDS = 3600
MAX_JSON = 1 << 22  # bytes of a file of ours; a list of empty lists takes 20 times its bytes in memory
# a smaller file is not worth a thread, whose start may hang where memory has run out
MEANWHILE_BYTES = 2**24
MOST_TEXT = 2**26  # bytes of a note or log that are looked at
_SUFFIX = ".los-part"
_TEMPORARY = re.compile(rf"\..*\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}", re.DOTALL)
_NO_FILE = "it is a pipe or a device, not a file"
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # file systems that have no fsync of a folder


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], check: Callable[[Path], object] | None = None
) -> None:
    """Call `write(handle)` on a temporary file in the same folder, then put it in place of `path`.

    `write` may as well write to the name `handle.name`, and then nothing to the handle. `check(temporary)`
    reads the new file back and raises where it is not what was meant. A symbolic link stays: what it points
    to is replaced. A file that is replaced keeps its mode. File and folder are on the disk when this returns.
    Whatever is raised, a UserError where the file cannot be written, leaves an older file untouched.
    """
    partial = None
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, mode = _temporary(target)
        _write(partial, write)
        _settle(Path(partial), check)
        os.chmod(partial, mode)  # `write` may have put a file of its own there
        os.replace(partial, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None and os.path.lexists(partial):
            os.unlink(partial)


def json_text(content: object, **options: object) -> str:
    """Plain data as JSON, which has no word for a number that is not finite: it becomes null."""

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {name: finite(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), ensure_ascii=False, allow_nan=False, **options)


def read_json(path: Path) -> object:
    """What a JSON file of ours holds; raises OSError, ValueError or RecursionError where it is none."""
    with open_regular(path) as handle:
        content = handle.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"it is larger than {MAX_JSON >> 20} MiB")
    return json.loads(content)


def sweep(folder: Path, older_than: float = STALE_SECONDS) -> list[Path]:
    """Remove temporaries that a killed writer left, and nobody has written to for so many seconds."""
    removed, found = [], []
    with suppress(OSError):
        found = [entry for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
    for entry in found:
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > older_than:
                os.unlink(entry.path)
                removed.append(Path(entry.path))
    return removed


def require_file(path: Path) -> os.stat_result:
    """The status of a regular file that may be read; a pipe or device is not opened, so it cannot hang."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: Permission denied")
    return status


def open_regular(path: Path | str, mode: str = "rb") -> BinaryIO:
    """Open a regular file; raises OSError for a pipe or a device, without waiting for it."""
    handle = open(  # noqa: SIM115
        path, mode, opener=lambda name, flags: os.open(name, flags | _NO_WAITING, 0o666)
    )
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise OSError(errno.EINVAL, _NO_FILE)
    return handle


def read_text(path: Path) -> str:
    """The text of a note or log that a run has left; what is not UTF-8 in it becomes a mark."""
    with open_regular(path) as handle:
        return handle.read(MOST_TEXT).decode("utf-8", "replace")


def check_output(option: str, path: Path, mark: bytes, within: int) -> None:
    """Raise a UserError where `path` is there and no earlier output of the same kind: it may be an input.

    Such a one has `mark` in its first `within` bytes; in an empty file there is nothing to be lost.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"--{option} {path} is a folder or a device: name a file")
    try:
        with open_regular(path) as handle:
            content = handle.read(within)
    except OSError as error:
        raise UserError(f"--{option} {path} cannot be looked at: {error.strerror}") from error
    if content and mark not in content:
        problem = "is there and holds something else, an input perhaps: name another file"
        raise UserError(f"--{option} {path} {problem}")


def _temporary(target: Path) -> tuple[str, int]:
    """A new file beside `target`, by a name that `sweep` knows, and the mode that `target` is to have."""
    mode = stat.S_IMODE(os.stat(target).st_mode) if target.exists() else None
    partial = f"{target.parent}/.{target.name[:40]}.{secrets.token_hex(4)}{_SUFFIX}"
    begun = 0o666 if mode is None else mode | 0o600  # to be written before it is read-only
    number = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, begun)
    mode = stat.S_IMODE(os.fstat(number).st_mode) if mode is None else mode
    os.close(number)
    return partial, mode


def _target(path: Path) -> Path:
    """Where the file goes, behind symbolic links. Raises OSError: a loop of links, or no regular file."""
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode  # raises OSError for a loop; `resolve` raises what depends on Python
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _NO_FILE)
    return path.resolve()


class _Watched(io.FileIO):
    """A file that remembers the first OSError: torch reports a full disk in words of its own."""

    error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _write(partial: str, write: Callable[[BinaryIO], object]) -> None:
    watched = _Watched(partial, "wb")
    try:
        with io.BufferedWriter(watched) as handle:
            write(handle)
    except Exception as error:
        raise (watched.error or error) from error
    if watched.error:
        raise watched.error


def _settle(partial: Path, check: Callable[[Path], object] | None) -> None:
    """Bring the file to the disk, and read it back, a large one meanwhile."""
    check = check or (lambda path: None)
    with open(partial, "rb+") as handle:  # anew: `write` may have put another
        if os.fstat(handle.fileno()).st_size < MEANWHILE_BYTES:
            os.fsync(handle.fileno())
            check(partial)
            return
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(os.fsync, handle.fileno())
            check(partial)
            synced.result()


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)
