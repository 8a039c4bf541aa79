"""The pages of results, from the csv files alone: RESULTS.md, a page beside each file, tables elsewhere."""

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from utils.base.files import write_atomically
from utils.base.pages import put
from utils.metrics.accuracy import percent
from utils.metrics.paired import holm
from utils.plots.tables import SCORES, read_table
from utils.report.table import (
    BUDGETS,
    CHOSEN_EPOCH,
    COMPARED,
    EDGE,
    REFERENCES,
    SELECTIONS,
    TOLD_APART,
    cells,
    difference,
    markdown_lines,
    share,
    told_apart,
)
from utils.reproduce.cell import slug
from utils.reproduce.grid import GRIDS, read_grid
from utils.reproduce.published import RATIOS, STEMS, done_rows, file_of, own_table, published_table
from utils.reproduce.results import NAMED_BY, NOT_RUN, read_results

COMMAND = "python -m utils.reproduce --report_only --grid packs"
MOST_NAMED = 4  # of the methods ahead of LOS in one cell of RESULTS.md
_BASES = ("stage1", "ce", "los")
_OVERVIEW = ["table", "selected on", "stage-1 seeds", *_BASES, "place of los", "best of the others"]
_CLAIMS = [
    *("table", "selected on", "los minus ce", "best of the others minus los"),
    *("ahead of los", "not told apart", "behind"),
]
_VIEWS = {
    "fresh": "a fresh view an epoch",
    "pack": "the fixed training features of a pack",
    "0": "the plain images",
}
_SHORT_VIEWS = {"fresh": "fresh views", "pack": "pack", "0": "plain images"}
# of the tables of methods in README.md and docs/methods.md: what chose, with its title
_CHOSEN = {"last": "published", "val": "by validation"}
_SIX = ("stage1", "ce", "los", "la", "bsce", "wb")
_HEAD = f"""# Results

`{COMMAND}` writes this page and the pages that it links to from the files results/*.csv.
The csv files come from run folders and hold every digit and digest. Nothing on these pages is typed by hand.

All accuracies are percent of the test images. On one stage-1 model ± is the deviation over the seeds
of stage 2, which is the noise of batch order alone. With several stage-1 models it is that over these."""
_PLACE = "The place of LOS is that among all methods but `stage1` and `ce`."
_CLAIMED = f"""Two methods are told apart where the 95 % interval of their difference excludes zero and the p
of McNemar's test, corrected by Holm, is below {TOLD_APART}. With several stage-1 models a paired t test over
these decides, with the same correction; the p beside a t is before it. docs/methods.md says how all of
this is computed."""
_BESIDE = """LOS at each ratio, with many/medium/few; n are the seeds of stage 2 on one stage-1 model. Ours
are on the fixed plain features of packs, with published settings or all chosen on validation. UNKNOWN: nobody
whom we could read tells it."""
_READ = f"""LoMa and RSD are `per_sample`: means over the classes, with the spread over these in brackets.
{CHOSEN_EPOCH}. {EDGE} behind a value: the least or largest that was tried. * marks the best of a column.

In the tables of one stage-1 model, {COMPARED}
With several stage-1 models, the difference on each of them is one value of a paired t test."""


def render(paths: Sequence[Path]) -> dict[str, str]:
    """The text of RESULTS.md and of a page for each csv file, by their names in the folder above these.

    Raises:
        UserError: a file is none, or mixes protocols.
    """
    tables = {path: read_results(path) for path in paths}
    tables = dict(sorted(tables.items(), key=lambda table: _place(table[1][0])))
    sets = sorted({rows[0]["dataset"] for rows in tables.values()})
    brief = len(sets) == 1
    claims = [claim for rows in tables.values() if (claim := _claim(rows, brief))]
    parts = [_HEAD, "## Overview", f"{_PLACE} All tables are of {' and '.join(sets)}."]
    parts += [markdown_lines([_OVERVIEW, *(_overview(path, rows, brief) for path, rows in tables.items())])]
    parts += ["## Claims and their evidence", _CLAIMED, _counted(claims)]
    parts += [markdown_lines([_CLAIMS, *(claim["line"] for claim in claims)])]
    if shown := [path for path in paths if path.name == file_of(RATIOS[0], STEMS["ResNet-34"], "val")]:
        parts += ["## Beside the published figures", _BESIDE, published_table(shown[0].parent).rstrip()]
        parts += ["## Not run", _missing({path.stem for path in paths})]
    pages = {f"results/{path.stem}.md": _page(path, rows) for path, rows in tables.items()}
    return {"RESULTS.md": "\n\n".join(parts) + "\n", **pages}


