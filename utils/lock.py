"""A lock on a run folder, held by the process that writes there, which ends with it."""

import fcntl
import os
from pathlib import Path

from utils.errors import UserError
from utils.files import open_regular


class FolderLock:
    """Held from its making to `release`, or to the end of the process.

    It lies on log.txt, which a run only ever appends to, so that it leaves no file of its own.

    Raises:
        UserError: another run holds it, or log.txt cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "log.txt"
        try:
            self._handle = open_regular(path, "ab")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._handle.close()
            raise UserError(
                f"another run is writing to {folder}: let it end, or start a run of its own without --resume"
            ) from error
        except OSError:
            pass  # a file system without locks
        # a loader process must not keep the lock of a run that was killed
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        self._handle.close()
