"""LOS beside the published figures: what is quoted stands here, ours come from the csv files of results/.

Where nobody who could be read tells a figure, UNKNOWN stands in its place.
"""

from pathlib import Path

import pandas as pd

from utils.metrics.accuracy import GROUPS
from utils.metrics.percent import SCALE
from utils.plots.tables import read_table
from utils.report.table import markdown_lines
from utils.reproduce.results import NOT_RUN

RATIOS = (100, 50, 10)
_HEADER = ("LOS", "network", *(f"ratio {ratio}" for ratio in RATIOS), "n", "stage 1 at 100", "source")
_QUOTED = (
    ("the paper, second-hand (GUIDE, ICLR 2026)", "not stated", "54.9", "58.8", "69.7", "UNKNOWN", "UNKNOWN",
     "row LOS (2025) of its Table 1, read in two summaries"),
    ("run again by PLTR-SD (NeurIPS 2025)", "UNKNOWN", "53.92 (70.1/55.4/33.3)", "UNKNOWN", "UNKNOWN",
     "UNKNOWN", "47.60", "row LORT of its Table 4, with the configuration of LOS"),
)  # fmt: skip
_STEMS = {"ResNet-34": "resnet34_epochs-200", "ResNet-32": "resnet32_epochs-60"}
_OWN = ("los", "los_weighted", "la", "bsce", "logreg", "samn")
_OPTIONS = {"power": "a", "logreg_c": "C"}
_OURS = {
    "ours, last epoch": "last",
    "ours, best epoch on test": "test",
    "ours, by validation": "val",
}


def published_table(results: Path, brief: bool = False) -> str:
    """A line for each figure; n are the seeds of stage 2 at the ratios, on one stage 1, ± their deviation.

    `brief`: without deviations, stage 1 and the files.
    """
    lines = [_HEADER, *_QUOTED]
    for network, stem in _STEMS.items():
        for figure, chosen in _OURS.items():
            found = [_los(results, ratio, stem, chosen) for ratio in RATIOS]
            cells = [NOT_RUN if row is None else _cell(row, brief) for row in found]
            n = "/".join("-" if row is None else str(int(row["n"])) for row in found)
            last = _los(results, RATIOS[0], stem, "last")
            stage1 = NOT_RUN if last is None else f"{last['stage1_overall']:.2f}"
            where = (
                f"results/points/{stem.partition('_')[0]}.csv"
                if chosen == "test"
                else _name("*", stem, chosen)
            )
            lines.append((figure, network, *cells, n, stage1, where))
    return markdown_lines([line[:6] if brief else line for line in lines]) + "\n"


def own_table(results: Path) -> str:
    """Methods of ours, or new, beside others, all chosen on validation, with an option that tells much."""
    lines = [["network, ratio", *(f"`{name}`" for name in _OWN)]]
    for network, stem in reversed(_STEMS.items()):
        for path, ratio in ((results.parent / _name(ratio, stem, "val"), ratio) for ratio in RATIOS):
            rows = _rows(path)
            if {*_OWN} <= {*rows.index}:
                cells = [_overall(row) + _option(row) for _, row in rows.loc[[*_OWN]].iterrows()]
                lines.append([f"{network}, {ratio}", *cells])
    return markdown_lines(lines) + "\n"


def _option(row: pd.Series) -> str:
    words = [word.split("=") for word in str(row["setting"]).split()]
    return "".join(f" ({_OPTIONS[name]} = {value})" for name, value in words if name in _OPTIONS)


def _rows(path: Path) -> pd.DataFrame:
    """The rows with figures by method, the first of each."""
    found = read_table(path, [SCALE]) if path.exists() else pd.DataFrame({"method": [], "n": []})
    return found.query("n > 0").drop_duplicates("method").set_index("method")


def _name(ratio: object, stem: str, chosen: str) -> str:
    return f"results/cifar100_lt_IR={ratio}_{stem}_pack_{chosen}.csv"


def _los(results: Path, ratio: int, stem: str, chosen: str) -> pd.Series | None:
    """The row of LOS on the plain features of the first stage 1; None where it was not run."""
    if chosen != "test":
        rows = _rows(results.parent / _name(ratio, stem, chosen))
        return rows.loc["los"] if "los" in rows.index else None
    path = results / "points" / f"{stem.partition('_')[0]}.csv"
    if ratio != RATIOS[0] or not path.exists():
        return None
    made = read_table(path).query("method == 'los' and views == 'plain' and chosen == 'test'")
    figures = made[["overall", *GROUPS]]
    return pd.concat([figures.mean(), pd.Series({"overall_std": figures["overall"].std(), "n": len(made)})])


def _overall(row: pd.Series, brief: bool = False) -> str:
    spread = "" if brief or pd.isna(row["overall_std"]) else f" ± {row['overall_std']:.2f}"
    return f"{row['overall']:.2f}{spread}"


def _cell(row: pd.Series, brief: bool) -> str:
    groups = "/".join("-" if pd.isna(row[name]) else f"{row[name]:.1f}" for name in GROUPS)
    return f"{_overall(row, brief)} ({groups})"
