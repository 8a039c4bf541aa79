"""The table of a run: paired tests, means over seeds, order, stars, and the lines that tell heads apart."""

import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch

from tests.helpers import run_folder, run_stage2
from tests.stage2 import frozen_features, read_table, result_lines, settle, trained
from utils.base.errors import UserError
from utils.heads.outcome import Outcome, outcome
from utils.heads.plan import plan_heads
from utils.metrics.paired import bootstrap, holm, mcnemar
from utils.report.table import (
    WIDTH,
    aligned,
    at_edge,
    brief_caption,
    caption,
    cells,
    label_of,
    markdown_lines,
    table_rows,
)

SCORES = ("overall", "many", "medium", "few", "balanced")
ARGV = ["--method", "los,ce,crt,ncm", "--seeds", "0,1,2"]
ARGV += ["--finetune_epoch", "2", "--label_smooth", "0.9,0.5"]
FACTS = {"budget": "source", "selected_on": "last"}


@pytest.fixture(scope="module")
def outcomes(digits) -> list[Outcome]:
    """The heads of a run with sweeps and seeds, scored on test."""
    frozen = frozen_features(digits, "--views", "0")
    return [outcome(head) for head in trained(settle(digits, *ARGV), frozen)]


@pytest.fixture(scope="module")
def rows(outcomes) -> list[dict]:
    return table_rows(outcomes, [], outcomes[0].head.frozen.labels["test"], FACTS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits) -> tuple:
    """The same by the script: its text and its folder."""
    root = tmp_path_factory.mktemp("compared")
    text = run_stage2(root, "--pretrained_pth", digits.stage1, *ARGV)
    return text, run_folder(root, "stage2")


def head_of(one: Outcome) -> tuple[str, str]:
    return one.head.plan.method.name, one.head.plan.setting


