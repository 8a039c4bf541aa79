"""Stage 1 with --eval_every: what it writes and says, and that it ends, and resumes, at the same bits."""

import re

import pytest

import main_stage1
from tests.helpers import call, read_metrics, refusal, run_folder, run_stage1, stopped_at_step
from utils.run import checkpoint

LINE = ("--epochs", "5", "--seed", "0")
SOME = (*LINE, "--eval_every", "2")
SCORES = ["val_overall", "val_many", "val_medium", "val_few", "val_balanced"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that scores every epoch, one that scores every second, and what it printed."""
    every, some = (tmp_path_factory.mktemp(name) for name in ("every", "some"))
    run_stage1(every, *LINE)
    text = run_stage1(some, *SOME)
    return run_folder(every, "stage1"), run_folder(some, "stage1"), text


def digest(folder, name="last.pth") -> str:
    return checkpoint.content_digest(checkpoint.read(folder / name).state)


def test_epochs_that_are_not_scored_have_empty_cells_and_all_else_is_the_same(runs):
    every, some, _ = runs
    full, ours = read_metrics(every), read_metrics(some)
    assert list(full) == list(ours) and set(SCORES) <= set(ours)
    assert ours["epoch"].tolist() == [1, 2, 3, 4, 5]
    empty = ours["epoch"].isin([1, 3])
    assert ours[SCORES].isna().all(axis=1).tolist() == empty.tolist()
    assert ours.drop(columns=SCORES).equals(full.drop(columns=SCORES))
    assert ours[~empty].equals(full[~empty])
    lines = (some / "metrics.csv").read_text().splitlines()
    assert {line.count(",") for line in lines} == {len(ours.columns) - 1}
    assert digest(some) == digest(every)


def test_the_best_epoch_is_one_that_was_scored(runs):
    _, some, _ = runs
    scored = read_metrics(some).dropna(subset="val_balanced")
    best = checkpoint.read(some / "best.pth").facts["epoch"]
    assert best == scored["epoch"][scored["val_balanced"].idxmax()] in (2, 4, 5)


def test_the_lines_of_other_epochs_name_no_score(runs):
    lines = re.findall(r"^epoch \d/5, .*$", runs[2], flags=re.MULTILINE)
    assert len(lines) == 5
    assert ["val_overall" in line and "val_few" in line for line in lines] == [False, True, False, True, True]
    assert all("train_accuracy" in line and "eta" in line for line in lines)


def test_a_large_number_scores_the_last_epoch_alone_which_the_test_set_then_selects(tmp_path):
    run_stage1(tmp_path, *LINE, "--eval_every", "99", "--select", "test")
    folder = run_folder(tmp_path, "stage1")
    assert read_metrics(folder)["test_overall"].notna().tolist() == [False] * 4 + [True]
    assert checkpoint.read(folder / "best.pth").facts["epoch"] == 5


@pytest.mark.parametrize("step", [3, 12])
def test_a_run_that_is_stopped_resumes_to_the_same_rows_and_bits(tmp_path, runs, step):
    stopped_at_step(tmp_path, step, lambda: run_stage1(tmp_path, *SOME))
    folder = run_folder(tmp_path, "stage1")
    message = refusal(main_stage1.main, "--resume", folder, "--eval_every", "3")
    assert message.startswith("--eval_every 3, the run to resume has --eval_every 2: leave the argument out")
    call(main_stage1.main, "--resume", folder)
    assert (folder / "metrics.csv").read_bytes() == (runs[1] / "metrics.csv").read_bytes()
    ours, theirs = (checkpoint.read(place / "last.pth").facts["progress"] for place in (folder, runs[1]))
    assert ours == theirs
    assert [digest(folder, name) for name in ("last.pth", "best.pth")] == [
        digest(runs[1], name) for name in ("last.pth", "best.pth")
    ]
