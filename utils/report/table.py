"""The heads of a run side by side: one row a method and setting, paired tests, the rows of the csv files.

Accuracies are fractions in the csv files and percent in what people read.
"""

import re
from collections.abc import Collection, Sequence
from statistics import fmean, stdev

from scipy.special import bdtr
from torch import Tensor

from datasets import LongTailedData
from utils.base.errors import printable
from utils.heads.head import HeadRun
from utils.heads.outcome import Outcome
from utils.heads.plan import HeadPlan
from utils.metrics.accuracy import GROUPS, percent

_SHARES = ("overall", *GROUPS, "balanced", "calibration_error")
REFERENCES = ("ce", "los")
# the columns that people read, and the figure that says which row is best: the smallest of those in _LOW
_COLUMNS = {
    **dict.fromkeys(("method", "n")),
    **{name: name for name in ("overall", *GROUPS, "balanced")},
    **{"ECE": "calibration_error", "LoMa (spread)": "loma_spread", "RSD (spread)": "rsd"},
    **dict.fromkeys(("to ce", "to los", "learned", "seconds", "setting")),
}
_LOW = ("calibration_error", "loma_spread", "rsd")
# how a table says what chose
SELECTIONS = {
    "last": "the last epoch of every head; this run selected nothing",
    "val": "epoch and setting of each method chosen on validation images that the backbone never saw",
    "test": "epoch and setting chosen on the test images themselves (published protocol): optimistic",
}
CHOSEN_EPOCH = "epoch=7/20: the seventh of 20 epochs was chosen, by the mean over the seeds"


def mcnemar(predicted: Tensor, other: Tensor, targets: Tensor) -> float:
    """Two-sided p of the exact McNemar test: are the images that only one of the two gets right balanced?

    Predicted classes [N] of both on the same images with `targets` [N]. Source: McNemar 1947.
    """
    right, other_right = predicted == targets, other == targets
    ours, theirs = int((right & ~other_right).sum()), int((~right & other_right).sum())
    # of scipy.stats.binomtest, which takes longer to load than this run's table to write
    return min(1.0, 2 * float(bdtr(min(ours, theirs), ours + theirs, 0.5)))


def label_of(plan: HeadPlan, plans: Sequence[HeadPlan]) -> str:
    """What tells a head from the others of the run, as name=value: method, what is swept, seed."""
    same = [other for other in plans if other.method is plan.method]
    shared = set.intersection(*(set(other.setting.split()) for other in same))
    words = [f"method={plan.method.name}", *(word for word in plan.setting.split() if word not in shared)]
    if len({other.seed for other in same}) > 1:
        words.append(f"seed={plan.seed}")
    return " ".join(words)


def table_rows(
    outcomes: Sequence[Outcome], failed: Sequence[HeadRun], targets: Tensor, facts: dict
) -> list[dict]:
    """A row a method and setting, means and deviations over seeds; stage 1 first, then by overall accuracy.

    The tests against `ce` and `los` compare the first seeds on the same images, with targets [N]. `facts`
    (budget, selected_on) stand in every row. Failed heads come last, with the reason.
    """
    groups: dict[tuple, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.head.plan.method.name, one.head.plan.setting), []).append(one)
    references = {name: next((g for (m, _), g in groups.items() if m == name), None) for name in REFERENCES}
    rows = [_row(group, references, targets) | facts for group in groups.values()]
    rows.sort(key=lambda row: (row["method"] != "stage1", -row["overall"]))
    return rows + [
        {"method": run.plan.method.name, "setting": run.plan.setting, "n": 0, "failed": run.failure} | facts
        for run in failed
    ]


def _row(group: list[Outcome], references: dict[str, list[Outcome] | None], targets: Tensor) -> dict:
    first = group[0].head
    plan, trained = first.plan, first.plan.method.trained
    row = {"method": plan.method.name, "setting": plan.setting, "n": len(group), "epochs": plan.epochs}
    row |= {"lr": first.lr if trained else None, "chosen_epoch": first.chosen_epoch}
    figures = [_figures(one) for one in group]
    for name in figures[0]:
        values = [one[name] for one in figures]
        known = None not in values
        row[name] = fmean(values) if known else None
        if name in _SHARES:
            row[f"{name}_std"] = stdev(values) if known and len(values) > 1 else None
    for name, reference in references.items():
        if reference is not None and reference is not group:
            row[f"minus_{name}"] = row["overall"] - fmean(one.figures["overall"] for one in reference)
            row[f"p_{name}"] = mcnemar(group[0].predicted, reference[0].predicted, targets)
    learned = sum(p.numel() for p in first.head.parameters()) if trained else 0
    return row | {"learned": learned, "seconds": fmean(one.head.seconds for one in group), "failed": None}


def _figures(one: Outcome) -> dict[str, float | None]:
    """The figures of one head of which a row has the mean, by their columns."""
    row = {name: one.figures[name] for name in _SHARES}
    for prefix, source in (("", one.figures), ("train_", one.train_groups)):
        for reading, suffix in (("per_sample", ""), ("per_class", "_per_class")):
            for metric in ("loma", "rsd"):
                for part in ("all", "spread", *GROUPS):
                    name = f"{prefix}{metric}{suffix}" + ("" if part == "all" else f"_{part}")
                    row[name] = source[f"{metric}_{reading}"][part]
    return row


