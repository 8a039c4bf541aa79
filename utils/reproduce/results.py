"""Tables of results from run folders: a csv file a protocol, and RESULTS.md from the csv files alone.

A row is a method and setting on one stage 1: the columns of the run's table.csv, as they stand there, behind
those that say what was run. A protocol is all but the seed of stage 1: a file holds one.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from utils.base.errors import UserError
from utils.base.files import write_atomically
from utils.metrics.accuracy import percent
from utils.plots.tables import SCORES
from utils.report.table import CHOSEN_EPOCH, SELECTIONS, cells, markdown_lines
from utils.reproduce.cell import CellRuns, Stage1, Stage2, read_rows
from utils.reproduce.grid import slug

PROTOCOL = ("dataset", "imb_ratio", "network", "recipe", "stage2", "views", "selected_on", "budget", "data")
_NAMED_BY = ("dataset", "imb_ratio", "network", "recipe", "views", "stage2", "select")
_RUN = (
    *("stage1_seed", "stage1_overall", "stage1_digest", "source", "stage1_hours", "stage1_hardware"),
    *("hours", "hardware", "torch", "commit", "stage2_seeds", "status"),
)
_NEEDED = (*PROTOCOL, *_RUN, "method", "setting", "n", *SCORES)
_TEXT = {*PROTOCOL, *_RUN, "method", "setting", "failed"}
NOT_RUN = "not run"
_BASES = ("stage1", "ce", "los")


def rows_of(
    runs: CellRuns, select: str, stage1: Stage1 | None, stage2: Stage2 | None
) -> list[dict[str, str]]:
    """The rows of one stage 2; where there is none, one a method that says so."""
    cell = runs.cell
    facts = cell.protocol | {"selected_on": select, "stage1_seed": str(cell.seed)}
    if stage1 is not None:
        facts |= _origin(runs, stage1)
    if stage2 is None:
        return [
            facts | {"method": name, "setting": "", "n": "0", "status": NOT_RUN} for name in cell.method_names
        ]
    made = stage2.record["environment"]
    facts |= {"data": stage2.summary["train_digest"][:12], "torch": str(made.get("torch", ""))}
    facts |= {"hardware": _hardware(made), "commit": str(made.get("commit") or "")[:12]}
    facts |= {"hours": runs.hours(cell.label(select)), "stage2_seeds": " ".join(map(str, cell.stage2_seeds))}
    facts |= {"stage1_overall": next((r["overall"] for r in stage2.rows if r["method"] == "stage1"), "")}
    return [facts | row | {"status": "failed" if row["failed"] else "done"} for row in stage2.rows]


def _origin(runs: CellRuns, stage1: Stage1) -> dict[str, str]:
    trained = stage1.source == "trained"
    return {
        "stage1_digest": stage1.digest,
        "source": stage1.source,
        "stage1_hours": runs.hours("stage1") if trained else "",
        "stage1_hardware": _hardware(stage1.model.facts.get("environment", {})),
    }


def _hardware(made: dict) -> str:
    """A device, with a CPU's kind and threads, as config.json has them."""
    words = [made.get("device"), made.get("processor"), made.get("cpu_capability")]
    words = words if made.get("device") == "cpu" else words[:1]
    return " ".join(
        [
            *map(str, filter(None, words)),
            *([f"{made.get('threads')} threads"] if made.get("device") == "cpu" else []),
        ]
    )


