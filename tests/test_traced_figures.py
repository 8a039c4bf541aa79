"""The figures of the README's tables are those of the csv files in results/ and docs/speed/."""

import re
from pathlib import Path

import pandas as pd
import pytest

from utils.metrics.accuracy import percent
from utils.report.table import cells
from utils.reproduce.cell import read_rows
from utils.reproduce.results import _NEEDED, _typed

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
THIN = "cifar100_lt_IR=100_resnet32_epochs-60"
# line of the table of representations -> file, are its figures means over seeds of stage 1?
REPRESENTATIONS = {
    "**ResNet-34, published recipe**": "cifar100_lt_IR=100_resnet34_epochs-200_pack_last",
    "ResNet-32, 60 epochs, three seeds": f"{THIN}_fresh_last",
    "ResNet-34, the same, settings chosen": "cifar100_lt_IR=100_resnet34_epochs-200_pack_val",
    "ResNet-32, the same, settings chosen": f"{THIN}_fresh_val",
    "ResNet-32, weak weight decay": f"{THIN}-wd-1e-4_fresh_last",
    "ResNet-32, mixup .2": f"{THIN}-mixup-0.2_fresh_last",
}


def results(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / f"{name}.csv")


def table_below(header: str, page: str = README) -> list[list[str]]:
    """The cells of a page's table with this beginning of its header line."""
    lines = page[page.index(f"\n{header}") + 1 :].splitlines()[2:]
    stop = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:stop]]


def spread(row: pd.Series) -> str:
    """An accuracy and its deviation over seeds of stage 2, where there is one."""
    deviation = "" if pd.isna(row["overall_std"]) else f" ± {percent(row['overall_std'])}"
    return percent(row["overall"]) + deviation


def test_the_table_of_methods_is_that_of_the_csv_files():
    last, val = (
        frame[frame["stage1_seed"] == 0].set_index("method")
        for frame in (results(f"{THIN}_fresh_last"), results(f"{THIN}_fresh_val"))
    )
    rows = table_below("| method | overall | many / medium / few | ECE |")
    assert {row[0] for row in rows} == set(last.index) == set(val.index) and len(rows) == 19
    settings = chosen_settings()
    for name, overall, groups, error, loma, selected, chosen in rows:
        row = last.loc[name]
        assert overall == spread(row), name
        wanted = [100 * row[group] for group in ("many", "medium", "few")]
        assert [float(group) for group in groups.split(" / ")] == pytest.approx(wanted, abs=0.05001), name
        assert float(error) == pytest.approx(100 * row["calibration_error"], abs=0.05001), name
        assert loma == f"{row['loma']:.2f} ({row['loma_spread']:.2f})", name
        assert selected == spread(val.loc[name]), name
        assert chosen.replace("–", "-") == settings[name], name


def chosen_settings() -> dict[str, str]:
    """What stands in the last column of a table, by method, of the heads that validation chose."""
    path = ROOT / "results" / f"{THIN}_fresh_val.csv"
    rows = [_typed(row, path) for row in read_rows(path, _NEEDED) if row["stage1_seed"] == "0"]
    return {row["method"]: line[-1] for row, line in zip(rows, cells(rows)[1:], strict=True)}


def test_epochs_chosen_on_validation_are_printed_as_the_csv_file_has_them():
    settings = chosen_settings()
    assert [settings[name].split()[1] for name in ("crt", "lws", "disalign", "los")] == [
        *("epoch=7/10", "epoch=1/5", "epoch=3/10", "epoch=18/20")
    ]
    page = (
        (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("## Selected on validation")[2]
    )
    assert {row[0]: row[-1] for row in table_below("| method | n |", page)} == settings


@pytest.mark.parametrize("line", REPRESENTATIONS)
def test_the_table_of_representations_is_that_of_the_csv_files(line):
    frame = results(REPRESENTATIONS[line])
    cells = next(row for row in table_below("| representation, ratio 100 |") if row[0].startswith(line))
    means = frame.groupby("method")["overall"].agg(["mean", "std"])
    overall = [re.sub(r"\*| \(.*", "", cell) for cell in cells[1:4]]
    named = dict(zip(("stage1", "ce", "los"), overall, strict=True))
    named |= dict(words.split(" ", 1) for words in cells[4].split(", "))
    assert len(named) >= 5
    for method, figures in named.items():
        value, _, deviation = figures.partition(" ± ")
        assert value == percent(means.loc[method, "mean"]), method
        several = frame["stage1_seed"].nunique() > 1
        own = means.loc[method, "std"] if several else frame.set_index("method").loc[method, "overall_std"]
        if deviation:
            assert float(deviation) == pytest.approx(100 * own, abs=0.00501), method
    best = means["mean"].drop(["stage1", "ce", "los"]).idxmax()
    assert best in named


def test_the_sentence_on_the_milder_ratios_is_that_of_the_csv_files():
    said = re.search(
        r"At ratio 50 LOS comes to ([\d.]+) from ([\d.]+) \(la ([\d.]+)\), "
        r"at ratio 10 to ([\d.]+) from ([\d.]+) \(disalign ([\d.]+)\)",
        README,
    )
    wanted = []
    for ratio, best in ((50, "la"), (10, "disalign")):
        frame = results(f"cifar100_lt_IR={ratio}_resnet32_epochs-60_fresh_last").set_index("method")
        wanted += [percent(frame.loc[name, "overall"]) for name in ("los", "stage1", best)]
        assert frame["overall"].idxmax() == best
    assert list(said.groups()) == wanted


def test_the_tables_of_speed_are_those_of_the_csv_file():
    measured = pd.read_csv(ROOT / "docs" / "speed" / "bench.csv", dtype=str)
    figures = ["ours", "opponent", "ratio", "n", "target"]
    measured["ratio"] = measured[["min", "median", "max"]].agg(" / ".join, axis=1)
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    wanted = measured[["what", "against", "ours", "opponent", "unit", "ratio", "n", "target"]]
    assert table_below("| what | against | ours | opponent | unit |", page) == wanted.to_numpy().tolist()

    left = {tuple(row[figures]): row["reached"] for _, row in measured.iterrows()}
    rows = table_below("| what | against | ours | opponent | ratio |")
    for what, _, ours, opponent, ratio, n, said in rows:
        target, _, missed = re.sub(r"^\.", "0.", said).replace("–", "-").partition(", ")
        reached = left.pop((ours, opponent, ratio, n, target))
        assert (missed == "missed") == (reached == "no"), what
    assert "no" not in left.values(), "a missed target that the README leaves out"
