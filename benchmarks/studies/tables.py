"""The tables of docs/ablations.md, made from the csv files alone."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.base.files import write_atomically
from utils.base.pages import marked, put
from utils.metrics.accuracy import GROUPS
from utils.metrics.logits import READINGS
from utils.metrics.percent import SCALE
from utils.plots.tables import read_table
from utils.report.table import markdown_lines

COMMAND = "python -m benchmarks.studies.ablations"
FILES = ("packs", "heads", "gains", "methods")
# the rules of ours by which a statement holds: p below; nearly even LoMa, up to this difference of the groups
# relative to the mean; a rank correlation of at least; points that the preset's δ may lack
SURE, EVEN, RANKED, LACKING = 0.01, 0.25, 0.5, 0.5

Tables = dict[str, pd.DataFrame]


def read(folder: Path) -> Tables:
    """The csv files of a folder, by name; raises UserError where one is missing or is no csv file."""
    needed = {"methods": [SCALE]}
    return {n: read_table(folder / f"{n}.csv", needed.get(n, ()), dtype={"setting": str}) for n in FILES}


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


def _groups(row: pd.Series, prefix: str, digits: int = 1) -> str:
    return " / ".join(_number(row[f"{prefix}{name}"], digits) for name in GROUPS)


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
    """Every method on the pack with the widest features: accuracy beside LoMa and RSD by group."""
    rows, lines = of_widest(tables), []
    for _, row in rows.iterrows():
        line = [row["method"], _number(row["overall"]), _groups(row, "")]
        line += [_number(row["loma"]), _groups(row, "loma_"), _number(row["rsd"]), _groups(row, "rsd_", 2)]
        lines.append(line)
    groups = " / ".join(GROUPS)
    header = ["method", "test", groups, "LoMa", f"LoMa: {groups}", "RSD", f"RSD: {groups}"]
    return f"{rows['pack'].iloc[0]}:\n\n" + _table(header, lines)


def of_widest(tables: Tables) -> pd.DataFrame:
    """The rows of methods.csv of the pack with the widest features."""
    pack = tables["packs"].set_index("pack")["width"].idxmax()
    return tables["methods"][tables["methods"]["pack"] == pack]


def unevenness(rows: pd.DataFrame, reading: str = "per_sample") -> pd.Series:
    """Largest less smallest LoMa of the groups, relative to the mean over classes, of rows of heads.csv."""
    groups = rows[[f"test_loma_{reading}_{name}" for name in GROUPS]]
    return (groups.max(axis=1) - groups.min(axis=1)) / rows[f"test_loma_{reading}_all"]


def statements_table(tables: Tables) -> str:
    """The paper's statements, a column a pack: the figure, bold where our rule calls it fulfilled."""
    packs = list(tables["packs"]["pack"])
    own = {pack: {name: rows[rows["pack"] == pack] for name, rows in tables.items()} for pack in packs}
    judged = {pack: _judge(own[pack]) for pack in packs}
    lines = []
    for name in next(iter(judged.values())):
        found = [judged[pack][name] for pack in packs]
        tested = [holds for holds, _ in found if holds is not None]
        figures = [f"**{figure}**" if holds else figure for holds, figure in found]
        lines.append([name, *figures, f"{sum(tested)} of {len(tested)}"])
    return _table(["statement", *packs, "holds on"], lines)


def _judge(own: Tables) -> dict[str, tuple[bool | None, str]]:
    """Statement -> does it hold on this pack (None: it cannot be tested), and the figure that says so."""
    heads, methods = own["heads"], own["methods"].dropna(subset="overall")
    preset = own["gains"].query("chosen_by == 'preset'").iloc[0]
    gain = preset["test_minus_ce"]
    found = {"gain": (bool(gain > 0 and preset["p_ce"] < SURE), f"{gain:+.2f} (p {preset['p_ce']:.2g})")}
    others = methods[~methods["method"].isin(["stage1", "ce", "los"])]
    ahead = (others["overall"] > methods.set_index("method").loc["los", "overall"]).sum()
    found["best"] = (bool(ahead == 0), f"{ahead} of {len(others)} ahead")
    sweep = heads.query("study == 'delta'").set_index("label_smooth")["val_balanced"]
    lacks = sweep.max() - sweep[preset["label_smooth"]]
    found["label"] = (bool(lacks <= LACKING), f"lacks {lacks:.2f}")
    los = heads[heads["label_smooth"] > 0].drop_duplicates("setting")
    used = heads[(heads["label_smooth"] == preset["label_smooth"]) & (heads["epochs"] == preset["epochs"])]
    for reading in READINGS:
        before, after = (
            unevenness(rows, reading).iloc[0]
            for rows in (heads.query("study == 'stage1'"), used[used["lr"] == preset["lr"]])
        )
        found[f"equal, {reading}"] = (bool(after <= EVEN), f"{before:.2f} → {after:.2f}")
        even = los[unevenness(los, reading) <= EVEN]
        size = even[f"test_loma_{reading}_all"]
        found[f"small, {reading}"] = _ranked(size, even["test_balanced"], sign=-1)
        found[f"calm, {reading}"] = _ranked(size, even[f"test_rsd_{reading}_all"], sign=1)
        column = "rsd" if reading == "per_sample" else f"rsd_{reading}"
        found[f"rsd, {reading}"] = _ranked(methods[column], methods["overall"], sign=-1)
    return found


def _ranked(one: pd.Series, other: pd.Series, sign: int) -> tuple[bool | None, str]:
    """Is the rank correlation of at least five heads clearly of this sign?"""
    if len(one) < 5:
        return None, f"– (n {len(one)})"
    found = one.corr(other, method="spearman")
    return bool(sign * found >= RANKED), f"{found:.2f} (n {len(one)})"


_ALL = (packs_table, delta_table, grid_table, gains_table, methods_table, statements_table)
TABLES = {make.__name__.removesuffix("_table"): make for make in _ALL}