def write_tables(rows: Sequence[dict[str, str]], folder: Path) -> list[Path]:
    """Write a csv file a protocol to `folder`; returns their paths."""
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        tables.setdefault(slug(row | {"select": row["selected_on"]}, _NAMED_BY), []).append(row)
    for name, table in tables.items():
        # runs that are missing do not know the data and the budget of those that are there
        for column in ("data", "budget"):
            found = next((row[column] for row in table if row.get(column)), "")
            table[:] = [{column: found} | row for row in table]
        _check_protocol(name, table)
        columns = dict.fromkeys([*_NEEDED, *(column for row in table for column in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        content = text.getvalue().encode()
        write_atomically(folder / f"{name}.csv", lambda handle, content=content: handle.write(content))
    return [folder / f"{name}.csv" for name in tables]


def _check_protocol(name: str, rows: Sequence[dict[str, str]]) -> None:
    for column in PROTOCOL:
        found = list(dict.fromkeys(row[column] for row in rows))
        if len(found) > 1:
            raise UserError(
                f"{name} would mix different protocols: {column} is {found[0] or 'none'!r} and {found[1]!r}; "
                "a table holds one"
            )


def render(paths: Sequence[Path]) -> str:
    """RESULTS.md as text, from csv files alone: a section a protocol, never two in one table.

    Raises:
        UserError: a file is unreadable, lacks a column, has a figure that is none, or mixes protocols.
    """
    tables = []
    for path in paths:
        rows = read_rows(path, _NEEDED)
        if not rows:
            raise UserError(f"{path} has no row")
        _check_protocol(str(path), rows)
        tables.append((path, [_typed(row, path) for row in rows]))
    tables.sort(key=lambda table: _place(table[1][0]))
    sections = [_section(path, rows) for path, rows in tables]
    overview = _overview([rows for _, rows in tables]) if tables else ""
    return "\n\n".join([_HEAD, *filter(None, [overview]), *sections]) + "\n"


_HEAD = f"""# Results

Written by `python -m utils.reproduce` from results/*.csv alone, which it writes from the run folders; nothing
is typed by hand. Every row of a table is in the csv file named above it, with all digits and the digests.
Accuracies in percent of the test images; ± over seeds of stage 2 on one representation, or where it says so
over those of stage 1; p: exact McNemar test of the first seeds, same images; LoMa and RSD per_sample, mean
over classes, their spread in brackets. {CHOSEN_EPOCH}."""


def _place(row: dict) -> tuple:
    """Where a table stands: the ratios of a set and network together, the mildest last."""
    ratio = -float(row["imb_ratio"] or 0)
    return (
        row["dataset"],
        row["network"],
        ratio,
        row["recipe"],
        row["stage2"],
        row["views"],
        row["selected_on"],
    )


_OVERVIEW = ("data", "views", "selected on", "stage-1 seeds", *_BASES, "place of los", "best of the others")


def _overview(tables: Sequence[list[dict]]) -> str:
    """A line a table: stage 1, control and LOS, and what is best beside them, overall accuracy."""
    lines = [list(_OVERVIEW)]
    for rows in tables:
        seeds = len({row["stage1_seed"] for row in rows})
        found: dict[str, list[float]] = {}
        for row in rows:  # of a method with several settings the first one, which is the preset's
            if row["overall"] is not None and len(found.setdefault(row["method"], [])) < seeds:
                found[row["method"]].append(row["overall"])
        means = {name: fmean(values) for name, values in found.items() if len(values) == seeds}
        order = sorted(means.keys() - {"stage1", "ce"}, key=lambda name: -means[name])
        others = [name for name in order if name != "los"]
        place = f"{order.index('los') + 1} of {len(order)}" if "los" in order else "-"
        first = rows[0]
        words = [first["dataset"], first["imb_ratio"] and f"ratio {first['imb_ratio']}", first["network"]]
        name = ", ".join(filter(None, [*words, f"`{first['recipe'] or 'preset'}`", first["stage2"]]))
        values = [_spread(found[name]) if name in means else NOT_RUN for name in _BASES]
        best = f"{others[0]} {_spread(found[others[0]])}" if others else "-"
        run = f"{len({row['stage1_seed'] for row in rows if row['status'] != NOT_RUN})} of {seeds}"
        lines.append([name, first["views"], first["selected_on"], run, *values, place, best])
    head = "Overall accuracy; ± over seeds of stage 1; the place of LOS among all methods but stage1 and ce:"
    return f"{head}\n\n{markdown_lines(lines)}"


def _typed(row: dict[str, str], path: Path) -> dict:
    """A row as `comparison.cells` takes it."""
    typed = dict(row)
    try:
        for name in row.keys() - _TEXT:
            typed[name] = float(row[name]) if row[name] else None
        typed |= {"n": int(row["n"]), "learned": int(typed.get("learned") or 0)}
        for name in ("imb_ratio", "stage1_overall", "hours", "stage1_hours"):
            float(row[name] or 0)
        cells([typed])  # which needs more of a row that was run than of one that was not
    except KeyError as error:
        raise UserError(f"{path} has no column {error.args[0]}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} has a figure that is none: {error}") from error
    return typed


def _section(path: Path, rows: list[dict]) -> str:
    first = rows[0]
    ratio = f", ratio {first['imb_ratio']}" if first["imb_ratio"] else ""
    extra = f"; stage 2: `{first['stage2']}`" if first["stage2"] else ""
    named = {"fresh": "a fresh view an epoch", "pack": "the fixed training features of a pack"}
    views = named.get(first["views"], f"{first['views']} cached views")
    chosen = SELECTIONS.get(first["selected_on"], first["selected_on"])
    parts = [
        f"## {first['dataset']}{ratio}, {first['network']}, `{first['recipe'] or 'preset'}`, "
        f"selected on {first['selected_on']}",
        f"[{path.name}](results/{path.name}). Stage 1: `{first['recipe'] or 'preset'}`{extra}; {views}. "
        f"Selection: {chosen}. Training images: sha256 {first['data'] or 'unknown'}. * best of its column.",
    ]
    seeds = list(dict.fromkeys(row["stage1_seed"] for row in rows))
    if len(seeds) > 1:
        parts += [f"Over {len(seeds)} seeds of stage 1:", _over_seeds(rows, seeds)]
    for seed in seeds:
        parts += [_told(own := [row for row in rows if row["stage1_seed"] == seed]), _table(own)]
    return "\n\n".join(parts)


def _told(rows: list[dict]) -> str:
    """Of which stage 1 a table is, and at what cost."""
    first = rows[0]
    if first["status"] == NOT_RUN and not first["stage1_digest"]:
        return f"Stage 1, seed {first['stage1_seed']}: {NOT_RUN}."
    overall = f", overall {percent(float(first['stage1_overall']))}" if first["stage1_overall"] else ""
    where = f"Stage 1, seed {first['stage1_seed']}: sha256 {first['stage1_digest'][:12]}, {first['source']}"
    made = "pack made on " if first["stage1_hardware"] else "a pack of its own"
    made = made if first["views"] == "pack" else _hours(first["stage1_hours"])
    where += f"{overall} ({made}{first['stage1_hardware']})."
    if first["status"] == NOT_RUN:
        return f"{where} Stage 2: {NOT_RUN}."
    stage2 = f"Stage 2: seeds {first['stage2_seeds']} ({_hours(first['hours'])}{first['hardware']}, torch"
    return f"{where} {stage2} {first['torch']})."


def _hours(text: str) -> str:
    return f"{float(text):.2f} hours, " if text else ""


def _table(rows: list[dict]) -> str:
    header, *lines = cells(rows)
    for row, line in zip(rows, lines, strict=True):
        if row["status"] == NOT_RUN:
            line[-1] = NOT_RUN
    return markdown_lines([header, *lines])


def _over_seeds(rows: list[dict], seeds: Sequence[str]) -> str:
    """Mean and deviation over representations of the means over seeds of stage 2."""
    chosen = rows[0]["selected_on"] != "last"  # then the setting may be another on each
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row["method"], "" if chosen or row["status"] == NOT_RUN else row["setting"])
        groups.setdefault(key, []).append(row)
    lines = [["method", "stage-1 seeds", *SCORES, "setting"]]
    for (method, setting), group in groups.items():
        done = [row for row in group if row["status"] == "done"]
        if not done and any(other == method for other, words in groups if words):
            continue  # the other seeds' rows of the method say of how many they are
        figures = [_spread([row[name] for row in done]) for name in SCORES]
        lines.append(
            [method, f"{len(done)} of {len(seeds)}", *figures, setting or ("-" if done else NOT_RUN)]
        )
    return markdown_lines(lines)


def _spread(values: list[float | None]) -> str:
    if not values or None in values:
        return "-"
    return percent(fmean(values)) + (f" ± {percent(stdev(values))}" if len(values) > 1 else "")