def per_class_rows(outcomes: Sequence[Outcome], data: LongTailedData) -> list[dict]:
    """A row a head and class: accuracy, LoMa and RSD on test, and LoMa and RSD on the training images."""
    rows = []
    for one in outcomes:
        columns = one.figures["classes"] | {f"train_{name}": v for name, v in one.train_classes.items()}
        classes = zip(data.class_names, data.class_counts, data.groups, strict=True)
        for k, (name, count, group) in enumerate(classes):
            row = one.head.plan.key | {"class": k, "name": name, "train_images": count, "group": group}
            rows.append(row | {column: values[k] for column, values in columns.items()})
    return rows


def head_rows(runs: Sequence[HeadRun]) -> list[dict]:
    """A row a head and epoch, for metrics.csv."""
    return [run.plan.key | row for run in runs for row in run.progress.rows]


def search_rows(runs: Sequence[HeadRun], chosen: Collection[HeadRun]) -> list[dict]:
    """A row a head that was up for selection: its score on the selecting images, and whether it was taken."""
    return [
        run.plan.key
        | {"score": run.progress.best_score, "epoch": run.progress.best_epoch}
        | {"chosen": run in chosen, "failed": run.failure}
        for run in runs
    ]


def _spread(row: dict, name: str) -> str:
    return "-" if row.get(name) is None else f"{row[name]:.2f} ({row[f'{name}_spread'] or 0:.2f})"


def _difference(row: dict, name: str) -> str:
    value = row.get(f"minus_{name}")
    return "-" if value is None else f"{100 * value:+.2f} (p {row[f'p_{name}']:.2g})"


def _setting(row: dict) -> str:
    short = row["setting"].replace("finetune_", "") or "-"
    if row["selected_on"] != "last" and row.get("chosen_epoch"):
        # a setting tells for how long a head was trained, not after which epoch it was taken
        short = re.sub(r"\bepoch=(\d+)", rf"epoch={row['chosen_epoch']:.0f}/\1", short)
    return f"{short} failed: {row['failed']}" if row.get("failed") else short


def _cells(row: dict) -> list[str]:
    spreads = {name: row.get(f"{name}_std") for name in _SHARES}
    shares = [
        percent(row.get(name)) + ("" if spread is None else f" ± {percent(spread)}")
        for name, spread in spreads.items()
    ]
    differences = [_difference(row, name) for name in REFERENCES]
    cost = [f"{row['learned']:,}", f"{row['seconds']:.1f}"] if row["n"] else ["-", "-"]
    logits = [_spread(row, "loma"), _spread(row, "rsd")]
    return [row["method"], str(row["n"]), *shares, *logits, *differences, *cost, _setting(row)]


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table as text, a header first; the best of each column is marked with a star."""
    best = {}
    for key in filter(None, _COLUMNS.values()):
        values = [row[key] for row in rows if row.get(key) is not None]
        best[key] = (min if key in _LOW else max)(values) if len(values) > 1 else None
    lines = [list(_COLUMNS)]
    for row in rows:
        starred = (key and best[key] is not None and row.get(key) == best[key] for key in _COLUMNS.values())
        lines.append([cell + "*" * bool(star) for cell, star in zip(_cells(row), starred, strict=True)])
    return lines


def markdown(rows: Sequence[dict]) -> str:
    """The table for people who read Markdown."""
    return markdown_lines(cells(rows))


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first line its header."""
    header, *lines = lines
    lines = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(printable, line))} |" for line in lines)


def aligned(rows: Sequence[dict]) -> list[str]:
    """The lines of the table for the terminal."""
    return aligned_lines(cells(rows), words=(0, len(_COLUMNS) - 1))


def aligned_lines(lines: Sequence[Sequence[str]], words: Collection[int]) -> list[str]:
    """Cells in columns of one width: to the left in the columns of `words`, else to the right as figures."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def caption(facts: dict, outcomes: Sequence[Outcome], num_test: int) -> str:
    """How to read the table: what selected, which budget, what the deviations and the tests are over."""
    budget = {
        "source": "as in each method's source",
        "preset": "as in each method's source, but of los and ce this repository's for data set and network",
        "equal": "as in each method's source, but 20 epochs for all",
    }[facts["budget"]]
    seeds, plans = len({one.head.plan.seed for one in outcomes}), [one.head.plan for one in outcomes]
    lines = [
        f"Selection: {SELECTIONS[facts['selected_on']]}. * best of its column.",
        f"Settings: {budget}; published{_other_kinds(plans)}.",
        f"Accuracy and calibration error in percent of {num_test:,} test images; LoMa and RSD per_sample, "
        "mean over classes (spread: their deviation); p: exact McNemar test of the first seeds, same images.",
    ]
    if facts["selected_on"] != "last":
        lines.append(f"{CHOSEN_EPOCH}.")
    if any("move" in plan.options for plan in plans):
        lines.append("move: of the logits, to first order from the start; table.csv has the learning rate.")
    if seeds > 1:
        lines.append(f"± over {seeds} seeds of stage 2 on one representation: its own spread is left out.")
    return "\n".join(lines)


def _other_kinds(plans: Sequence[HeadPlan]) -> str:
    """Which settings are not published, by kind and method."""
    found: dict[str, list[str]] = {}
    for plan in {plan.method.name: plan for plan in plans}.values():
        for kind in dict.fromkeys(plan.kinds.values()):
            names = " ".join(name for name, own in plan.kinds.items() if own == kind)
            found.setdefault(kind, []).append(f"{plan.method.name} ({names})")
    found.pop("published", None)
    told = [f"{kind} {', '.join(methods)}" for kind, methods in found.items()]
    return f" but for {'; '.join(told)}" if told else ""
