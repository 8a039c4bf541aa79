"""The heads of a run side by side: one row a method and setting, paired tests, the rows of the csv files.

Accuracies are fractions here, and percent in the csv files and in what people read.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

from datasets import LongTailedData
from utils.base.errors import UserError, printable
from utils.heads.head import HeadRun
from utils.heads.outcome import Outcome, mean_score
from utils.heads.plan import HeadPlan
from utils.metrics.accuracy import GROUPS, PARTS, Scores, percent
from utils.metrics.paired import INTERVAL, bootstrap, holm, mcnemar
from utils.run.folder import Run
from utils.settings.commands import command

_SHARES = ("overall", *GROUPS, "balanced", "calibration_error")
REFERENCES = ("ce", "los")
TOLD_APART = 0.05
NAMED = 40  # classes whose figures a run prints by name
# how a table says what chose
SELECTIONS = {
    "last": "the last epoch of every head; this run selected nothing",
    "val": "epoch and setting of each method chosen on validation images that the backbone never saw",
    "test": "epoch and setting chosen on the test images themselves (published protocol): optimistic",
}
# whose settings a table has
BUDGETS = {
    "source": "as in each method's source",
    "preset": "as in each method's source, but of los and ce this repository's for data set and network",
    "equal": "as in each method's source, but 20 epochs for all",
}
CHOSEN_EPOCH = "epoch=7/20: the seventh of 20 epochs was chosen, by the mean over the seeds"
EDGE = "!"  # behind a value
WIDTH = 100  # of the table on a terminal
_CHOICE = f"{CHOSEN_EPOCH}. {EDGE}: least or largest value that was tried, see search.csv."
COMPARED = (
    "to ce, to los: difference in overall accuracy [95 % interval: 2,000 bootstrap draws of classes, then of "
    "images within them] (p: exact McNemar test of the first seeds, same images, corrected by Holm for the "
    "rows of the table)."
)


def label_of(plan: HeadPlan, plans: Sequence[HeadPlan]) -> str:
    """What tells a head from the others of the run, as name=value: method, what is swept, seed."""
    same = [other for other in plans if other.method is plan.method]
    shared = set.intersection(*(set(other.setting.split()) for other in same))
    words = [f"method={plan.method.name}", *(word for word in plan.setting.split() if word not in shared)]
    if len({other.seed for other in same}) > 1:
        words.append(f"seed={plan.seed}")
    return " ".join(words)


def table_rows(
    outcomes: Sequence[Outcome], heads: Sequence[HeadRun], targets: Tensor, facts: dict
) -> list[dict]:
    """A row a method and setting, means and deviations over seeds; stage 1 first, then by balanced accuracy.

    With `selected_on` val the score there comes first, and decides the order. `heads` are all of the run:
    those that failed come last, with the reason; their settings are the grid of which one is at an edge.
    `facts` (budget, selected_on) stand in every row.

    Raises:
        UserError: heads with other test images than `targets` [N], or all of one class.
    """
    groups: dict[tuple, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.head.plan.method.name, one.head.plan.setting), []).append(one)
        if len(one.predicted) != len(targets):
            found = f"{one.head.plan.method.name} has {len(one.predicted)}, the table {len(targets)}"
            raise UserError(f"heads of one table need the same test images: {found}")
    rows = [_row(group, heads) | facts for group in groups.values()]
    _compare(rows, list(groups.values()), targets.cpu())
    # of a balanced set the overall accuracy, whose ties no last bit shall break
    rows.sort(key=lambda row: (row["method"] != "stage1", -row.get("val_score", round(row["balanced"], 9))))
    return rows + [
        {"method": run.plan.method.name, "setting": run.plan.setting, "n": 0, "failed": run.failure} | facts
        for run in heads
        if run.failed
    ]


def _row(group: list[Outcome], heads: Sequence[HeadRun]) -> dict:
    first = group[0].head
    plan, trained = first.plan, first.plan.method.trained
    row = {"method": plan.method.name, "setting": plan.setting, "n": len(group), "epochs": plan.epochs}
    row |= {"lr": first.lr if trained else None, "chosen_epoch": first.chosen_epoch}
    if first.select == "val":
        row["val_score"] = mean_score([one.head for one in group])
    tried = [head.plan.setting for head in heads if head.plan.method is plan.method]
    row["at_edge"] = " ".join(at_edge(plan.setting, tried)) if first.select != "last" else None
    figures = [_figures(one) for one in group]
    for name in figures[0]:
        values = [one.get(name) for one in figures]
        known = None not in values
        row[name] = fmean(values) if known else None
        if name in _SHARES:
            row[f"{name}_std"] = stdev(values) if known and len(values) > 1 else None
    learned = sum(p.numel() for p in first.head.parameters()) if trained else 0
    return row | {"learned": learned, "seconds": fmean(one.head.seconds for one in group), "failed": None}


def at_edge(setting: str, tried: Sequence[str]) -> list[str]:
    """The options of a setting whose value is the least or the largest of the several that were tried."""
    values: dict[str, dict[str, float]] = {}
    for word in " ".join([setting, *tried]).split():
        name, _, value = word.partition("=")
        with suppress(ValueError):  # a word, not a number
            values.setdefault(name, {})[value] = float(value)
    own = (word.split("=") for word in setting.split())
    several = [(n, v, values[n]) for n, v in own if v in values.get(n, {}) and len(values[n]) > 1]
    return [n for n, v, known in several if known[v] in (min(known.values()), max(known.values()))]


def _figures(one: Outcome) -> dict[str, float | None]:
    """The figures of one head of which a row has the mean, by their columns."""
    row = {name: value for name, value in one.figures.items() if not isinstance(value, dict)}
    for prefix, source in (("", one.figures), ("train_", one.train_groups)):
        for reading, suffix in (("per_sample", ""), ("per_class", "_per_class")):
            for metric in ("loma", "rsd"):
                for part, value in source[f"{metric}_{reading}"].items():
                    row[f"{prefix}{metric}{suffix}" + ("" if part == "all" else f"_{part}")] = value
    return row


def _compare(rows: list[dict], groups: list[list[Outcome]], targets: Tensor) -> None:
    """Into each row its differences to `ce`, to `los`, and to `best` where validation selects.

    In overall accuracy, of the means over seeds, with an interval of 95 % over the draws of `bootstrap`; p of
    the first seeds, as it is and corrected by Holm for the rows that are compared with the same one. Of
    several settings of `ce` and `los` the first one stands for it. `relative_accuracy` is the share of the
    overall accuracy of the best row, `loma_unevenness` the spread of LoMa divided by its mean.
    """
    hits = [np.mean([(one.predicted == targets).numpy() for one in group], axis=0) for group in groups]
    methods = [row["method"] for row in rows]
    places = {name: methods.index(name) for name in REFERENCES if name in methods}
    if "val_score" in rows[0]:
        named = [place for place, group in enumerate(groups) if group[0].head.plan.named]
        places["best"] = max(named, key=lambda place: rows[place]["val_score"])
    draws = bootstrap(np.stack(hits), targets) if len(rows) > 1 else None
    for name, place in places.items():
        for own, row in ((own, row) for own, row in enumerate(rows) if own != place):
            row[f"minus_{name}"] = row["overall"] - rows[place]["overall"]
            low, high = np.quantile(draws[own] - draws[place], INTERVAL).tolist()
            row |= {f"minus_{name}_low": low, f"minus_{name}_high": high}
            row[f"p_{name}"] = mcnemar(groups[own][0].predicted, groups[place][0].predicted, targets)
    for name in places:
        corrected = holm([row.get(f"p_{name}") for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            if p is not None:
                row[f"p_{name}_holm"] = p
    most = max(row["overall"] for row in rows)
    for row in rows:
        if most:
            row["relative_accuracy"] = row["overall"] / most
        if (row["loma"] or 0) > 0:  # a small LoMa is not an even one
            row["loma_unevenness"] = row["loma_spread"] / row["loma"]


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


def confusion_rows(key: dict, predicted: Tensor, data: LongTailedData, targets: Tensor) -> list[dict]:
    """A row a class and what a head took its test images for, with their number; predicted -1: nothing.

    predicted and targets int64 [N]; `key` says whose row it is.
    """
    pairs, images = torch.stack([targets, predicted]).unique(dim=1, return_counts=True)
    names, groups = [*data.class_names, ""], [*data.groups, ""]  # the last ones, for nothing
    return [
        key
        | {"class": k, "name": names[k], "group": groups[k], "predicted": predicted}
        | {"predicted_name": names[predicted], "predicted_group": groups[predicted], "images": count}
        for (k, predicted), count in zip(pairs.T.tolist(), images.tolist(), strict=True)
    ]


def report_classes(run: Run, data: LongTailedData, figures: dict, scores: Scores) -> None:
    """per_class.csv, confusion.csv and, of few classes, a table of stage 1 or evaluate."""
    columns = {"class": range(data.num_classes), "name": data.class_names}
    columns |= {"train_images": data.class_counts, "group": data.groups}
    run.write_rows("per_class.csv", columns | figures["classes"])
    rows = confusion_rows({}, scores.predicted.cpu(), data, scores.targets.cpu())
    run.write_rows("confusion.csv", rows)
    log_classes(run, data, figures, rows)


def log_classes(run: Run, data: LongTailedData, figures: dict, confused: Sequence[dict]) -> None:
    """Up to NAMED classes by name, the most frequent first: images, accuracy, and what each is taken for."""
    if data.num_classes <= NAMED:
        judged = f"{PARTS[data.judged]} images"
        lines = [("class", "training images", judged, "accuracy", "most confused with")]
        for k in sorted(range(data.num_classes), key=lambda k: -data.class_counts[k]):
            images, share = (figures["classes"][name][k] for name in ("test_images", "accuracy"))
            wrong = [row for row in confused if row["class"] == k != row["predicted"]]
            most = max(wrong, key=lambda row: row["images"], default=None)
            taken = "-" if most is None else f"{most['predicted_name']} ({percent(most['images'] / images)})"
            name = data.class_names[k]
            lines.append((name, str(data.class_counts[k]), str(images), percent(share), taken))
        run.log("", *aligned_lines(lines, words=(0, 4)), "")
    run.log(f"pictures: {command('utils.plots', run.folder)}")


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


def share(row: dict, name: str, brief: bool = False) -> str:
    spread = None if brief and name != "overall" else row.get(f"{name}_std")
    return percent(row.get(name)) + ("" if spread is None else f" ± {percent(spread)}")


def _spread(row: dict, name: str) -> str:
    return "-" if row.get(name) is None else f"{row[name]:.2f} ({row[f'{name}_spread'] or 0:.2f})"


def difference(row: Mapping, name: str) -> str:
    """The difference of a row to `name`, in points, with its interval and corrected p; "-": there is none."""
    if row.get(f"minus_{name}") is None:
        return "-"
    points, low, high = (100 * row[f"minus_{name}{end}"] for end in ("", "_low", "_high"))
    return f"{points:+.2f} [{low:+.2f}, {high:+.2f}] (p {row[f'p_{name}_holm']:.2g})"


def told_apart(row: Mapping, name: str) -> bool:
    """Is the difference of a row to `name` clear by its interval and by its corrected p?"""
    clear = not row[f"minus_{name}_low"] <= 0 <= row[f"minus_{name}_high"]
    return clear and row[f"p_{name}_holm"] < TOLD_APART


def _setting(row: dict) -> str:
    edges = (row.get("at_edge") or "").split()
    words = [word + EDGE * (word.partition("=")[0] in edges) for word in row["setting"].split()]
    short = " ".join(words).replace("finetune_", "") or "-"
    if row["selected_on"] != "last" and row.get("chosen_epoch"):
        # a setting tells for how long a head was trained, not after which epoch it was taken
        short = re.sub(r"\bepoch=(\d+)", rf"epoch={row['chosen_epoch']:.0f}/\1", short)
    return f"{short} failed: {row['failed']}" if row.get("failed") else short


@dataclass(frozen=True)
class Column:
    """A column that people read. The `best` (max, min) of the figure `key` has a star.

    `text` of a row, None: the figure in percent. One that is `optional` stands where a row has its figure,
    one that is `brief` on the terminal too.
    """

    title: str
    key: str = ""
    text: Callable[[dict], str] | None = None
    best: Callable = max
    optional: bool = False
    brief: bool = True


COLUMNS = (
    Column("method", text=lambda row: row["method"]),
    Column("n", text=lambda row: str(row["n"]), brief=False),
    Column("validation", "val_score", optional=True),
    *(Column(name, name) for name in ("overall", *GROUPS)),
    Column("balanced", "balanced", brief=False),
    Column("F1", "macro_f1", optional=True, brief=False),
    Column("worst tenth", "worst_tenth", optional=True, brief=False),
    Column("ECE", "calibration_error", best=min, brief=False),
    Column("LoMa (spread)", "loma_unevenness", partial(_spread, name="loma"), min),
    Column("RSD (spread)", "rsd", partial(_spread, name="rsd"), min, brief=False),
    Column("to ce", text=partial(difference, name="ce"), brief=False),
    Column("to los", text=partial(difference, name="los")),
    Column("learned", text=lambda row: f"{row['learned']:,}" if row["n"] else "-", brief=False),
    Column("seconds", text=lambda row: f"{row['seconds']:.1f}" if row["n"] else "-", brief=False),
    Column("setting", text=_setting, brief=False),
)


def cells(rows: Sequence[dict], brief: bool = False) -> list[list[str]]:
    """The table as text, a header first; the best of each column is marked with a star.

    `brief`: the columns of the terminal, deviations of the overall accuracy alone, differences without p, and
    the balanced accuracy in place of LoMa where the test set is not balanced.
    """
    columns, swapped = [], {"balanced", "loma_unevenness"} if brief and _uneven(rows) else set()
    for column in COLUMNS:
        text = column.text or partial(share, name=column.key, brief=brief)
        known = [row[column.key] for row in rows if row.get(column.key) is not None]
        best = column.best(known) if len(known) > 1 else None
        starred = (best is not None and row.get(column.key) == best for row in rows)
        if (known or not column.optional) and (not brief or column.brief != (column.key in swapped)):
            lines = (text(row) + "*" * star for row, star in zip(rows, starred, strict=True))
            columns.append([column.title, *lines])
    if brief:
        columns = [[cell.partition(" (p ")[0] for cell in column] for column in columns]
    return [list(line) for line in zip(*columns, strict=True)]


def _uneven(rows: Sequence[dict]) -> bool:
    """Have the classes of the test set different numbers of images, as far as the figures tell?"""
    return any(row["n"] and abs(row["balanced"] - row["overall"]) > 1e-9 for row in rows)


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first line its header."""
    header, *lines = lines
    lines = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(printable, line))} |" for line in lines)


