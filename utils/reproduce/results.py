"""Tables of results from run folders: a csv file a protocol, and RESULTS.md from the csv files alone.

A row is a method and setting on one stage 1: the columns of the run's table.csv, as they stand there, behind
those that say what was run. A protocol is all but the seed of stage 1: a file holds one.
"""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from utils.base.errors import UserError
from utils.base.files import write_atomically
from utils.metrics.accuracy import percent
from utils.plots.tables import SCORES
from utils.report.table import (
    BUDGETS,
    CHOSEN_EPOCH,
    COMPARED,
    EDGE,
    REFERENCES,
    SELECTIONS,
    cells,
    complete,
    markdown_lines,
)
from utils.reproduce.cell import Cell, Stage1, Stage2, read_rows, slug

PROTOCOL = ("dataset", "imb_ratio", "network", "recipe", "stage2", "views", "selected_on", "budget", "data")
_NAMED_BY = ("dataset", "imb_ratio", "network", "recipe", "views", "stage2", "selected_on")
_RUN = (
    *("stage1_seed", "stage1_overall", "stage1_digest", "source", "stage1_hours", "stage1_hardware"),
    *("hours", "hardware", "torch", "commit", "stage2_seeds", "status"),
)
_NEEDED = (*PROTOCOL, *_RUN, "method", "setting", "n", *SCORES)
_TEXT = {*PROTOCOL, *_RUN, "method", "setting", "failed", "at_edge"}
NOT_RUN = "not run"
_BASES = ("stage1", "ce", "los")
_OVERVIEW = ["data", "views", "selected on", "stage-1 seeds", *_BASES, "place of los", "best of the others"]
_HEAD = f"""# Results

Written by `python -m utils.reproduce` from results/*.csv alone, which it writes from the run folders; nothing
is typed by hand. Every row of a table is in the csv file named above it, with all digits and the digests.
Accuracies in percent of the test images; ± over seeds of stage 2 on one representation, which is the noise of
batch order, or where it says so over those of stage 1; LoMa and RSD per_sample, mean over classes, their
spread in brackets. {CHOSEN_EPOCH}. {EDGE} behind a value: the least or largest that was tried.

In the tables of one stage 1, {COMPARED}
Over several stage 1, the difference on each of them is one value of a paired t-test."""


def rows_of(cell: Cell, select: str, stage1: Stage1 | None, stage2: Stage2 | None) -> list[dict[str, str]]:
    """The rows of one stage 2; where there is none, one a method that says so."""
    facts = cell.protocol | {"selected_on": select, "stage1_seed": str(cell.seed)}
    if stage1 is not None:
        hours = cell.hours("stage1") if stage1.source == "trained" else ""
        facts |= {"stage1_digest": stage1.digest, "source": stage1.source, "stage1_hours": hours}
        facts |= {"stage1_hardware": _hardware(stage1.model.facts.get("environment", {}))}
    if stage2 is None:
        missing = {"setting": "", "n": "0", "status": NOT_RUN}
        return [facts | {"method": name} | missing for name in cell.method_names]
    made = stage2.record["environment"]
    facts |= {"data": stage2.summary["train_digest"][:12], "torch": str(made.get("torch", ""))}
    facts |= {"hardware": _hardware(made), "commit": str(made.get("commit") or "")[:12]}
    facts |= {"hours": cell.hours(cell.label(select)), "stage2_seeds": " ".join(map(str, cell.stage2_seeds))}
    facts |= {"stage1_overall": next((r["overall"] for r in stage2.rows if r["method"] == "stage1"), "")}
    rows = [facts | row | {"status": "failed" if row["failed"] else "done"} for row in stage2.rows]
    for row in rows:
        _typed(row, stage2.folder / "table.csv")
    return rows


def _hardware(made: dict) -> str:
    """A device, with a CPU's kind and threads, as config.json has them."""
    if made.get("device") != "cpu":
        return str(made.get("device") or "")
    words = [made.get("device"), made.get("processor"), made.get("cpu_capability")]
    return " ".join([*map(str, filter(None, words)), f"{made.get('threads')} threads"])


