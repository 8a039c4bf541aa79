"""A data set made from its name, and the names under which it and its models are kept."""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from datasets import CHANNELS, DATASETS, FILE_DATASETS, OWN_DATASETS, PUBLISHED_DATASETS
from datasets.listed.lists import MAX_LIST_BYTES, refuse_huge
from datasets.listed.own import find_list
from datasets.listed.parts import as_seen
from datasets.long_tail import suited_shots
from datasets.types import FileViews, LongTailedData
from utils.base.errors import UserError
from utils.base.files import open_regular

DEFAULT_RATIO = 100  # of the sets that are cut out of a balanced one
# options of some data sets alone
_TAKERS = {
    "views": FILE_DATASETS,
    "report": FILE_DATASETS,
    "split_dir": PUBLISHED_DATASETS,
    "allow_partial": PUBLISHED_DATASETS,
    "test_fraction": OWN_DATASETS,
    "train_list": ("list",),
    "val_list": ("list",),
    "test_list": ("list",),
}


def build_data(
    name: str,
    data_dir: str | Path = "data",
    imb_ratio: float | None = None,
    shots: tuple[int, int] | None = None,
    **options: object,
) -> LongTailedData:
    """Build the data set `name`; `shots` are the limits of its shot groups (None: the usual ones, or such as
    suit a user's own images).

    `options` are those of `datasets.split.split_long_tailed`, and for data sets of files those of their
    builders: `views` (None: as ImageNet's), `report`, `split_dir` and `allow_partial`, or the three lists and
    `test_fraction`.
    An `imb_ratio` of None leaves the counts of files as they are, and is 100 for the sets in memory.

    Raises UserError: an unknown name, a ratio out of range, an option of another data set, missing or broken
    files.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}, known: {', '.join(DATASETS)}")
    for option, takers in _TAKERS.items():
        if isinstance(options.get(option), str):
            options[option] = Path(options[option])
        if name not in takers and options.pop(option, None) and option not in ("views", "report"):
            raise UserError(f"--{option} goes with --dataset {' or '.join(takers)}, not with {name}")
    if name in FILE_DATASETS:
        options["views"] = options.get("views") or FileViews(*CHANNELS["imagenet"])
    elif imb_ratio is None:
        imb_ratio = DEFAULT_RATIO
    data = DATASETS[name](data_dir=Path(data_dir), imb_ratio=imb_ratio, **options)
    if options.get("val_required"):
        classes = len(data.val.labels.unique())
        if classes < 2:
            found = f"--val_source {data.val_source} gives validation images of {classes} class(es)"
            way_out = "take another --val_source, or none and --select last"
            raise UserError(f"{found}, 2 or more are needed: {way_out}")
    notes = data.notes
    if shots is None:
        shots, note = suited_shots(data.class_counts) if name in OWN_DATASETS else (data.shots, "")
        notes = [*notes, note] if note else notes
    low, high = shots
    if not 0 <= low <= high:
        raise UserError(f"--shots must be two counts, the smaller first, got {low} and {high}")
    return replace(data, name=data_name(name, data_dir), shots=(low, high), notes=notes)


def data_name(dataset: str, data_dir: str | Path) -> str:
    """The name for folders and files; of a user's own images it holds that of their folder."""
    if dataset not in OWN_DATASETS:
        return dataset
    folder = re.sub(r"[^\w.-]", "_", as_seen(os.path.basename(os.path.abspath(data_dir))))
    return f"{dataset}_{folder}"


def place_name(dataset: str, data_dir: str | Path, train_list: str | Path | None = None) -> str:
    """The folder in which models of a data set lie: `data_name`, of a user's own images with a digest.

    The digest is of where the images lie, and of the training list's lines: two folders of one base name, two
    lists and two folds have places of their own. Without the list that `list` needs there is none.
    """
    name = data_name(dataset, data_dir)
    if dataset not in OWN_DATASETS or (dataset == "list" and train_list is None):
        return name
    state = hashlib.sha256(os.fsencode(os.path.realpath(data_dir)))
    if train_list is not None:
        path = find_list(Path(train_list), Path(data_dir))
        with suppress(OSError), open_regular(path) as lines:
            refuse_huge(path, lines, MAX_LIST_BYTES)
            state.update(hashlib.file_digest(lines, "sha256").digest())
    return f"{name}-{state.hexdigest()[:8]}"
