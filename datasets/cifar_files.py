"""CIFAR files of the official Python layout: found or fetched, read without running code, checked.

The files are pickles. They are read as plain containers and stubs of arrays: see utils/plain_pickle.py.
"""

import hashlib
import os
import socket
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_and_extract_archive

from datasets.fetch import (
    DOWNLOAD_ERRORS,
    MAX_FILE_BYTES,
    TIMEOUT_SECONDS,
    check_place,
    scratch_folder,
)
from utils.base.errors import UserError, reason
from utils.base.files import open_regular
from utils.base.plain_pickle import Array, UnwantedError, load

ROW_BYTES = 3 * 32 * 32


def read_cifar(name: str, data_dir: Path) -> dict:
    """Read `cifar10` or `cifar100`: images uint8 [N, 3, 32, 32], labels int64 [N] of both parts, names.

    `official` tells whether the training files are byte-identical to the published ones.

    Raises:
        UserError: files missing and not to be fetched, unreadable, hostile, or of another content.
    """
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = find_folder(source, data_dir)
    label_key, names_key = (
        ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    )
    num_classes = 10 if name == "cifar10" else 100
    train = [_read_part(folder / part, label_key, num_classes) for part, _ in source.train_list]
    test = [_read_part(folder / part, label_key, num_classes) for part, _ in source.test_list]
    content = {
        "class_names": _read_names(folder / source.meta["filename"], names_key, num_classes),
        "official": all(_md5(folder / part) == md5 for part, md5 in source.train_list),
    }
    for split, parts, total in (("train", train, 50_000), ("test", test, 10_000)):
        labels = np.concatenate([part[1] for part in parts])
        counts, wanted = np.bincount(labels, minlength=num_classes), total // num_classes
        if (counts != wanted).any():
            wrong = int(np.flatnonzero(counts != wanted)[0])
            raise UserError(
                f"{folder}: class {wrong} has {counts[wrong]} {split} images instead of {wanted}; "
                "delete the folder to download it again"
            )
        images = [part[0] for part in parts]
        content[split] = (images[0] if len(images) == 1 else np.concatenate(images), labels)
    return content


def find_folder(source: type[CIFAR10], data_dir: Path) -> Path:
    """The folder that holds the files: `data_dir`, or the official folder in it; downloaded if neither."""
    needed = [part for part, _ in source.train_list + source.test_list] + [source.meta["filename"]]
    official = data_dir / source.base_folder
    for folder in (official, data_dir):
        present = [part for part in needed if (folder / part).is_file()]
        if len(present) == len(needed):
            return folder
        if present:
            missing = ", ".join(part for part in needed if part not in present)
            raise UserError(
                f"{folder} lacks {missing}: complete it, or delete it to download the whole set again"
            )
    _download(source, data_dir)
    return official


def _download(source: type[CIFAR10], data_dir: Path) -> None:
    """Fetch and unpack beside the target, then move into place: a failure leaves nothing behind."""
    check_place(data_dir)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT_SECONDS)
        with scratch_folder(data_dir) as partial:
            download_and_extract_archive(
                source.url, str(partial), filename=source.filename, md5=source.tgz_md5
            )
            os.replace(partial / source.base_folder, data_dir / source.base_folder)
    except DOWNLOAD_ERRORS as error:
        raise UserError(
            f"no {source.base_folder} in {data_dir}, and the download failed ({reason(error)}): fetch "
            f"{source.url} on a machine with a network, unpack it, and name the folder that holds "
            f"{source.base_folder}/ with --data_dir"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _read_pickle(path: Path) -> dict:
    try:
        with open_regular(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UserError(f"{path} is larger than any CIFAR file (limit {MAX_FILE_BYTES >> 20} MiB)")
            content = load(handle, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        unwanted = ", which no CIFAR file needs" if isinstance(error, UnwantedError) else ""
        raise UserError(
            f"{path} is not an intact CIFAR file ({reason(error)}{unwanted}); "
            "replace it, or delete its folder to download the set again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a CIFAR file: it holds a {type(content).__name__} instead of a dictionary"
        )
    return {_text(key): value for key, value in content.items()}


def _text(value: object) -> object:
    """Text that Python 2 wrote as bytes, which it still is where others have written the file anew."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _read_part(path: Path, label_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = _read_pickle(path)
    rows, labels = content.get("data"), content.get(label_key)
    if rows is None or labels is None:
        raise UserError(f"{path} lacks 'data' or '{label_key}': is it a file of another CIFAR?")
    if not (isinstance(rows, Array) and rows.dtype == "|u1" and rows.shape[1:] == (ROW_BYTES,)):
        found = f"{np.dtype(rows.dtype)} {rows.shape}" if isinstance(rows, Array) else type(rows).__name__
        raise UserError(f"{path}: 'data' must be uint8 rows of {ROW_BYTES} values, found {found}")
    if not (isinstance(labels, list) and len(labels) == rows.shape[0]):
        raise UserError(f"{path}: {rows.shape[0]} images, but '{label_key}' is not a list of as many labels")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise UserError(f"{path}: labels must be whole numbers from 0 to {num_classes - 1}")
    return rows.numbers().reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def _read_names(path: Path, key: str, num_classes: int) -> list[str]:
    names = _read_pickle(path).get(key)
    names = [_text(name) for name in names] if isinstance(names, list) else names
    if not (isinstance(names, list) and len(names) == num_classes and all(isinstance(n, str) for n in names)):
        raise UserError(f"{path}: '{key}' must be a list of {num_classes} names")
    return names


def _md5(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
