"""The benchmark's table: every row is there, its forms agree, and a comparison that differs ends the run."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import augment, common, evaluation, pack, stage1, stage2
from benchmarks.bar import TurnsBar
from benchmarks.sections import PARTS, SECTIONS
from benchmarks.table import COLUMNS, Row, aligned
from datasets.images.in_memory import DeviceImages

ROOT = Path(__file__).resolve().parent.parent
FACTS = ("processor", "cores", "threads", "instructions", "torch", "torchvision", "pillow", "numpy", "date")
FACTS += ("load at start", "load at end", "minutes", "data")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> common.Bench:
    """Random images, tiny sizes."""
    data, what = common.load_cifar100_lt(tmp_path_factory.mktemp("none"))
    return common.Bench(data, what, quick=True)


def run_bench(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def read_tables(folder: Path) -> tuple[list[dict], list[dict]]:
    """The rows of table.csv, and of table.md."""
    with open(folder / "table.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return rows, [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


@pytest.mark.parametrize(
    ("sections", "rows", "targets"),
    [
        ("augment,decode,evaluate", 7, ["20", "-", "-", "1.3", "1.3", "1.5", "1.05"]),
        ("stage1", 6, ["1.25", "-", "0.85", "1.03", "-", "0.85"]),
        ("stage2", 6, ["5", "25", "500"] * 2),
        ("pack", 2, ["4", "-"]),
    ],
)
def test_a_quick_run_leaves_every_row_and_both_files_agree(tmp_path, sections, rows, targets):
    places = ("--data_dir", tmp_path / "none", "--out", tmp_path / "out")
    done = run_bench("--quick", "--only", sections, *places)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a bar is for terminals
    table, listed = read_tables(tmp_path / "out")
    assert len(table) == rows and [row["target"] for row in table] == targets
    assert [{name: row[name] for name in COLUMNS} for row in table] == listed
    for row in table:
        assert all(row[name] for name in (*COLUMNS, *FACTS))
        assert row["n"] == "1" and float(row["min"]) <= float(row["median"]) <= float(row["max"])
        assert row["reached"] == ("-" if row["target"] == "-" else row["reached"])
        assert row["what"] in done.stdout and row["data"].startswith("random images")
    assert "tolerance" in done.stdout and "tolerance" in (tmp_path / "out" / "table.md").read_text()
    assert ("--compile is left out" in done.stdout) == (sections == "stage1")


def test_all_sections_together_are_the_whole_table():
    assert SECTIONS == ("augment", "decode", "stage1", "evaluate", "stage2", "pack")
    assert bench.chosen(None) == list(PARTS)
    few = [part.name for part in PARTS if part.turns < 5]
    assert few == ["pack", "evaluate resnet34", "stage2 resnet34", "stage1 resnet34"]
    assert all(part.turns >= 3 for part in PARTS)


def test_an_unknown_section_is_one_line_and_status_2(tmp_path):
    done = run_bench("--only", "stage3", "--out", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: --only has no 'stage3', known: {', '.join(SECTIONS)}\n"
    assert not list(tmp_path.iterdir())


def test_one_spoiled_weight_ends_the_run_and_names_the_part(tmp_path, monkeypatch):
    def spoiled(model):
        copy = unspoiled(model)
        copy.conv1.weight.data[0, 0, 0, 0] += 0.1
        return copy

    unspoiled = evaluation.in_our_layout
    monkeypatch.setattr(evaluation, "in_our_layout", spoiled)
    words = ["--quick", "--only", "evaluate", "--data_dir", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="comparison failed in evaluate resnet32: test logits differ by"):
        bench.main(words)
    assert not (tmp_path / "out").exists()


def test_stage_1_from_another_start_is_noticed(quick):
    contest = stage1.Contest(quick, "resnet32")
    contest.models["ours"].layer2[0].conv1.weight.data[0, 0, 0, 0] += 0.1
    with pytest.raises(common.DiffersError, match="`ours` differs from the plain loop"):
        stage1.check_same(contest)


def test_stage_1_with_another_momentum_is_noticed(quick):
    contest = stage1.Contest(quick, "resnet32")
    contest.optimizers["ours"].param_groups[0]["momentum"] = 0.0
    with pytest.raises(common.DiffersError, match="`ours` differs from the plain loop"):
        stage1.check_same(contest)


def test_stage_2_over_a_spoiled_backbone_is_noticed(quick):
    contest = stage2.Contest(quick, "resnet32")
    contest.frozen.conv1.weight.data[0, 0, 0, 0] += 0.1
    with pytest.raises(common.DiffersError, match="the classifiers differ by"):
        stage2.check_same(contest)


def test_another_pixel_is_noticed(quick, monkeypatch):
    def shifted(self, seed, view):
        top, left, flip = unshifted(self, seed, view)
        return top, (left + 1) % 9, flip

    unshifted = DeviceImages.draws
    monkeypatch.setattr(DeviceImages, "draws", shifted)
    assert augment.check_same(quick.data, 16) < augment.TOLERANCE  # both see the same draws
    monkeypatch.setattr(DeviceImages, "draws", unshifted)
    monkeypatch.setattr(
        DeviceImages, "augmented", lambda self, order, size, seed, view: [(self.plain(order), None)]
    )
    with pytest.raises(common.DiffersError, match="gives other pixels"):
        augment.check_same(quick.data, 16)


def test_another_accuracy_than_the_plain_run_is_noticed():
    said = {"ce": "accuracy=38.62\n", "los": "accuracy=43.17\n"}
    said["ours"] = "test method=ce overall=38.60 many=1\ntest method=los overall=43.40 many=1\n"
    assert pack.check_same(said) == pytest.approx(0.23)
    with pytest.raises(common.DiffersError, match=r"accuracy of los: 0\.33 points"):
        pack.check_same(said | {"los": "accuracy=43.73\n"})


def test_turns_alternate_and_each_is_told():
    order, told = [], []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = common.alternate(works, 3, lambda: told.append(len(order)))
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"] and told == [4, 6, 8]
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_the_bar_takes_long_turns_for_long(monkeypatch):
    bar = TurnsBar([1.0, 1.0, 10.0])
    bar.began -= 4
    assert bar.eta == 12  # nothing is known yet but what was expected
    bar.index = 2
    assert bar.eta == 20  # twice as slow as expected


def test_a_row_says_reached_by_the_median_of_its_pairs():
    row = Row("a", "b", "s", 1.0, 2.0, [1.0, 3.0, 2.0], 2.0)
    assert list(row.cells().values())[5:] == ["1.00", "2.00", "3.00", "3", "2", "yes"]
    assert Row("a", "b", "s", 1.0, 2.0, [1.0, 1.9], 2.0).cells()["reached"] == "no"
    assert len({len(line.rstrip()) for line in aligned([row, row]).splitlines()[1:]}) == 1


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with common.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
