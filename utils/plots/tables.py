"""The csv files of a run folder, ready to be drawn: accuracies in percent, a label for every head."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.base.errors import UserError, printable, reason
from utils.base.files import open_regular, read_json
from utils.metrics.accuracy import GROUPS, PARTS
from utils.metrics.percent import SCALE

MAX_LINES = 6
LARGEST = 1e12  # of a figure that can be drawn
CONTROLS = ["stage1", "ce", "los"]
SCORES = ["overall", *GROUPS]
STDS = [f"{name}_std" for name in SCORES]
TEXT = ["method", "setting", "selected_on"]
TABLE = ["n", "balanced", "loma_spread", *SCORES, *STDS]
PER_CLASS = ["class", "train_images", "accuracy", "loma_per_sample", "rsd_per_sample"]
SCORED = [f"{part}_{name}" for part in PARTS for name in SCORES]
_TYPES = dict.fromkeys(TEXT, str) | dict.fromkeys([*TABLE, *PER_CLASS, "step", *SCORED], float)
_HEAD = ["method", "setting", "seed"]
_PAIRS = ["class", "name", "group", "predicted", "predicted_name", "predicted_group", "images"]
_NAMES = [*TEXT, "name", "predicted_name"]
_USED = {*_TYPES, *_PAIRS, "seed", "epoch", "test_images", "judged"}


@dataclass(frozen=True)
class RunTables:
    """The tables of one run; a head is a method with one setting."""

    heads: pd.DataFrame  # table.csv without the failed heads, with a column `label`
    lines: pd.DataFrame  # the heads with a line in the pictures over classes
    classes: pd.DataFrame
    epochs: pd.DataFrame  # empty without metrics.csv
    tried: pd.DataFrame  # where something selects: all heads, with their scores there; else empty
    pairs: pd.DataFrame  # confusion.csv, empty without it
    judged: str  # the part of the figures, test or val


def read_table(path: Path, columns: Sequence[str] = (), **options: object) -> pd.DataFrame:
    """A csv file; `options` are those of pandas' reader."""
    try:
        with open_regular(path) as handle:
            frame = pd.read_csv(handle, low_memory=False, **options)
        if not isinstance(frame.index, pd.RangeIndex):  # pandas takes what is too much for row labels
            raise ValueError("its first line has more cells than the header")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if missing := [column for column in columns if column not in frame]:
        older = ": an older version wrote it, not in percent; --resume of its run writes it anew"
        raise UserError(f"{path} has no column {missing[0]}{older * (missing[0] == SCALE)}")
    return frame


def read_run(folder: Path, methods: Sequence[str] | None = None) -> RunTables:
    """The tables of a run folder; `methods` are those with a line over the classes, None: see CONTROLS."""
    if (folder / "summary.json").exists() and not (folder / "table.csv").exists():
        return _single(folder)
    heads = _read(folder / "table.csv", [*TEXT, *TABLE, SCALE]).dropna(subset="overall")
    classes = _read(folder / "per_class.csv", ["method", "setting", *PER_CLASS, SCALE])
    if "test_images" in classes and (classes.groupby("class")["test_images"].nunique() > 1).any():
        raise UserError(
            f"{folder / 'per_class.csv'} has heads with other test images: no picture can hold both"
        )
    epochs = _if_there(folder / "metrics.csv", ["method", "setting", "step", SCALE])
    pairs = _if_there(folder / "confusion.csv", ["method", "setting", *_PAIRS])
    # in the run's order: table.csv is sorted by accuracy on test, which must not choose a setting
    heads = classes[["method", "setting"]].drop_duplicates().merge(heads)
    if heads.empty:
        raise UserError(f"{folder / 'table.csv'} has no head with figures, there is nothing to draw")
    heads["label"] = _labels(heads)
    tried = _scored(folder / "search.csv", epochs, heads["selected_on"].iloc[0])
    judged = "val" if "judged" in heads else "test"
    return RunTables(heads, _choose(heads, methods, folder), classes, epochs, tried, pairs, judged)