def write_pages(paths: Sequence[Path], folder: Path) -> Path:
    """Write all pages below `folder`, and the tables of methods where README.md and docs/ lie there too."""
    for name, text in render(paths).items():
        write_atomically(folder / name, lambda handle, text=text: handle.write(text.encode()))
    results = folder / "results"
    shown = {file_of(RATIOS[0], stem, select) for stem in STEMS.values() for select in _CHOSEN}
    shown = shown <= {path.name for path in paths if path.parent == results}
    if shown and (folder / "README.md").exists():
        put(folder / "README.md", "published", COMMAND, published_table(results, brief=True))
    for page, methods in (("README.md", _SIX), ("docs/methods.md", None)):
        if shown and (folder / page).exists():
            put(folder / page, "methods", COMMAND, methods_table(results, methods))
    if shown and (folder / "docs" / "methods.md").exists():
        put(folder / "docs" / "methods.md", "ratios", COMMAND, ratios_table(paths))
        put(folder / "docs" / "methods.md", "own", COMMAND, own_table(results))
    for page, name, table in measured_tables(folder / "docs"):
        put(page, name, COMMAND, table)
    return folder / "RESULTS.md"


def measured_tables(docs: Path) -> Iterator[tuple[Path, str, str]]:
    """The tables that pages in docs/ have of docs/PAGE/NAME.csv as it stands: page, name and text.

    A column that holds the same in all rows, as the machine does, is not shown.
    """
    for path in sorted(docs.glob("*/*.csv")):
        page = path.parent.with_suffix(".md")
        if page.exists() and f"<!-- {path.stem}: {COMMAND} -->" in page.read_text(encoding="utf-8"):
            frame = read_table(path, dtype=str, keep_default_na=False)
            frame = frame.loc[:, frame.nunique() > 1]
            yield page, path.stem, markdown_lines([list(frame), *frame.values.tolist()]) + "\n"


def ratios_table(paths: Sequence[Path]) -> str:
    """LOS minus its control over fresh views, published and by validation, a line a recipe and ratio."""
    lines, stage1 = {}, {}
    tables = sorted((read_results(path) for path in paths), key=lambda rows: _place(rows[0]))
    for rows in (rows for rows in tables if rows[0]["views"] == "fresh"):
        name = _name(rows[0], brief=True).removesuffix(", fresh views")
        found = [row["overall"] for row in rows if row["method"] == "stage1" and row["n"]]
        stage1[name] = max(stage1.get(name, []), found, key=len)
        claim = _claim(rows, brief=True) or {"control": ("", NOT_RUN)}
        lines.setdefault(name, {})[rows[0]["selected_on"]] = claim["control"][1]
    table = [
        [name, _spread(stage1[name]) if stage1[name] else NOT_RUN]
        + [line.get(select, NOT_RUN) for select in ("last", "val")]
        for name, line in lines.items()
    ]
    return markdown_lines([["stage 1", "`stage1`", "published settings", "by validation"], *table]) + "\n"


def methods_table(results: Path, methods: Sequence[str] | None = None) -> str:
    """Overall accuracy of methods (None: of all) with published settings and chosen on validation."""
    columns = {
        f"{network}, {title}": done_rows(results / file_of(RATIOS[0], stem, select))
        for network, stem in STEMS.items()
        for select, title in _CHOSEN.items()
    }
    first, chosen, *_ = columns.values()
    order = methods or sorted(first, key=lambda n: -float(percent(chosen.get(n, first[n])["overall"])))
    lines = [["method", *columns]]
    for name in order:
        found = [share(rows[name], "overall") if name in rows else NOT_RUN for rows in columns.values()]
        lines.append([f"`{name}`", *found])
    return markdown_lines(lines) + "\n"