def aligned(rows: Sequence[dict]) -> list[str]:
    """The lines of the table for the terminal, of at most WIDTH columns.

    A method with several settings has what tells them apart behind its name. Heads that failed are left out
    where their method has another one. Settings that were chosen stand below.
    """
    whole = {row["method"] for row in rows if row["n"]}
    rows = [dict(row) for row in rows if row["n"] or row["method"] not in whole]
    chosen = [f"  {row['method']}: {_setting(row)}" for row in rows if _setting(row) != "-"]
    names = [row["method"] for row in rows]
    for name, row in zip(names, rows, strict=True):
        settings = [set(_setting(rows[i]).split()) for i, own in enumerate(names) if own == name]
        apart = [word for word in _setting(row).split() if word not in set.intersection(*settings)]
        row["method"] = " ".join([name, *apart])
    lines = cells(rows, brief=True)
    over = max(map(len, aligned_lines(lines, words=(0,)))) - WIDTH
    width = max(len(line[0]) for line in lines) - max(0, over)
    for line in lines:  # the name alone gives way
        line[0] = line[0] if len(line[0]) <= width else f"{line[0][: width - 1]}…"
    lines = aligned_lines(lines, words=(0,))
    if rows[0]["selected_on"] == "last" or not chosen:
        return lines
    return [*lines, "chosen settings:", *chosen]


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