def cells_of(page: str) -> list[list[str]]:
    """The cells of the table in an HTML page, a header first."""
    lines = re.findall("<tr>(.*?)</tr>", page, re.DOTALL)
    return [[unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines]


# ---- rows


def test_rows_start_with_stage_1_then_the_most_accurate_a_row_a_method_and_setting(rows):
    assert rows[0]["method"] == "stage1" and len(rows) == 6
    overall = [row["overall"] for row in rows[1:]]
    assert overall == sorted(overall, reverse=True) and overall[0] > overall[-1]
    assert rows[0]["overall"] < overall[0]  # stage 1 is not first for its accuracy
    assert {(row["method"], row["n"]) for row in rows} == {
        *(("stage1", 1), ("los", 3), ("ce", 3), ("crt", 3), ("ncm", 1))
    }
    assert all(row.items() >= FACTS.items() and row["failed"] is None for row in rows)


def test_figures_of_a_row_are_means_and_deviations_over_its_seeds(outcomes, rows):
    for row in rows:
        own = [one.figures for one in outcomes if head_of(one) == (row["method"], row["setting"])]
        for name in (*SCORES, "calibration_error"):
            values = pd.Series([figures[name] for figures in own])
            assert row[name] == pytest.approx(values.mean())
            if len(own) == 1:
                assert row[f"{name}_std"] is None
            else:
                assert row[f"{name}_std"] == pytest.approx(values.std(), abs=1e-12)
    assert max(row["overall_std"] for row in rows if row["n"] > 1) > 0


def test_differences_and_tests_are_to_the_first_setting_and_seed_of_ce_and_los(outcomes, rows):
    targets = outcomes[0].head.frozen.labels["test"]
    first = {}
    for one in outcomes:
        first.setdefault(head_of(one), one)
    reference = {row["method"]: row for row in reversed(rows)}
    reference["los"] = next(row for row in rows if row["method"] == "los" and "smooth=0.9" in row["setting"])
    for row in rows:
        for name in ("ce", "los"):
            other = reference[name]
            if other is row:
                assert f"minus_{name}" not in row and f"p_{name}" not in row
                continue
            assert row[f"minus_{name}"] == pytest.approx(row["overall"] - other["overall"])
            assert row[f"minus_{name}_low"] < row[f"minus_{name}"] < row[f"minus_{name}_high"]
            ours, theirs = (first[entry["method"], entry["setting"]].predicted for entry in (row, other))
            assert row[f"p_{name}"] == mcnemar(ours, theirs, targets)


def test_intervals_are_over_draws_of_the_mean_of_the_seeds_and_p_is_corrected_over_the_rows(outcomes, rows):
    targets = outcomes[0].head.frozen.labels["test"]
    hits = {}
    for one in outcomes:
        hits.setdefault(head_of(one), []).append((one.predicted == targets).double())
    los, crt = (head for head in hits if head[0] == "crt" or "smooth=0.9" in head[1])
    draws = bootstrap(np.stack([torch.stack(hits[head]).mean(dim=0).numpy() for head in (los, crt)]), targets)
    row = next(row for row in rows if row["method"] == "crt")
    low, high = np.quantile(draws[1] - draws[0], (0.025, 0.975))
    assert (row["minus_los_low"], row["minus_los_high"]) == pytest.approx((low, high), abs=1e-6)
    for name in ("ce", "los"):
        tested = [row for row in rows if f"p_{name}" in row]
        assert [r[f"p_{name}_holm"] for r in tested] == holm([r[f"p_{name}"] for r in tested])
        shown = dict(zip(*cells(tested)[:2], strict=True))[f"to {name}"]
        assert shown.endswith(f"(p {tested[0][f'p_{name}_holm']:.2g})") and " [" in shown
    best = max(row["overall"] for row in rows)
    assert [row["relative_accuracy"] for row in rows] == [row["overall"] / best for row in rows]


def test_a_table_of_heads_with_other_test_images_is_refused(outcomes):
    with pytest.raises(UserError, match="need the same test images: los has 500, the table 7"):
        table_rows(outcomes[1:], [], torch.arange(7), FACTS)


def test_an_option_is_at_an_edge_where_the_least_or_largest_of_several_values_was_taken():
    tried = [f"finetune_lr={lr} rho={rho} alpha=2" for lr in ("0.1", "1", "10") for rho in ("0.6", "0.9")]
    assert at_edge("finetune_lr=1 rho=0.9 alpha=2", tried) == ["rho"]
    assert at_edge("finetune_lr=10 rho=0.6 alpha=2", tried) == ["finetune_lr", "rho"]
    assert at_edge("", [""]) == []


def test_rows_say_what_was_learned_when_and_at_which_rate(rows):
    by_method = {row["method"]: row for row in rows}
    assert {name: row["learned"] for name, row in by_method.items()} == {
        **{"stage1": 0, "los": 650, "ce": 650, "crt": 650, "ncm": 0}
    }
    assert by_method["crt"]["lr"] == pytest.approx(0.025) and by_method["ce"]["lr"] == 1e-3
    assert {row["chosen_epoch"] for row in rows} == {0, 2}
    assert all(row["seconds"] > 0 for row in rows)


def test_failed_heads_come_last_with_their_reason(digits, outcomes):
    frozen = outcomes[0].head.frozen
    config = settle(digits, "--method", "ce,crt", "--finetune_lr", "1e38,0.1", "--finetune_epoch", "3")
    heads = trained(config, frozen)
    failed = [head for head in heads if head.failed]
    assert [head.plan.method.name for head in failed] == ["ce", "crt"]
    left = [outcome(head) for head in heads if not head.failed]
    rows = table_rows(left, failed, frozen.labels["test"], FACTS)
    assert [(row["method"], row["n"]) for row in rows[-2:]] == [("ce", 0), ("crt", 0)]
    assert [row["failed"] for row in rows] == [None] * 3 + [head.failure for head in failed]
    for line in cells(rows)[-2:]:
        assert "failed: the loss is" in line[-1] and set(line[2:-1]) == {"-"}


# ---- the csv files of a run


def test_the_table_of_a_run_can_be_recomputed_from_its_rows_by_class_and_head(finished):
    _, folder = finished
    table, classes = read_table(folder), read_table(folder, "per_class")
    assert classes.groupby(["method", "setting", "seed"]).ngroups == 14 and len(classes) == 140
    groups = {"many": [0], "medium": [1, 2, 3], "few": [4, 5, 6, 7, 8, 9]}
    for row in table.itertuples():
        own = classes.query("method == @row.method and setting == @row.setting")
        per_head = own.groupby("seed")
        assert row.n == per_head.ngroups
        for name, members in groups.items():
            values = own[own["class"].isin(members)].groupby("seed")["accuracy"].mean()
            assert getattr(row, name) == pytest.approx(values.mean())
            if row.n > 1:
                assert getattr(row, f"{name}_std") == pytest.approx(values.std(), abs=1e-12)
        for name in ("loma", "rsd", "train_loma", "train_rsd"):
            for reading in ("per_sample", "per_class"):
                column = f"{name}_{reading}"
                found = f"{name}{'_per_class' if reading == 'per_class' else ''}"
                assert getattr(row, found) == pytest.approx(per_head[column].mean().mean())
                spread = per_head[column].std(ddof=0).mean()
                assert getattr(row, f"{found}_spread") == pytest.approx(spread)


# ---- for people


def test_markdown_and_the_aligned_table_have_the_same_cells(rows):
    expected = cells(rows)
    lines = markdown_lines(expected).splitlines()
    assert set(lines[1]) <= set("| -")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert table == expected


def test_report_html_holds_table_pictures_and_settings_and_asks_for_nothing_else(finished):
    _, folder = finished
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import", text)
    assert text.count("data:image/png;base64,") == len(list((folder / "plots").glob("*.png"))) > 0
    table = (folder / "table.md").read_text().splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:8])]
    assert cells_of(text) == lines
    assert '"finetune_epoch"' in text and "this run selected nothing" in text