def _name(row: dict, brief: bool = False) -> str:
    """What a table is of; `brief`: without the data set that all tables of a page share."""
    ratio, recipe = row["imb_ratio"] and f"ratio {row['imb_ratio']}", f"`{row['recipe'] or 'preset'}`"
    views = _SHORT_VIEWS.get(row["views"], f"{row['views']} views")
    words = [row["dataset"] * (not brief), ratio, row["network"], recipe]
    return ", ".join(filter(None, [*words, row["stage2"] and f"`{row['stage2']}`", views]))


def _place(row: dict) -> tuple:
    """Where a table stands: the ratios of a set and network together, the mildest last."""
    order = (row["recipe"], row["stage2"], row["views"], row["selected_on"])
    return row["dataset"], row["network"], -float(row["imb_ratio"] or 0), *order


def _overview(path: Path, rows: list[dict], brief: bool) -> list[str]:
    """The line of a table: stage 1, control and LOS, and what is best beside them, overall accuracy."""
    first, frame = rows[0], pd.DataFrame(rows)
    seeds, done = frame["stage1_seed"].nunique(), frame.dropna(subset="overall")
    found = done.groupby("method", sort=False)["overall"].apply(list)
    whole = {name: values for name, values in found.items() if len(values) == seeds}
    means = {name: fmean(values) for name, values in whole.items() if name not in ("stage1", "ce")}
    order = sorted(means, key=lambda name: -means[name])  # of equals the one that the table has first
    ahead = [name for name in order if means[name] > means.get("los", 0)]
    others = [name for name in order if name != "los"]
    return [
        f"[{_name(first, brief)}](results/{path.stem}.md)",
        first["selected_on"],
        f"{done['stage1_seed'].nunique()} of {seeds}",
        *(_spread(whole[base]) if base in whole else NOT_RUN for base in _BASES),
        f"{len(ahead) + 1} of {len(order)}" if "los" in order else "-",
        f"{others[0]} {_spread(whole[others[0]])}" if others else "-",
    ]


def _against(rows: list[dict], reference: str) -> dict[str, tuple[float, str, bool]]:
    """Method -> its difference to another one: a number, in words, and whether the two are told apart."""
    minus, found = f"minus_{reference}", {}
    for row in rows:  # those of the reference itself and those that were not run have none
        if row["method"] != "stage1" and row.get(minus) is not None:
            found.setdefault(row["method"], []).append(row)
    if len({row["stage1_seed"] for row in rows if row["overall"] is not None}) == 1:
        return {n: (r[minus], difference(r, reference), told_apart(r, reference)) for n, [r] in found.items()}
    lists = [[row[minus] for row in own] for own in found.values()]
    corrected = holm([_paired_test(values)[1] for values in lists])
    apart = [p is not None and p < TOLD_APART for p in corrected]
    return {n: (fmean(v), _paired(v), a) for n, v, a in zip(found, lists, apart, strict=True)}


def _claim(rows: list[dict], brief: bool) -> dict | None:
    """What a table says of LOS: against its control, and against each of the others."""
    control, others = _against(rows, "ce").get("los"), _against(rows, "los")
    others.pop("ce", None)
    if control is None:
        return None
    best = max(others, key=lambda name: others[name][0], default=None)
    ahead = [name for name, (number, _, apart) in others.items() if apart and number > 0]
    behind = [name for name, (number, _, apart) in others.items() if apart and number < 0]
    more = f" and {len(ahead) - MOST_NAMED} others" if len(ahead) > MOST_NAMED else ""
    best_told = f"{best} {others[best][1]}" if best else "-"
    line = [_name(rows[0], brief), rows[0]["selected_on"], control[1], best_told]
    line += [f"{', '.join(ahead[:MOST_NAMED])}{more}" or "none"]
    line += [str(len(others) - len(ahead) - len(behind)), str(len(behind))]
    first = best is not None and others[best][0] <= 0
    return {"line": line, "control": control, "ahead": ahead, "first": first}


