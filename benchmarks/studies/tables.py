"""The tables of docs/ablations.md, made from the csv files alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.studies.pages import marked, put
from utils.base.files import write_atomically
from utils.metrics.accuracy import GROUPS
from utils.plots.tables import read_table
from utils.report.table import markdown_lines

COMMAND = "python -m benchmarks.studies.ablations"
FILES = ("packs", "heads", "gains", "methods")

Tables = dict[str, pd.DataFrame]


def read(folder: Path) -> Tables:
    """The csv files of a folder, by name; raises UserError where one is missing or is no csv file."""
    return {name: read_table(folder / f"{name}.csv", dtype={"setting": str}) for name in FILES}


def write(tables: Tables, page: Path) -> Path:
    """Put every table between its markers; a page that is not there is made of the tables alone.

    Raises:
        UserError: the page lacks a marker, or cannot be written.
    """
    made = {name: make(tables) for name, make in TABLES.items()}
    if not page.exists():
        text = "\n".join(marked(name, COMMAND, table) for name, table in made.items())
        write_atomically(page, lambda handle: handle.write(text.encode()))
    for name, table in made.items():
        put(page, name, COMMAND, table)
    return page


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown_lines([header, *lines]) + "\n"


def _number(value: float, digits: int = 2) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def _groups(row: pd.Series, prefix: str, digits: int = 1, scale: float = 1) -> str:
    return " / ".join(_number(scale * row[f"{prefix}{name}"], digits) for name in GROUPS)


def packs_table(tables: Tables) -> str:
    """The packs, and their stage-1 classifiers."""
    stage1 = tables["heads"][tables["heads"]["study"] == "stage1"].set_index("pack")
    lines = []
    for row in tables["packs"].itertuples():
        first = stage1.loc[row.pack]
        images = f"{row.train:,} / {row.val:,} / {row.test:,}"
        accuracy = [_number(first[f"{part}_balanced"]) for part in ("val", "test")]
        lines.append([row.pack, str(row.width), images, *accuracy, _groups(first, "test_"), row.sha256[:12]])
    header = ["pack", "width", "images: train / val / test", "stage 1, val", "stage 1, test"]
    return _table([*header, "many / medium / few, test", "sha256"], lines)


def delta_table(tables: Tables) -> str:
    """Accuracy of each δ: validation and test, a column a pack; the best on validation is marked."""
    sweep = tables["heads"][tables["heads"]["study"] == "delta"]
    packs = list(tables["packs"]["pack"])
    best = sweep.groupby("pack")["val_balanced"].max()
    lines = []
    for delta, same in sweep.groupby("label_smooth"):
        gaps = [f"{gap:.3g}".replace("inf", "∞") for gap in dict.fromkeys(same["logit_gap"])]
        lines.append([f"{delta:g}", ", ".join(gaps)])
        rows = same.set_index("pack").reindex(packs)
        for pack, val, test in zip(packs, rows["val_balanced"], rows["test_balanced"], strict=True):
            lines[-1].append(f"{_number(val)}{'*' if val == best[pack] else ''} / {_number(test)}")
    return _table(["δ", "g", *(f"{pack}: val / test" for pack in packs)], lines)


def grid_table(tables: Tables) -> str:
    """The published pair and the best pair on validation, a row a pack."""
    grid = tables["heads"][tables["heads"]["study"] == "grid"]
    lines = []
    for pack, rows in grid.groupby("pack", sort=False):
        best = rows.loc[rows["val_balanced"].idxmax()]
        published = rows[(rows["lr"] == 5e-4) & (rows["epochs"] == 20)].iloc[0]
        for name, row in (("published", published), ("best on validation", best)):
            scores = [_number(row[f"{part}_balanced"]) for part in ("val", "test")]
            setting = [f"{row['lr']:g}", f"{row['epochs']:g}"]
            lines.append([pack, name, *setting, *scores, _groups(row, "test_")])
    return _table(["pack", "pair", "lr", "epochs", "val", "test", "many / medium / few, test"], lines)


def gains_table(tables: Tables) -> str:
    """LOS against the control and stage 1: by the preset, and chosen on validation."""
    rows = tables["gains"].sort_values(["network", "imb_ratio", "chosen_by"], ascending=[True, False, True])
    lines = []
    for row in rows.itertuples():
        setting = f"δ {row.label_smooth:g}, lr {row.lr:g}, {row.epochs} epochs"
        gains = [
            f"{value:+.2f} (p {p:.2g})"
            for value, p in ((row.test_minus_ce, row.p_ce), (row.test_minus_stage1, row.p_stage1))
        ]
        found = [_number(value) for value in (row.val_los, row.test_los)]
        lines.append([row.pack, row.chosen_by, setting, *found, *gains])
    header = ["pack", "chosen by", "setting", "val", "test"]
    return _table([*header, "test, over ce", "test, over stage 1"], lines)


def methods_table(tables: Tables) -> str:
    """Every method on one pack: accuracy beside LoMa and RSD by group."""
    lines = []
    for _, row in tables["methods"].iterrows():
        line = [row["method"], _number(100 * row["overall"]), _groups(row, "", scale=100)]
        line += [_number(row["loma"]), _groups(row, "loma_"), _number(row["rsd"]), _groups(row, "rsd_", 2)]
        lines.append(line)
    groups = " / ".join(GROUPS)
    header = ["method", "test", groups, "LoMa", f"LoMa: {groups}", "RSD", f"RSD: {groups}"]
    return f"{', '.join(tables['methods']['pack'].unique())}:\n\n" + _table(header, lines)


TABLES: dict[str, Callable[[Tables], str]] = {
    "packs": packs_table,
    "delta": delta_table,
    "grid": grid_table,
    "gains": gains_table,
    "methods": methods_table,
}
