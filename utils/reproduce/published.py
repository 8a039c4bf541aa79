"""LOS beside the published figures: what is quoted stands here, ours come from the csv files of results/.

Where nobody who could be read tells a figure, UNKNOWN stands in its place.
"""

from itertools import product
from pathlib import Path

from utils.metrics.accuracy import GROUPS, percent
from utils.plots.tables import read_table
from utils.report.table import markdown_lines, share
from utils.reproduce.results import NOT_RUN, read_results

RATIOS = (100, 50, 10)
STEMS = {"ResNet-34": "resnet34_epochs-200", "ResNet-32": "resnet32_epochs-60"}
_HEADER = ("LOS", "network", *(f"ratio {ratio}" for ratio in RATIOS), "n", "stage 1 at 100", "source")
_QUOTED = (
    ("the paper, second-hand (GUIDE, ICLR 2026)", "not stated", "54.9", "58.8", "69.7", "UNKNOWN", "UNKNOWN",
     "row LOS (2025) of its Table 1, read in two summaries"),
    ("run again by PLTR-SD (NeurIPS 2025)", "UNKNOWN", "53.92 (70.1/55.4/33.3)", "UNKNOWN", "UNKNOWN",
     "UNKNOWN", "47.60", "row LORT of its Table 4, with the configuration of LOS"),
)  # fmt: skip
_OWN = ("los", "los_weighted", "la", "bsce", "logreg", "samn")
_OPTIONS = {"power": "a", "logreg_c": "C"}
_OURS = {"ours, last epoch": "last", "ours, best epoch on test": "test", "ours, by validation": "val"}


def published_table(results: Path, brief: bool = False) -> str:
    """A line for each figure; n are the seeds of stage 2 at the ratios, on one stage 1, ± their deviation.

    `brief`: without deviations, stage 1 and the files.
    """
    lines = [_HEADER, *_QUOTED]
    for (network, stem), (figure, chosen) in product(STEMS.items(), _OURS.items()):
        found = [_los(results, ratio, stem, chosen) for ratio in RATIOS]
        cells = [NOT_RUN if row is None else _cell(row, brief) for row in found]
        n = "/".join("-" if row is None else str(row["n"]) for row in found)
        last = _los(results, RATIOS[0], stem, "last")
        stage1 = NOT_RUN if last is None else percent(last["stage1_overall"])
        lines.append((figure, network, *cells, n, stage1, f"results/{file_of('*', stem, chosen)}"))
    return markdown_lines([line[:6] if brief else line for line in lines]) + "\n"


def own_table(results: Path) -> str:
    """Methods of ours, or new, beside others, all chosen on validation, with an option that tells much."""
    lines = [["network, ratio", *(f"`{name}`" for name in _OWN)]]
    for (network, stem), ratio in product(reversed(STEMS.items()), RATIOS):
        rows = done_rows(results / file_of(ratio, stem, "val"))
        if {*_OWN} <= rows.keys():
            cells = (share(rows[name], "overall") + _option(rows[name]) for name in _OWN)
            lines.append([f"{network}, {ratio}", *cells])
    return markdown_lines(lines) + "\n"


def _option(row: dict) -> str:
    words = [word.split("=") for word in row["setting"].split()]
    return "".join(f" ({_OPTIONS[name]} = {value})" for name, value in words if name in _OPTIONS)


def file_of(ratio: object, stem: str, chosen: str) -> str:
    """The csv file of a pack below results/; of `test` that of the study of points."""
    points = f"points/{stem.partition('_')[0]}.csv"
    return points if chosen == "test" else f"cifar100_lt_IR={ratio}_{stem}_pack_{chosen}.csv"


def done_rows(path: Path) -> dict[str, dict]:
    """The rows with figures of a file of one stage 1, by method; none where there is no file."""
    return {row["method"]: row for row in read_results(path) if row["n"]} if path.exists() else {}


def _los(results: Path, ratio: int, stem: str, chosen: str) -> dict | None:
    """The row of LOS on the plain features of the first stage 1; None where it was not run."""
    path = results / file_of(ratio, stem, chosen)
    if chosen != "test":
        return done_rows(path).get("los")
    if ratio != RATIOS[0] or not path.exists():
        return None
    made = read_table(path).query("method == 'los' and views == 'plain' and chosen == 'test'")
    figures = made[["overall", *GROUPS]] / 100
    return figures.mean().to_dict() | {"overall_std": figures["overall"].std(), "n": len(made)}


def _cell(row: dict, brief: bool) -> str:
    groups = "/".join("-" if row[name] is None else f"{100 * row[name]:.1f}" for name in GROUPS)
    return f"{percent(row['overall']) if brief else share(row, 'overall')} ({groups})"