def write_tables(rows: Sequence[dict[str, str]], folder: Path) -> list[Path]:
    """Write a csv file a protocol to `folder`; returns their paths."""
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        tables.setdefault(slug(row, _NAMED_BY), []).append(row)
    for name, table in tables.items():
        frame = pd.DataFrame(table)
        frame = frame.reindex(columns=list(dict.fromkeys([*_NEEDED, *frame]))).astype(object)
        for column in ("data", "budget"):  # which runs that are missing do not know
            frame[column] = frame[column].fillna(next(iter(frame[column].dropna()), ""))
        _check_protocol(name, frame)
        text = frame.fillna("").to_csv(index=False, lineterminator="\n").encode()
        write_atomically(folder / f"{name}.csv", lambda handle, text=text: handle.write(text))
    return [folder / f"{name}.csv" for name in tables]


def _check_protocol(name: str, table: pd.DataFrame) -> None:
    for column in PROTOCOL:
        found = list(table[column].unique())
        if len(found) > 1:
            values = f"{column} is {found[0] or 'none'!r} and {found[1]!r}"
            raise UserError(f"{name} would mix different protocols: {values}; a table holds one")


def render(paths: Sequence[Path]) -> str:
    """RESULTS.md as text, from csv files alone: a section a protocol, never two in one table."""
    tables = []
    for path in paths:
        rows = read_rows(path, _NEEDED)
        if not rows:
            raise UserError(f"{path} has no row")
        _check_protocol(str(path), pd.DataFrame(rows))
        done = [row["overall"] for row in rows if row["status"] == "done"]
        if done and not any(done):
            raise UserError(f"{path} tells of runs and has nothing in its column overall")
        tables.append((path, [_typed(row, path) for row in rows]))
    tables.sort(key=lambda table: _place(table[1][0]))
    head = "Overall accuracy; ± over seeds of stage 1; the place of LOS among all methods but stage1 and ce:"
    overview = markdown_lines([_OVERVIEW, *(_overview(rows) for _, rows in tables)])
    parts = [f"{head}\n\n{overview}"] if tables else []
    return "\n\n".join([_HEAD, *parts, *(_section(path, rows) for path, rows in tables)]) + "\n"


def _typed(row: dict[str, str], path: Path) -> dict:
    """A row as `cells` takes it."""
    typed = dict(row)
    try:
        for name in row.keys() - _TEXT:
            typed[name] = float(row[name]) if row[name] else None
        typed |= {"n": int(row["n"]), "learned": int(typed.get("learned") or 0)}
        for name in ("imb_ratio", "stage1_overall", "hours", "stage1_hours"):
            float(row.get(name) or 0)
        complete([typed])
        cells([typed])  # which needs more of a row that was run than of one that was not
    except KeyError as error:
        raise UserError(f"{path} has no column {error.args[0]}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} has a figure that is none: {error}") from error
    return typed


def _place(row: dict) -> tuple:
    """Where a table stands: the ratios of a set and network together, the mildest last."""
    order = (row["recipe"], row["stage2"], row["views"], row["selected_on"])
    return row["dataset"], row["network"], -float(row["imb_ratio"] or 0), *order


def _overview(rows: list[dict]) -> list[str]:
    """The line of a table: stage 1, control and LOS, and what is best beside them, overall accuracy."""
    first, frame = rows[0], pd.DataFrame(rows)
    seeds = frame["stage1_seed"].nunique()
    # of a method with several settings the first one, which is the preset's
    found = frame.dropna(subset="overall").groupby("method", sort=False)["overall"].apply(list)
    whole = {name: values[:seeds] for name, values in found.items() if len(values) >= seeds}
    means = {name: fmean(values) for name, values in whole.items() if name not in ("stage1", "ce")}
    order = sorted(means, key=lambda name: -means[name])  # of equals the one that the table has first
    ahead = [name for name in order if means[name] > means.get("los", 0)]
    others = [name for name in order if name != "los"]
    words = [first["dataset"], first["imb_ratio"] and f"ratio {first['imb_ratio']}", first["network"]]
    name = ", ".join(filter(None, [*words, f"`{first['recipe'] or 'preset'}`", first["stage2"]]))
    run = frame.loc[frame["status"] != NOT_RUN, "stage1_seed"].nunique()
    return [
        *(name, first["views"], first["selected_on"], f"{run} of {seeds}"),
        *(_spread(whole[base]) if base in whole else NOT_RUN for base in _BASES),
        f"{len(ahead) + 1} of {len(order)}" if "los" in order else "-",
        f"{others[0]} {_spread(whole[others[0]])}" if others else "-",
    ]