def _single(folder: Path) -> RunTables:
    """The tables of stage 1 or evaluate: one head, by the name of its stage's folder."""
    try:
        found = read_json(folder / "summary.json")
        judged = "test" if "test" in found else "val"
        heads = pd.DataFrame({name: [found[judged][name]] for name in SCORES}, dtype=float).mul(100)
        own = {"method": folder.resolve().parent.name, "setting": ""}
        heads = heads.assign(**own, label=own["method"], selected_on=str(found["selected_on"]), n=1)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/summary.json cannot be read: {reason(error)}") from error
    heads["loma_spread"] = np.nan  # one dot needs no picture
    classes = _read(folder / "per_class.csv", [*PER_CLASS, SCALE]).assign(**own)
    pairs = _if_there(folder / "confusion.csv", _PAIRS).assign(**own)
    return RunTables(heads, heads, classes, pd.DataFrame(), pd.DataFrame(), pairs, judged)


def _if_there(path: Path, columns: list[str]) -> pd.DataFrame:
    return _read(path, columns) if path.exists() else pd.DataFrame()


def _labels(heads: pd.DataFrame) -> pd.Series:
    own = heads.groupby("method")["setting"].transform(_differences)
    return (heads["method"] + " " + own).str.strip()


def _scored(path: Path, epochs: pd.DataFrame, part: str) -> pd.DataFrame:
    """All heads that were up for selection, means over seeds of their scores in the epoch that did best."""
    search, columns = _if_there(path, [*_HEAD, "epoch"]), {f"{part}_{name}": name for name in SCORES}
    if search.empty or not {*columns, *_HEAD, "epoch"} <= {*epochs}:
        return pd.DataFrame()
    if search["epoch"].isna().all():
        raise UserError(f"{path} has nothing in its column epoch")
    best = search[[*_HEAD, "epoch"]].merge(epochs).rename(columns=columns)
    tried = best.groupby(["method", "setting"], sort=False)[SCORES].mean().reset_index()
    return tried.assign(label=_labels(tried))


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A csv file of a run; figures are finite or not a number."""
    frame = read_table(path, columns, dtype=_TYPES)
    frame = frame[[name for name in frame if name in _USED]].fillna(dict.fromkeys(TEXT, ""))
    figures = frame.select_dtypes("number")
    frame[list(figures)] = figures.where(figures.abs() < LARGEST)
    words = {name: frame[name].astype(str).map(_as_drawn) for name in frame if name in _NAMES}
    return frame.assign(**words)


def _as_drawn(text: str) -> str:
    """A text that a picture shows as it is: between two $ it would be a formula."""
    return printable(text).replace("$", r"\$")


def _differences(settings: pd.Series) -> list[str]:
    """Settings of one method, reduced to the pairs that they do not share."""
    words = [setting.split() for setting in settings]
    shared = set.intersection(*map(set, words))
    return [" ".join(word for word in setting if word not in shared) for setting in words]


def _choose(heads: pd.DataFrame, methods: Sequence[str] | None, folder: Path) -> pd.DataFrame:
    first = heads.drop_duplicates("method").set_index("method")
    if methods is None:
        others = first.drop(CONTROLS, errors="ignore").sort_values("balanced", ascending=False, kind="stable")
        methods = [*(name for name in CONTROLS if name in first.index), *others.index][: len(CONTROLS) + 2]
    for name in methods:
        if name not in first.index:
            close = difflib.get_close_matches(name, first.index, n=1, cutoff=0.4)
            hint = f", did you mean {close[0]}?" if close else "."
            raise UserError(f"no figures of {name!r} in {folder}{hint} There are: {', '.join(first.index)}")
    if not 0 < len(set(methods)) <= MAX_LINES:
        raise UserError(f"1 to {MAX_LINES} methods fit into a picture, got {len(set(methods))}")
    chosen = pd.concat([heads[heads["method"] == name] for name in dict.fromkeys(methods)])
    return chosen if len(chosen) <= MAX_LINES else chosen.drop_duplicates("method")
