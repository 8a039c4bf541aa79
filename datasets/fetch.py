"""Fetching files: beside the target first, then moved into place, so that a failure leaves nothing behind."""

import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.base.errors import UserError

TIMEOUT_SECONDS = 60
MAX_FILE_BYTES = 1 << 30
DOWNLOAD_ERRORS = (OSError, RuntimeError, http.client.HTTPException)
_CHUNK = 1 << 20
_not_into: list[Path] = []


@contextmanager
def nothing_fetched_into(folders: list[Path]) -> Iterator[None]:
    """Within: nothing is downloaded into these, which a file has named and not the user."""
    _not_into.extend(folders)
    try:
        yield
    finally:
        _not_into.clear()


def check_place(folder: Path) -> None:
    """Raise a UserError where the user has not named the folder that is to be downloaded to."""
    if folder in _not_into:
        raise UserError(
            f"{folder} lacks files of the data set. A file names that folder and not you, so nothing is "
            "downloaded there: give --data_dir (or --split_dir)"
        )


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder in `target`, gone at the end; folders made for it go too if they stay empty.

    Raises:
        OSError: it cannot be made.
    """
    scratch = None
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=target))
        yield scratch
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def fetch_file(url: str, target: Path) -> None:
    """Write what `url` answers to `target`.

    Raises:
        OSError, http.client.HTTPException: no answer within the time, an error, half a file, a huge one.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, open(target, "wb") as out:
            size = 0
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise OSError(f"{url} answers with more than {MAX_FILE_BYTES >> 20} MiB")
                out.write(chunk)
            if answer.length:  # what the server announced and did not send
                raise OSError(f"{url} ends {answer.length} bytes early")
    except urllib.error.HTTPError as error:
        error.close()
        raise