def caption(rows: Sequence[dict], outcomes: Sequence[Outcome]) -> str:
    """How to read the table: what selected, which budget, what the deviations and the tests are over."""
    facts, labels, judged = rows[0], outcomes[0].head.frozen.labels, outcomes[0].head.frozen.judged
    seeds, plans = len({one.head.plan.seed for one in outcomes}), [one.head.plan for one in outcomes]
    lines = [
        f"Selection: {SELECTIONS[facts['selected_on']]}.",
        f"Settings: {BUDGETS[facts['budget']]}; published{_other_kinds(plans)}.",
        f"In percent of {len(labels[judged]):,} {PARTS[judged]} images; F1, worst tenth: over classes; LoMa "
        "and RSD per_sample, mean over classes (spread: their deviation). * best, of LoMa by spread divided "
        "by mean.",
        COMPARED,
    ]
    if facts["selected_on"] != "last":
        lines.append(_CHOICE)
    if facts["selected_on"] == "val":
        images = labels["val"].bincount(minlength=len(outcomes[0].head.frozen.class_counts))
        if scarce := int((images <= 2).sum()):
            lines.append(f"Classes with two or fewer validation images: {scarce} of {len(images)}.")
    if any("move" in plan.options for plan in plans):
        lines.append("move: of the logits, to first order from the start; table.csv has the learning rate.")
    if seeds > 1:
        noise = f"± over {seeds} seeds of stage 2 on one representation is the noise of batch order"
        lines.append(f"{noise}: that of stage 1 is left out.")
    left_out = [f"{row['rsd_left_out']:.3g} of {row['method']}" for row in rows if row.get("rsd_left_out")]
    if left_out:
        lines.append(f"RSD leaves out classes whose LoMa is not above 0: {', '.join(left_out)}.")
    return "\n".join([*lines, *_advice(rows)])


