"""The long forms of the tests of whole runs: killed, stopped, in two processes, scored in many ways.

`make test-long` runs these, and all other tests that have a long form (tests.helpers.long_form).
"""

import sys
from pathlib import Path

import pytest

from tests.helpers import places
from tests.kills import TORCHRUN, differences, finished, killed_runs, killed_under_torchrun, stopped_runs
from tests.scoring import Scored
from tests.seeds import seed_runs
from tests.spoil import DATA

pytestmark = pytest.mark.long
ONE = ["--dataset", "digits_lt", "--seed", "0", "--epochs"]
TWO = ["--dataset", "digits_lt", "--pretrained_pth", str(DATA / "v1_stage1.pth"), "--finetune_epoch"]
ALL = ["--method", "all", "--seeds", "0,1"]
AS_UNBROKEN = "weights, rows and tables as unbroken"


@pytest.mark.parametrize(
    ("script", "words", "every"),
    [
        ("main_stage1", [*ONE, "60"], 1),
        ("main_stage2", [*TWO, "60", "--seed", "0"], 1),
        ("main_stage2", [*TWO, "20", *ALL], 10),
    ],
)
def test_a_run_that_is_killed_50_times_ends_as_the_unbroken_one(
    tmp_path, script, words, every, record_property
):
    """An epoch has 5 steps, so that every kill finds the run unfinished."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed_runs(whole, [*words, *places(whole)], 0, script)
    killed_runs(cut, [*words, "--save_every", every, *places(cut)], 50, script)
    assert not differences(cut, whole)
    record_property("found", f"a readable checkpoint after 50 of 50 kills; {AS_UNBROKEN}")


def test_without_whole_files_or_the_optimisers_state_kills_would_be_noticed(tmp_path):
    words = [*ONE, "50", "--save_every", "1", *places(tmp_path / "in place")]
    with pytest.raises(AssertionError, match=r"(?s)last\.pth.*"):
        killed_runs(tmp_path / "in place", words, 20, spoil="files in place")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed_runs(whole, [*ONE, "5", *places(whole)], 0)
    killed_runs(cut, [*ONE, "5", "--save_every", "1", *places(cut)], 5, spoil="no optimiser state")
    assert "weights" in differences(cut, whole)


@pytest.mark.parametrize(
    ("script", "words", "stops"),
    [("main_stage1.py", [*ONE, "100"], 20), ("main_stage2.py", [*TWO, "25", *ALL], 5)],
)
def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_ends_as_the_unbroken_one(
    tmp_path, script, words, stops, record_property
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finished([sys.executable, script, *words, *places(whole)])[0] == 0
    said = stopped_runs([*words, *places(cut)], stops, script)
    assert len(said) == stops and all(line.startswith("stopped by a signal after ") for line in said)
    assert not differences(cut, whole)
    record_property("found", f"status 143 and how to go on, {stops} of {stops}; {AS_UNBROKEN}")


def test_two_processes_that_are_killed_5_times_end_as_the_unbroken_ones(tmp_path, record_property):
    whole, cut, words = tmp_path / "whole", tmp_path / "cut", [*ONE, "25", "--device", "cpu"]
    assert finished([*TORCHRUN, "main_stage1.py", *words, *places(whole)])[0] == 0
    killed_under_torchrun(cut, [*words, "--save_every", "1", *places(cut)], 5)
    assert not differences(cut, whole)
    record_property("found", f"resumed 5 of 5; {AS_UNBROKEN}")


def test_five_seeds_are_the_same_in_two_processes_and_each_other_than_the_next(tmp_path):
    seed_runs(tmp_path, 5)


def test_300_images_are_scored_alike_in_every_way(tmp_path: Path, record_property):
    scored = Scored(tmp_path, test_per_class=100)
    ways = dict(scored.ways())
    assert not any(ways.values()), ways
    changed = scored.changed_by_batch_statistics()
    assert changed > 0
    record_property("found", f"{len(ways)} ways change no image; batch statistics (control) {changed}")
