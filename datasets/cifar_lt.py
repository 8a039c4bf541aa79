"""CIFAR100-LT and CIFAR10-LT: the first n_k training images of each class, the whole balanced test set.

The files of the official Python layout are found or fetched, and checked. They are pickles, read without
running code as plain containers and stubs of arrays: see utils/base/plain_pickle.py.
"""

import os
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import calculate_md5

from datasets import CHANNELS
from datasets.fetch import MAX_FILE_BYTES, fetch
from datasets.long_tail import long_tail_counts
from datasets.split import cut_long_tail
from datasets.types import LongTailedData, ViewSpec
from utils.base.errors import UserError, reason
from utils.base.files import open_regular
from utils.base.plain_pickle import Array, UnwantedError, load

SOURCES = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}
ROW_BYTES = 3 * 32 * 32
# CIFAR-10's channel figures, used by the published runs on CIFAR-100 as well
VIEWS = ViewSpec(*CHANNELS["cifar"], padding=4, mirror=True)
_OTHER_FILES = (
    "the CIFAR files are not byte-identical to the published ones: the subset may hold other images of the "
    "same classes, and accuracies differ by up to about 1.5 points between draws"
)


def build_cifar_lt(name: str, data_dir: Path, imb_ratio: float, **split_options: object) -> LongTailedData:
    """`cifar10_lt` or `cifar100_lt`; `split_options` are those of `split_long_tailed`."""
    source = name.removesuffix("_lt")
    _, num_classes = SOURCES[source]
    counts = long_tail_counts(num_classes, 50_000 // num_classes, imb_ratio)
    content = read_cifar(source, data_dir)
    parts, names = (content["train"], content["test"]), content["class_names"]
    data = cut_long_tail(name, *parts, counts, names, VIEWS, **split_options)
    lightest = {part: images.images.flatten(1).amax(dim=1).min() for part, images in data.parts.items()}
    black = [part for part, pixel in lightest.items() if pixel == 0]
    if black and (black != ["val"] or split_options.get("val_required")):
        used = "the validation images" if black == ["val"] else f"those that --imb_ratio {imb_ratio:g} uses"
        raise UserError(f"{data_dir} holds all-black images among {used}: use the full data set")
    if black:
        note = "no validation: the images that the long-tailed set leaves out are black in this copy"
        data = replace(data, val=None, val_source="none", notes=[*data.notes, note])
    return data if content["official"] else replace(data, notes=[*data.notes, _OTHER_FILES])


def read_cifar(name: str, data_dir: Path) -> dict:
    """Read `cifar10` or `cifar100`: images uint8 [N, 3, 32, 32], labels int64 [N] of both parts, names.

    `official` tells whether the training files are byte-identical to the published ones.
    """
    source, num_classes = SOURCES[name]
    folder = find_folder(source, data_dir)
    names_key = source.meta["key"]
    label_key = names_key.replace("label_names", "labels")
    path = folder / source.meta["filename"]
    names = _read_pickle(path).get(names_key)
    names = [_text(name) for name in names] if isinstance(names, list) else []
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: '{names_key}' must be a list of {num_classes} names")
    content = {"class_names": names}
    for split, files in (("train", source.train_list), ("test", source.test_list)):
        parts = [_read_part(folder / file, label_key, num_classes) for file, _ in files]
        content[split] = tuple(map(np.concatenate, zip(*parts, strict=True)))
    for split, total in (("train", 50_000), ("test", 10_000)):
        counts, wanted = np.bincount(content[split][1], minlength=num_classes), total // num_classes
        for label in np.flatnonzero(counts != wanted):
            found = f"class {label} has {counts[label]} {split} images instead of {wanted}"
            raise UserError(f"{folder}: {found}; delete the folder to download it again")
    content["official"] = all(calculate_md5(folder / file) == md5 for file, md5 in source.train_list)
    return content


def find_folder(source: type[CIFAR10], data_dir: Path) -> Path:
    """The folder that holds the files: `data_dir`, or the official folder in it; downloaded if neither."""
    needed = [part for part, _ in source.train_list + source.test_list] + [source.meta["filename"]]
    official = data_dir / source.base_folder
    for folder in (official, data_dir):
        missing = [part for part in needed if not (folder / part).is_file()]
        if not missing:
            return folder
        if len(missing) < len(needed):
            other = "delete it to download all" if folder == official else "name another --data_dir"
            raise UserError(f"{folder} lacks {', '.join(missing)}: complete it, or {other}")
    address, name = source.url.rsplit("/", 1)

    def unpacked(scratch: Path) -> list[Path]:
        if calculate_md5(scratch / name) != source.tgz_md5:
            raise OSError("it answers with something else than the archive, whose checksum is known")
        with tarfile.open(scratch / name) as files:
            # not in the first releases of Python 3.11
            files.extraction_filter = getattr(tarfile, "data_filter", None)
            files.extractall(scratch)
        return [scratch / source.base_folder]

    missing = f"no {source.base_folder} in {data_dir}"
    remedy = f"fetch {source.url} elsewhere, unpack it, and name the folder that holds it with --data_dir"
    fetch(address, [name], data_dir, unpacked, missing, remedy)
    return official


def _read_pickle(path: Path) -> dict:
    try:
        with open_regular(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UserError(f"{path} is larger than any CIFAR file (limit {MAX_FILE_BYTES >> 20} MiB)")
            content = load(handle, size)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        why = reason(error) + ", which no CIFAR file needs" * isinstance(error, UnwantedError)
        remedy = "replace it, or delete its folder to download the set again"
        raise UserError(f"{path} is not an intact CIFAR file ({why}); {remedy}") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UserError(f"{path} is not a CIFAR file: it holds a {found} instead of a dictionary")
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


build_cifar100_lt = partial(build_cifar_lt, "cifar100_lt")
build_cifar10_lt = partial(build_cifar_lt, "cifar10_lt")