def brief_caption(rows: Sequence[dict]) -> list[str]:
    """What a reader of the terminal needs of the caption."""
    return [
        f"Selection: {SELECTIONS[rows[0]['selected_on']]}.",
        *([f"Settings: {BUDGETS[rows[0]['budget']]}."] if rows[0]["selected_on"] == "last" else []),
        f"{'' if _uneven(rows) else 'LoMa: per_sample; '}to los: points of overall accuracy [95 % interval]; "
        "* best. table.md explains these and has more.",
        *([] if rows[0]["selected_on"] == "last" else [_CHOICE]),
        *_advice(rows),
    ]


def _advice(rows: Sequence[dict]) -> list[str]:
    """What to judge by where classes differ in test images; which method to take where validation has chosen,
    and whether the next one is told apart from it.
    """
    part = PARTS[rows[0].get("judged", "test")]
    order = "" if "val_score" in rows[0] else ", by which the rows are sorted"
    uneven = f"Classes differ in {part} images: judge by the balanced accuracy, the mean over them{order}."
    lines = [uneven] if _uneven(rows) else []
    known = [row for row in rows if row["n"] and "val_score" in row]
    best = next((row for row in known if "p_best" not in row), None)
    others = [row for row in known if row is not best]
    if not others:
        return lines
    row = max(others, key=lambda row: row["val_score"])
    if row["val_score"] > best["val_score"]:  # stage 1, which nobody named and which is in every table
        scores = f"{percent(row['val_score'])} on validation; {best['method']} {percent(best['val_score'])}"
        return [*lines, f"Take none of them: {row['method']} is better ({scores})."]
    low, high, p = (row[name] for name in ("minus_best_low", "minus_best_high", "p_best_holm"))
    told = "told" if told_apart(row, "best") else "not told"
    return [
        *lines,
        f"Take {best['method']} ({percent(best['val_score'])} on validation); {row['method']} is next "
        f"({percent(row['val_score'])}) and is {told} apart from it on {part}: "
        f"{100 * row['minus_best']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}], p {p:.2g}.",
    ]


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
