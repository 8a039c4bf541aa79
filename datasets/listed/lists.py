"""Split lists as ImageNet-LT's: a line is a path relative to the image folder, white space, the label."""

import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from datasets.types import FileSet, PathTable
from utils.base.errors import UserError, raise_problem
from utils.base.files import open_regular

Report = Callable[[str], None]  # takes a problem, and may raise it
MAX_LIST_BYTES = 1 << 30
MAX_LABEL = np.iinfo(np.int32).max
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_list(path: Path, root: Path, report: Report = raise_problem) -> FileSet:
    """The images that the list `path` names, below `root`, in the order of its lines; no file is looked at.

    A path may hold spaces; blank lines, CRLF and a byte order mark are let pass. A line that `report` does
    not stop at is left out.
    """
    seen: dict[bytes, int] = {}
    labels = []
    try:
        with open_regular(path) as lines:
            refuse_huge(path, lines, MAX_LIST_BYTES)
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if content.isspace():
                    continue
                try:
                    name, label = _parse(content)
                    first = seen.setdefault(name, number)
                    if first != number:
                        raise ValueError(f"{shown(name)} stands on line {first} already")
                    labels.append(label)
                except ValueError as error:
                    report(f"{path}, line {number}: {error}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not seen:
        report(f"{path} names no image: a line is 'relative/path.jpg label'")
    return FileSet(root, PathTable(list(seen)), torch.tensor(labels, dtype=torch.int64), source=str(path))


def clean_path(path: bytes) -> bytes:
    """`path` without `.`, `..` and double slashes.

    Raises ValueError: it is absolute, leaves the folder, or no file can be called so.
    """
    if not path or b"\0" in path:
        raise ValueError("an empty path" if not path else f"a NUL byte in {shown(path)}")
    # most paths need no work
    cleaned = path
    if b"/." in path or b"//" in path or path.startswith((b".", b"/")) or path.endswith(b"/"):
        cleaned = posixpath.normpath(path)
    if cleaned.startswith((b"/", b"../")) or cleaned in (b".", b".."):
        raise ValueError(f"{shown(path)} leaves the data folder: paths must be relative to it")
    return cleaned


def shown(raw: bytes, limit: int = 100) -> str:
    """A path or line in a message: quoted, on one line, not endless."""
    text = os.fsdecode(raw.strip())
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def refuse_huge(path: Path, handle: BinaryIO, limit: int) -> None:
    """Raise a UserError where the open file has more than `limit` bytes."""
    if os.fstat(handle.fileno()).st_size > limit:
        raise UserError(f"{path} is larger than any list of images (limit {limit >> 20} MiB)")


def _parse(line: bytes) -> tuple[bytes, int]:
    path, *rest = line.rsplit(None, 1)
    if not rest:
        raise ValueError(f"a line is 'relative/path.jpg label', found {shown(line)}")
    digits = rest[0]
    if not digits.isdigit() or len(digits) > 10 or int(digits) > MAX_LABEL:
        raise ValueError(f"the label must be a whole number from 0 to {MAX_LABEL}, found {shown(digits)}")
    return clean_path(path), int(digits)
