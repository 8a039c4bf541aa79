"""What the csv rows say about the paper's statements: rows of statements.csv, a figure each.

A rule, the same for every pack, says whether a statement holds there. `holds` is empty where it cannot be
tested.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from utils.metrics.accuracy import GROUPS

EVEN = 0.25  # the groups' LoMa counts as nearly equal up to this difference, relative to its mean
NEAR = 0.5  # points of accuracy that a setting may lack of the best one
CLEAR = 0.01  # p of a paired test
RANKED = 0.5  # a rank correlation counts from here
FEWEST = 5  # heads, for a rank correlation

Tables = dict[str, pd.DataFrame]
Found = tuple[str, object, dict[str, float]]  # pack, holds, figures by name


@dataclass(frozen=True)
class Statement:
    """What the paper says, in our words; the rule, in words and as code; what a verdict is limited to."""

    name: str
    paper: str
    rule: str
    find: Callable[[Tables], Iterator[Found]]
    limit: str = ""


def unevenness(heads: pd.DataFrame, reading: str = "per_sample") -> pd.Series:
    """Largest less smallest LoMa of the shot groups, relative to the mean over classes."""
    groups = heads[[f"test_loma_{reading}_{name}" for name in GROUPS]]
    return (groups.max(axis=1) - groups.min(axis=1)) / heads[f"test_loma_{reading}_all"]


def los_heads(heads: pd.DataFrame) -> pd.DataFrame:
    """Every trained head of LOS once, the control (δ = 0) left out."""
    return heads[heads["label_smooth"] > 0].drop_duplicates(["pack", "setting"])


def _of(heads: pd.DataFrame, gain: pd.Series) -> pd.DataFrame:
    """The head of a row of gains.csv."""
    same = heads["pack"] == gain["pack"]
    for name in ("label_smooth", "lr", "epochs"):
        same &= heads[name] == gain[name]
    return heads[same].iloc[:1]


def _gains(tables: Tables, chosen_by: str) -> Iterator[tuple[pd.Series, pd.DataFrame]]:
    """Every pack's row of gains.csv with the rows of its heads."""
    for _, gain in tables["gains"].query("chosen_by == @chosen_by").iterrows():
        yield gain, tables["heads"][tables["heads"]["pack"] == gain["pack"]]


def _gain(tables: Tables) -> Iterator[Found]:
    for gain, _ in _gains(tables, "preset"):
        holds = gain["test_minus_ce"] > 0 and gain["p_ce"] < CLEAR
        yield gain["pack"], holds, {"points over ce": gain["test_minus_ce"], "p": gain["p_ce"]}


def _equal(tables: Tables) -> Iterator[Found]:
    for gain, heads in _gains(tables, "preset"):
        start, end = heads[heads["method"] == "stage1"], _of(heads, gain)
        figures = {
            f"{name}{suffix}": float(unevenness(head, reading).iloc[0])
            for reading, suffix in (("per_sample", ""), ("per_class", " (per_class)"))
            for name, head in (("stage 1", start), ("LOS", end))
        }
        yield gain["pack"], figures["LOS"] <= EVEN, figures


def _even_heads(tables: Tables) -> Iterator[tuple[str, pd.DataFrame]]:
    heads = los_heads(tables["heads"])
    for pack, rows in heads.groupby("pack", sort=False):
        yield pack, rows[unevenness(rows) <= EVEN]


def _small(tables: Tables) -> Iterator[Found]:
    for pack, rows in _even_heads(tables):
        rho, figures = _rank_correlation(rows, "test_loma_per_sample_all", "test_balanced")
        yield pack, None if rho is None else rho <= -RANKED, figures


def _disturbed(tables: Tables) -> Iterator[Found]:
    for pack, rows in _even_heads(tables):
        rho, figures = _rank_correlation(rows, "test_loma_per_sample_all", "test_rsd_per_sample_all")
        yield pack, None if rho is None else rho >= RANKED, figures


def _rank_correlation(rows: pd.DataFrame, one: str, other: str) -> tuple[float | None, dict[str, float]]:
    rows = rows.dropna(subset=[one, other])
    if len(rows) < FEWEST:
        return None, {"heads": len(rows)}
    rho = float(spearmanr(rows[one], rows[other]).statistic)
    return rho, {"heads": len(rows), "rank correlation": rho}


