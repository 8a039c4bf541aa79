"""Rows of figures, ours beside an opponent's, and the table in its three forms: terminal, csv, Markdown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# a unit -> how seconds, of an image where it says so, become a figure
UNITS = {
    "images/s": lambda seconds: 1 / seconds,
    "µs an image": lambda seconds: 1e6 * seconds,
    "ms an epoch": lambda seconds: 1e3 * seconds,
    "s": lambda seconds: seconds,
    "minutes": lambda seconds: seconds / 60,
}
COLUMNS = ("what", "against", "unit", "ours", "opponent", "min", "median", "max", "n", "target", "reached")
NONE = "-"


@dataclass(frozen=True)
class Row:
    """A line: medians of both, the ratio of every pair, and what its median should be at least."""

    what: str
    against: str
    unit: str
    ours: float
    opponent: float
    ratios: list[float]
    target: float | None = None

    def cells(self) -> dict[str, str]:
        """Column -> text: the same in every form of the table."""
        low, middle, high = min(self.ratios), median(self.ratios), max(self.ratios)
        cells = (self.what, self.against, self.unit, *map(figure, (self.ours, self.opponent)))
        cells += (*map(figure, (low, middle, high)), str(len(self.ratios)))
        if self.target is None:
            return dict(zip(COLUMNS, (*cells, NONE, NONE), strict=True))
        reached = "yes" if middle >= self.target else "no"
        return dict(zip(COLUMNS, (*cells, f"{self.target:g}", reached), strict=True))


@dataclass(frozen=True)
class Findings:
    """What a part of the benchmark gives: rows, and lines to stand under the table."""

    rows: list[Row]
    notes: list[str]


def row(
    what: str,
    against: str,
    unit: str,
    ours: Sequence[float],
    opponent: Sequence[float],
    target: float | None = None,
) -> Row:
    """A row from the seconds of both (of an image, where the unit is): one value a turn."""
    figures = (UNITS[unit](median(seconds)) for seconds in (ours, opponent))
    return Row(what, against, unit, *figures, ratios(opponent, ours), target)


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


def each(seconds: Sequence[float], images: int) -> list[float]:
    """Seconds of one image."""
    return [value / images for value in seconds]


def figure(value: float) -> str:
    """Three digits at least, and no power of ten."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """min / median / max"""
    return " / ".join(f"{value:.2f}" for value in (min(values), median(values), max(values)))


def markdown(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells().values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(rows: Sequence[Row]) -> str:
    """For a terminal: columns of one width, figures to the right."""
    lines = [COLUMNS, *(tuple(row.cells().values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = (
        [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
    return "\n".join("  ".join(cells).rstrip() for cells in shown)


def as_csv(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """A line a row; what holds for all of them, as columns at the end."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *facts], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.cells() | facts for row in rows)
    return text.getvalue()
