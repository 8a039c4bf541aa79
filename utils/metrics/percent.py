"""The figures that people read in percent: fractions in the program and in JSON files, percent in csv files.

A csv file that the program reads again says so in a column: those of older versions held fractions.
"""

import re

import pandas as pd

SCALE, PERCENT = "accuracies", "percent"  # that column, and what it holds
_FIGURES = (
    *("accuracy", "overall", "many", "medium", "few", "balanced", "top5", "calibration_error", "macro_f1"),
    *("precision", "worst_class", "worst_tenth", "harmonic_mean", "geometric_mean", "score", "confidence"),
    *("target", r"(forward|backward)_\d+", r"minus_(ce|los|best)(_low|_high)?"),
)
_COLUMN = re.compile(
    rf"((train|val|test|stage1|second|third)_)?({'|'.join(_FIGURES)})(_(many|medium|few|scaled|std|known))*"
)


def is_percent(column: str) -> bool:
    return bool(_COLUMN.fullmatch(column))


def in_percent(rows: list[dict] | dict) -> pd.DataFrame:
    """Rows, or columns, of fractions as a csv file holds them, with SCALE behind where there are any."""
    frame = pd.DataFrame(rows)
    found = {name: (100 * frame[name].astype(float)).round(12) for name in filter(is_percent, frame)}
    return frame.assign(**found, **{SCALE: PERCENT} if found else {})


def fraction(value: float) -> float:
    """The fraction that became this percentage."""
    return round(value / 100, 14)