def _rsd(tables: Tables) -> Iterator[Found]:
    for pack, rows in tables["methods"].groupby("pack", sort=False):
        rho, figures = _rank_correlation(rows, "rsd", "balanced")
        figures |= {
            "smallest": rows["rsd"].min(),
            "median": rows["rsd"].median(),
            "largest": rows["rsd"].max(),
        }
        yield pack, None if rho is None else rho <= -RANKED, figures


def _label(tables: Tables) -> Iterator[Found]:
    for gain, heads in _gains(tables, "preset"):
        sweep = heads[heads["study"] == "delta"]
        best, own = sweep.loc[sweep["val_balanced"].idxmax()], _of(sweep, gain).iloc[0]
        lacks = best["val_balanced"] - own["val_balanced"]
        figures = {"best δ": best["label_smooth"], "its label × K": best["label_times_classes"]}
        figures |= {"the preset's × K": own["label_times_classes"], "points it lacks": lacks}
        yield gain["pack"], lacks <= NEAR, figures


def _best(tables: Tables) -> Iterator[Found]:
    for pack, rows in tables["methods"].groupby("pack", sort=False):
        los = rows[rows["method"] == "los"].iloc[0]
        others = rows[~rows["method"].isin(["los", "ce", "stage1"])].dropna(subset="overall")
        ahead = others[others["overall"] > los["overall"]]
        clear, behind = ((some["p_los"] < CLEAR).sum() for some in (ahead, others.drop(ahead.index)))
        figures = {"of others": len(others), "ahead": len(ahead), "clearly": clear, "clearly behind": behind}
        yield pack, len(ahead) == 0, figures


def _nothing(tables: Tables) -> Iterator[Found]:
    yield from ((pack, None, {}) for pack in tables["packs"]["pack"])


STATEMENTS = (
    Statement(
        "gain",
        "LOS re-trains a better classifier without the class counts",
        f"accuracy over the control, preset; holds at p < {CLEAR:g}",
        _gain,
    ),
    Statement(
        "best",
        "It does so better than the other re-training methods",
        f"methods ahead of LOS, settings of their sources; clearly: p < {CLEAR:g}; holds where none is ahead",
        _best,
        limit=", with these settings",
    ),
    Statement(
        "equal",
        "After LOS the logits magnitude (LoMa) is nearly the same for frequent and rare classes",
        "difference of the largest and smallest group, relative to the mean, preset; holds up to "
        f"{EVEN:g} (per_sample)",
        _equal,
    ),
    Statement(
        "small",
        "Once LoMa is nearly equal, a smaller one means fewer errors",
        f"LOS heads up to that {EVEN:g}: rank correlation of LoMa with accuracy; holds up to −{RANKED:g}, "
        f"tested from {FEWEST} heads on",
        _small,
    ),
    Statement(
        "disturbed",
        "and less disturbance (RSD)",
        f"the same heads: rank correlation of LoMa with RSD; holds from {RANKED:g} on",
        _disturbed,
    ),
    Statement(
        "rsd",
        "RSD tells good classifiers from bad ones on one representation",
        f"RSD of all methods, and its rank correlation with accuracy; holds up to −{RANKED:g}",
        _rsd,
    ),
    Statement(
        "label",
        "The true class's label should be only slightly above 1/K",
        f"what the preset's δ lacks of the best δ on validation; holds up to {NEAR:g} points",
        _label,
    ),
    Statement(
        "representation",
        "Simple regularisation makes the representation that such a classifier needs",
        "needs backbones trained with and without it; a pack holds one",
        _nothing,
    ),
)


def statement_rows(tables: Tables) -> list[dict]:
    """Rows of statements.csv; a pack without a figure has one row without one."""
    return [
        {"statement": one.name, "pack": pack, "holds": holds, "figure": name, "value": value}
        for one in STATEMENTS
        for pack, holds, figures in one.find(tables)
        for name, value in (figures or {"": None}).items()
    ]


def verdict(holds: pd.Series) -> str:
    """In a word, from `holds` [packs]: True, False, or not a number where it cannot be tested."""
    tested = holds.dropna().astype(bool)
    if tested.empty:
        return "not testable"
    if tested.all():
        told = "confirmed"
    elif not tested.any():
        told = "not confirmed"
    else:
        told = f"confirmed on {tested.sum()} of {len(tested)} packs"
    rest = len(holds) - len(tested)
    return told if not rest else f"{told}; not testable on {rest}"
