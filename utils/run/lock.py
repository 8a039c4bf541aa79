"""A lock on a run folder, held by the process that writes there, which ends with it."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from utils.base.errors import UserError
from utils.base.files import open_regular


class FolderLock:
    """Held from its making to `close` or `release`, or to the end of the process.

    It lies on log.txt, so that it leaves no file of its own. A lock goes with the file, a run writes by name:
    `keep` tells whether the two still belong together.
    """

    def __init__(self, folder: Path, way_out: str = "or start a run of its own without --resume") -> None:
        self._folder, self._path, self._way_out = folder, folder / "log.txt", way_out
        self._made = not os.path.lexists(self._path)
        self._handle: BinaryIO | None = None
        self._place: int | None = None
        self._take()
        # a loader process must not keep the lock of a run that was killed
        os.register_at_fork(after_in_child=self.release)
        self.keep()

    def _take(self) -> None:
        """Lock log.txt, and hold the folder open, whose number no other one gets meanwhile."""
        try:
            handle, place = open_regular(self._path, "ab"), os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            os.close(place)
            problem = f"another run is writing to {self._folder}: let it end, {self._way_out}"
            raise UserError(problem) from error
        except OSError:
            pass  # a file system without locks
        self.release()
        self._handle, self._place = handle, place

    def keep(self) -> None:
        """Raise a UserError unless the folder of this name is the one that was locked, or to be made again.

        A log.txt that somebody has put in the place of the locked one is locked too.
        """
        if not _is(self._place, self._folder):
            removed = os.fstat(self._place).st_nlink == 0
            if os.path.isdir(self._folder) or not removed:
                problem = f"{self._folder} was moved or replaced while a run was writing there"
                raise UserError(f"{problem}: go on with --resume from where that folder is now")
            with suppress(OSError):
                os.makedirs(self._folder)
                self._take()
        elif not _is(self._handle.fileno(), self._path) and (
            self._path.is_file() or not os.path.lexists(self._path)  # else the writer of the log complains
        ):
            self._take()

    def close(self) -> None:
        """Give the folder back; a log.txt that was made for the lock and is still empty goes."""
        number = None if self._handle.closed else self._handle.fileno()
        if number is not None and self._made and _is(number, self._path) and not os.fstat(number).st_size:
            os.unlink(self._path)
        self.release()

    def fileno(self) -> int:
        """For a process that is to hold it too."""
        return self._handle.fileno()

    def release(self) -> None:
        if self._handle is not None:
            self._handle.close()
        if self._place is not None:
            os.close(self._place)
            self._place = None


def _is(number: int, path: Path) -> bool:
    """Is what is open under `number` what lies at `path`?"""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except OSError:
        return False