def test_a_click_on_a_column_of_report_html_sorts_by_it(finished, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no headless browser here")
    text = (finished[1] / "report.html").read_text()
    header = cells_of(text)[0]
    for clicks, title in ((1, "overall"), (2, "overall"), (1, "learned")):
        place = header.index(title)
        script = f"for (let i = 0; i < {clicks}; i++) document.querySelectorAll('th')[{place}].click()"
        (tmp_path / "page.html").write_text(f"{text}<script>{script}</script>")
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/own"]
        words += ["--dump-dom", f"file://{tmp_path}/page.html"]
        done = subprocess.run(words, capture_output=True, check=True, text=True, timeout=500)
        words = [line[place].partition(" ")[0].rstrip("*") for line in cells_of(done.stdout)[1:]]
        figures = [float(word.replace(",", "")) for word in words]
        assert figures == sorted(figures, reverse=clicks == 1) and figures[0] != figures[-1]


def test_where_stage_1_is_best_on_validation_no_other_is_advised(rows):
    stage1, other = (row | {"selected_on": "val"} for row in rows[:2])
    other["val_score"] = 0.5
    against = {
        "minus_best_low": -0.1,
        "minus_best_high": 0.1,
        "minus_best": 0.0,
        "p_best_holm": 1.0,
        "p_best": 1.0,
    }
    for score, said in (
        (0.4, f"Take {other['method']} (50.00"),
        (0.6, "Take none of them: stage1 is better (60.00"),
    ):
        assert brief_caption([stage1 | against | {"val_score": score}, other])[-1].startswith(said)


def test_the_table_on_the_terminal_fits_its_width_and_has_the_same_figures(rows):
    header, *expected = cells(rows, brief=True)
    shown = aligned(rows)
    assert max(map(len, shown)) <= WIDTH == 100 and shown[0].split() == " ".join(header).split()
    whole = [dict(zip(cells(rows)[0], line, strict=True)) for line in cells(rows)[1:]]
    for line, row, text in zip(expected, whole, shown[1:], strict=True):
        for name, cell in zip(header, line, strict=True):
            assert row[name].startswith(cell.rstrip("*")) and cell in text
    assert len({len(line) for line in shown}) == 1  # figures end in one place


def test_the_best_of_each_column_has_a_star_least_where_less_is_better(rows):
    table = pd.DataFrame(cells(rows)[1:], columns=cells(rows)[0])
    keys = {name: name for name in SCORES}
    keys |= {"F1": "macro_f1", "worst tenth": "worst_tenth"}
    low = {"ECE": "calibration_error", "LoMa (spread)": "loma_unevenness", "RSD (spread)": "rsd"}
    keys |= low
    assert all(row["loma_unevenness"] == row["loma_spread"] / row["loma"] for row in rows)
    for title, key in keys.items():
        values = [row[key] for row in rows]
        best = min(values) if title in low else max(values)
        assert [cell.endswith("*") for cell in table[title]] == [value == best for value in values], title
    for title in set(table) - set(keys):
        assert not table[title].str.contains("*", regex=False).any()


def test_what_cannot_be_is_a_dash_and_a_single_row_has_no_star(rows):
    row = rows[1] | {"many": None, "many_std": None, "loma": None}
    header, [*line] = cells([row])
    shown = dict(zip(header, line, strict=True))
    assert shown["many"] == "-" and shown["LoMa (spread)"] == "-" and "*" not in "".join(line)
    assert shown["overall"].count("±") == (row["n"] > 1)


def test_the_captions_in_log_and_folder_say_what_selected(finished):
    text, folder = finished
    written = (folder / "table.md").read_text()
    assert "this run selected nothing" in text and "table.md" in text
    for line in ("this run selected nothing", "500 test images", "noise of batch order", "corrected by Holm"):
        assert line in written
    assert "Settings: as in each method's source; published but for " in written
    kinds = written.partition("published but for ")[2].partition(".\n")[0]
    assert kinds == "ours los (lr wd), ce (lr wd); given los (epochs label_smooth), ce (epochs), crt (epochs)"
    assert "[2 rows" not in text and "nan" not in text


def test_the_caption_counts_classes_with_few_validation_images_and_those_without_rsd(
    outcomes, rows, monkeypatch
):
    selected = [row | {"selected_on": "val", "rsd_left_out": 0} for row in rows]
    selected[-1] |= {"rsd_left_out": 2.5}
    few = torch.tensor([0, 0, 1, 1, 1, 9])
    monkeypatch.setitem(outcomes[0].head.frozen.labels, "val", few)
    text = caption(selected, outcomes)
    assert "Classes with two or fewer validation images: 9 of 10." in text
    assert f"RSD leaves out classes whose LoMa is not above 0: 2.5 of {rows[-1]['method']}." in text


# ---- result lines


def test_a_result_line_a_head_tells_sweeps_and_seeds_apart_and_the_published_head_is_last(finished):
    text, folder = finished
    lines = result_lines(text)
    assert len(lines) == 13 and "stage1" not in {line["method"] for line in lines}
    told = [(line["method"], line.get("label_smooth"), line.get("seed")) for line in lines]
    expected = [("los", delta, seed) for delta in ("0.9", "0.5") for seed in "012"]
    expected += [*(("ce", None, seed) for seed in "012"), *(("crt", None, seed) for seed in "012")]
    expected += [("ncm", None, None)]
    assert told == [*expected[1:], expected[0]]
    classes = read_table(folder, "per_class")
    for line in lines:
        own = classes.query("method == @line['method']")
        own = own[own["setting"].str.contains(f"label_smooth={line.get('label_smooth')}") | (len(own) < 40)]
        own = own[own["seed"] == int(line.get("seed", 0))]
        few = own[own["train_images"] < 20]["accuracy"].mean()
        assert len(own) == 10 and float(line["few"]) == pytest.approx(few, abs=0.006)


def test_a_label_names_what_differs_among_the_heads_of_its_method_and_nothing_else(digits):
    argv = ("--method", "wb,marc,ce", "--rho", "1,2", "--finetune_wd", "0,0.1", "--seeds", "3,4")
    plans = plan_heads(settle(digits, *argv))[0][1:]
    labels = [label_of(plan, plans) for plan in plans]
    assert len(set(labels)) == len(labels) == 4 + 8 + 4
    assert labels[2] == "method=wb finetune_wd=0.1 seed=3"
    assert labels[6] == "method=marc finetune_wd=0.1 rho=1 seed=3"
    [alone] = plan_heads(settle(digits, "--method", "wb"))[0][1:]
    assert label_of(alone, [alone]) == "method=wb"
