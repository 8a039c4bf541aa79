"""Fetching files: beside the target first, then moved into place, so that a failure leaves nothing behind."""

import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.base.errors import UserError, complain, reason

TIMEOUT_SECONDS = 60
MAX_FILE_BYTES = 1 << 30
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


def fetch(
    address: str,
    names: Sequence[str],
    folder: Path,
    settle: Callable[[Path], Iterable[Path]],
    missing: str,
    remedy: str,
) -> None:
    """Fetch the files `names` below `address` and put what they hold into `folder`, all of it or nothing.

    `settle(scratch)` checks what has come into a scratch folder, and gives the paths to be moved from there;
    an OSError of it is a failure as well. Raises UserError: what is `missing`, why, and the `remedy`.
    """
    if folder in _not_into:
        why = "A file names that folder and not you, so nothing is downloaded there"
        raise UserError(f"{folder} lacks files of the data set. {why}: give --data_dir (or --split_dir)")
    complain(f"fetching {', '.join(names)} from {address} into {folder}")
    try:
        with scratch_folder(folder) as scratch:
            for name in names:
                _download(f"{address}/{name}", scratch / name)
            for path in settle(scratch):
                target = folder / path.name
                if not (target.is_dir() and any(target.iterdir())):  # else another run was faster
                    os.replace(path, target)
    except (OSError, http.client.HTTPException) as error:
        failed = f"fetching from {address} failed ({reason(error)})"
        raise UserError(f"{missing}, and {failed}: {remedy}") from error


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder in `target`, gone at the end; folders made for it go too if they stay empty.

    Raises OSError: it cannot be made.
    """
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".download-", dir=target, ignore_cleanup_errors=True
        ) as scratch:
            yield Path(scratch)
    finally:
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, open(target, "wb") as out:
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
                if out.tell() > MAX_FILE_BYTES:
                    raise OSError(f"{url} answers with more than {MAX_FILE_BYTES >> 20} MiB")
            if answer.length:  # what the server announced and did not send
                raise OSError(f"{url} ends {answer.length} bytes early")
    except urllib.error.HTTPError as error:
        error.close()
        raise