def _section(path: Path, rows: list[dict]) -> str:
    first = rows[0]
    recipe, ratio = f"`{first['recipe'] or 'preset'}`", first["imb_ratio"] and f", ratio {first['imb_ratio']}"
    extra = first["stage2"] and f"; stage 2: `{first['stage2']}`"
    named = {"fresh": "a fresh view an epoch", "pack": "the fixed training features of a pack"}
    views = named.get(first["views"], f"{first['views']} cached views")
    select = first["selected_on"]
    parts = [
        f"## {first['dataset']}{ratio}, {first['network']}, {recipe}, selected on {select}",
        f"[{path.name}](results/{path.name}). Stage 1: {recipe}{extra}; {views}. Selection: "
        f"{SELECTIONS.get(select, select)}. Settings: {BUDGETS.get(first['budget'], 'unknown')}. "
        f"Training images: sha256 {first['data'] or 'unknown'}. "
        "* best of its column.",
    ]
    seeds = list(dict.fromkeys(row["stage1_seed"] for row in rows))
    if len(seeds) > 1:
        parts += [f"Over {len(seeds)} seeds of stage 1:", _over_seeds(pd.DataFrame(rows), len(seeds))]
    for seed in seeds:
        own = [row for row in rows if row["stage1_seed"] == seed]
        complete(own)
        header, *lines = cells(own)
        for row, line in zip(own, lines, strict=True):
            line[-1] = NOT_RUN if row["status"] == NOT_RUN else line[-1]
        parts += [_told(own[0]), markdown_lines([header, *lines])]
    return "\n\n".join(parts)


def _told(first: dict) -> str:
    """Of which stage 1 a table is, and at what cost."""
    if first["status"] == NOT_RUN and not first["stage1_digest"]:
        return f"Stage 1, seed {first['stage1_seed']}: {NOT_RUN}."
    overall = f", overall {percent(float(first['stage1_overall']))}" if first["stage1_overall"] else ""
    made = "pack made on " if first["stage1_hardware"] else "a pack of its own"
    made = made if first["views"] == "pack" else _hours(first["stage1_hours"])
    where = f"Stage 1, seed {first['stage1_seed']}: sha256 {first['stage1_digest'][:12]}, {first['source']}"
    where += f"{overall} ({made}{first['stage1_hardware']})."
    if first["status"] == NOT_RUN:
        return f"{where} Stage 2: {NOT_RUN}."
    stage2 = f"Stage 2: seeds {first['stage2_seeds']} ({_hours(first['hours'])}{first['hardware']}, torch"
    return f"{where} {stage2} {first['torch']})."


def _hours(text: str) -> str:
    return f"{float(text):.2f} hours, " if text else ""


def _over_seeds(table: pd.DataFrame, seeds: int) -> str:
    """Differences paired by representation, then mean and deviation over these of the means over seeds."""
    # the setting that was chosen may be another on each, and a run that is missing has none
    chosen = table["selected_on"] != "last"
    settings = table["setting"].mask(chosen | (table["status"] == NOT_RUN), "")
    told = set(table.loc[table["status"] == "done", "method"])
    lines = [["method", "stage-1 seeds", *(f"to {name}" for name in REFERENCES), *SCORES, "setting"]]
    for (method, setting), group in table.groupby(["method", settings], sort=False):
        done = group[group["status"] == "done"]
        if done.empty and method in told:
            continue  # the other seeds' rows of the method say of how many they are
        figures = [_paired(done.get(f"minus_{name}", pd.Series()).dropna().tolist()) for name in REFERENCES]
        figures += [_spread(done[name].astype(float).tolist()) for name in SCORES]
        last = setting or ("-" if len(done) else NOT_RUN)
        lines.append([method, f"{len(done)} of {seeds}", *figures, last])
    return markdown_lines(lines)


def _paired(differences: list[float]) -> str:
    """Differences on the same stage 1: their mean and deviation, and a paired t-test."""
    if len(differences) < 2:
        return "-"
    from scipy.stats import ttest_1samp  # here: it takes a second to load

    mean, deviation = 100 * fmean(differences), 100 * stdev(differences)
    shown = f"{mean:+.2f} ± {deviation:.2f} (n {len(differences)}"
    if not deviation:  # t has no value
        return f"{shown})"
    test = ttest_1samp(differences, 0)
    return f"{shown}, t {test.statistic:.3g}, p {test.pvalue:.2g})"


def _spread(values: list[float]) -> str:
    if not values or isnan(sum(values)):
        return "-"
    return percent(fmean(values)) + (f" ± {percent(stdev(values))}" if len(values) > 1 else "")
