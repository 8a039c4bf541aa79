"""Tables of results from run folders: a csv file a protocol, written and read.

A row is a method and setting on one stage 1: the columns of the run's table.csv, as they stand there, behind
those that say what was run. A protocol is all but the seed of stage 1: a file holds one.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.base.errors import UserError
from utils.base.files import write_atomically
from utils.metrics.percent import PERCENT, SCALE, fraction, is_percent
from utils.plots.tables import SCORES
from utils.report.table import cells
from utils.reproduce.cell import Cell, Stage1, Stage2, read_rows, slug
from utils.settings.chosen import chosen_methods

PROTOCOL = ("dataset", "imb_ratio", "network", "recipe", "stage2", "views", "selected_on", "budget", "data")
NAMED_BY = ("dataset", "imb_ratio", "network", "recipe", "views", "stage2", "selected_on")
_RUN = (
    *("stage1_seed", "stage1_overall", "stage1_digest", "source", "stage1_hours", "stage1_hardware"),
    *("hours", "hardware", "torch", "commit", "stage2_seeds", "status"),
)
_NEEDED = (*PROTOCOL, SCALE, *_RUN, "method", "setting", "n", *SCORES)
_TEXT = {*PROTOCOL, SCALE, *_RUN, "method", "setting", "failed", "at_edge"} - {"stage1_overall"}
NOT_RUN = "not run"


def rows_of(cell: Cell, select: str, stage1: Stage1 | None, stage2: Stage2 | None) -> list[dict[str, str]]:
    """The rows of one stage 2; where there is none, one a method that says so."""
    facts = cell.protocol | {"selected_on": select, SCALE: PERCENT, "stage1_seed": str(cell.seed)}
    if stage1 is not None:
        hours = cell.hours("stage1") if stage1.source == "trained" else ""
        facts |= {"stage1_digest": stage1.digest, "source": stage1.source, "stage1_hours": hours}
        facts |= {"stage1_hardware": _hardware(stage1.model.facts.get("environment", {}))}
    if stage2 is None:
        missing = {"setting": "", "n": "0", "status": NOT_RUN}
        methods = chosen_methods(",".join(cell.methods))
        return [facts | {"method": method.name} | missing for method in methods]
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
        tables.setdefault(slug(row, NAMED_BY), []).append(row)
    for name, table in tables.items():
        frame = pd.DataFrame(table)
        frame = frame.reindex(columns=list(dict.fromkeys([*_NEEDED, *frame]))).astype(object)
        for column in ("data", "budget"):  # which runs that are missing do not know
            frame[column] = frame[column].fillna(next(iter(frame[column].dropna()), ""))
        check_protocol(name, frame)
        text = frame.fillna("").to_csv(index=False, lineterminator="\n").encode()
        write_atomically(folder / f"{name}.csv", lambda handle, text=text: handle.write(text))
    return [folder / f"{name}.csv" for name in tables]


def check_protocol(name: str, table: pd.DataFrame) -> None:
    for column in (*PROTOCOL, SCALE):
        found = list(table[column].unique())
        if len(found) > 1:
            values = f"{column} is {found[0] or 'none'!r} and {found[1]!r}"
            raise UserError(f"{name} would mix different protocols: {values}; a table holds one")


def read_results(path: Path) -> list[dict]:
    """The rows of a csv file as `cells` takes them.

    Raises:
        UserError: there is none, it is of several protocols, or a figure is none; a method has two settings.
    """
    rows = read_rows(path, _NEEDED)
    if not rows:
        raise UserError(f"{path} has no row")
    check_protocol(str(path), pd.DataFrame(rows))
    done = [row["overall"] for row in rows if row["status"] == "done"]
    if done and not any(done):
        raise UserError(f"{path} tells of runs and has nothing in its column overall")
    heads = Counter((row["stage1_seed"], row["method"]) for row in rows if row["status"] == "done")
    if several := [method for (_, method), count in heads.items() if count > 1]:
        raise UserError(f"{path} has several settings of {several[0]} on one stage 1, and nothing chose one")
    return [_typed(row, path) for row in rows]


def _typed(row: dict[str, str], path: Path) -> dict:
    """A row as `cells` takes it, of fractions."""
    typed = dict(row)
    try:
        for name in row.keys() - _TEXT:
            typed[name] = float(row[name]) if row[name] else None
            if is_percent(name) and row[name]:
                typed[name] = fraction(typed[name])
        typed |= {"n": int(row["n"]), "learned": int(typed.get("learned") or 0)}
        for name in ("imb_ratio", "hours", "stage1_hours"):
            float(row.get(name) or 0)
        cells([typed])  # which needs more of a row that was run than of one that was not
    except KeyError as error:
        raise UserError(f"{path} has no column {error.args[0]}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path} has a figure that is none: {error}") from error
    return typed