def _counted(claims: Sequence[dict]) -> str:
    above = [claim["control"] for claim in claims if claim["control"][0] > 0]
    apart, first = sum(told for _, _, told in above), sum(claim["first"] for claim in claims)
    beaten = sum(bool(claim["ahead"]) for claim in claims)
    return (
        f"In {len(above)} of {len(claims)} tables LOS is above its control `ce`; in {apart} it is told apart "
        f"from it. In {first} it has the highest figure. In {beaten} another one is above it and told apart."
    )


def _missing(names: set[str]) -> str:
    """The protocols of the grids that come with the code of which there is no csv file."""
    found: dict[str, list[str]] = {}
    for grid in sorted(path.stem for path in GRIDS.glob("*.toml")):
        facts = [cell.protocol | {"selected_on": s} for cell in read_grid(grid) for s in cell.selections]
        for row in (row for row in facts if slug(row, NAMED_BY) not in names):
            found.setdefault(f"- {_name(row)} (`--grid {grid}`), selected on", []).append(row["selected_on"])
    lines = [f"{what} {' and '.join(dict.fromkeys(selections))}" for what, selections in found.items()]
    return "\n".join(lines) or "Every protocol of the grids that come with the code was run."


def _page(path: Path, rows: list[dict]) -> str:
    """The page of one csv file: a table of each stage-1 model, and before them one over all of these."""
    first = rows[0]
    select, recipe = first["selected_on"], f"`{first['recipe'] or 'preset'}`"
    parts = [
        f"# {_name(first)}, selected on {select}",
        f"[{path.name}]({path.name}). Stage 1: {recipe}. Training features: "
        f"{_VIEWS.get(first['views'], first['views'] + ' cached views')}. Selection: "
        f"{SELECTIONS.get(select, select)}. Settings: {BUDGETS.get(first['budget'], 'unknown')}. "
        f"Training images: sha256 {first['data'] or 'unknown'}.",
        _READ,
    ]
    seeds = list(dict.fromkeys(row["stage1_seed"] for row in rows))
    if len(seeds) > 1:
        parts += [f"Over {len(seeds)} seeds of stage 1:", _over_seeds(pd.DataFrame(rows), len(seeds))]
    for seed in seeds:
        own = [row for row in rows if row["stage1_seed"] == seed]
        header, *lines = cells(own)
        for row, line in zip(own, lines, strict=True):
            line[-1] = NOT_RUN if row["status"] == NOT_RUN else line[-1]
        parts += [_told(own[0]), markdown_lines([header, *lines])]
    return "\n\n".join(parts) + "\n"


def _told(first: dict) -> str:
    """Of which stage 1 a table is, and at what cost."""
    if first["status"] == NOT_RUN and not first["stage1_digest"]:
        return f"Stage 1, seed {first['stage1_seed']}: {NOT_RUN}."
    overall = f", overall {percent(first['stage1_overall'])}" if first["stage1_overall"] else ""
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


def _paired_test(differences: list[float]) -> tuple[float, float | None]:
    """t and p of a paired t test of differences on the same stage 1; p None: it has none."""
    if len(differences) < 2 or not stdev(differences):
        return 0.0, None
    from scipy.stats import ttest_1samp  # here: it takes a second to load

    return tuple(map(float, ttest_1samp(differences, 0)))


def _paired(differences: list[float]) -> str:
    """Differences on the same stage 1: their mean and deviation, and a paired t test."""
    if len(differences) < 2:
        return "-"
    mean, deviation = 100 * fmean(differences), 100 * stdev(differences)
    t, p = _paired_test(differences)
    tested = "" if p is None else f", t {t:.3g}, p {p:.2g}"
    return f"{mean:+.2f} ± {deviation:.2f} (n {len(differences)}{tested})"


def _spread(values: list[float]) -> str:
    if not values or isnan(sum(values)):
        return "-"
    return percent(fmean(values)) + (f" ± {percent(stdev(values))}" if len(values) > 1 else "")
