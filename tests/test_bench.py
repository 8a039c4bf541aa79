"""The benchmarks: every row is there, its forms agree, and a comparison that differs ends the run."""

import pandas as pd
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import common, gpu, scaling, stage1, stage2
from benchmarks.common import COLUMNS, DiffersError
from datasets import build_data
from datasets.images.in_memory import DeviceImages
from tests.helpers import call, refusal
from tests.plain_capture import PlainCapture
from utils.settings.config import resolve


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> common.Bench:
    """Random images, tiny sizes."""
    return common.Bench(*common.load_cifar100_lt(tmp_path_factory.mktemp("none")), quick=True)


@pytest.mark.parametrize(
    ("networks", "targets"),
    [
        (["resnet32"], ["1.25", "0.85", "1.5", "5", "25", "500"]),
        (["resnet50"], ["0.95"]),
        pytest.param(["resnet34"], ["1.05", "5", "25", "500", "1.03", "0.85"], marks=pytest.mark.long),
        pytest.param([""], ["1.5", "-"], marks=pytest.mark.long),  # whole commands
    ],
)
def test_a_quick_run_leaves_every_row_and_both_files_agree(tmp_path, monkeypatch, networks, targets):
    monkeypatch.setattr(bench, "PARTS", [part for part in bench.PARTS if part.network in networks])
    said = call(bench.main, "--quick", "--data_dir", tmp_path / "none", "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "table.csv", dtype=str)
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert table[list(COLUMNS)].to_numpy().tolist() == lines[2:]
    everywhere = ~table["what"].str.endswith("bf16")  # a row of CPUs with instructions for it
    assert table["target"][everywhere].tolist() == targets
    assert table.notna().all(axis=None) and set(table["n"]) == {"1"}
    assert all(what in said for what in table["what"]) and table["data"].str.startswith("random images").all()
    assert networks in ([""], ["resnet50"]) or "tolerance" in text


def test_an_unknown_section_is_refused_and_nothing_is_written(tmp_path):
    said = refusal(bench.main, "--only", "stage3", "--out", tmp_path / "out")
    assert said == "--only has no 'stage3', known: stage1, stage2, encode, commands"
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_differs_ends_the_run_and_names_the_part(tmp_path, monkeypatch):
    monkeypatch.setattr(stage2, "TOLERANCE", 0)
    words = ["--quick", "--only", "stage2", "--data_dir", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="comparison failed in stage2 resnet32: the classifiers differ by"):
        bench.main(words)
    assert not (tmp_path / "out").exists()


def another_start(contest: stage1.Contest) -> None:
    contest.models["ours"].layer2[0].conv1.weight.data[0, 0, 0, 0] += 0.1


def another_momentum(contest: stage1.Contest) -> None:
    contest.optimizers["ours"].param_groups[0]["momentum"] = 0.0


def another_backbone(contest: stage2.Contest) -> None:
    contest.frozen.conv1.weight.data[0, 0, 0, 0] += 0.1


@pytest.mark.parametrize(
    ("module", "spoil", "said"),
    [
        (stage1, another_start, "it differs from the plain loop"),
        (stage1, another_momentum, "it differs from the plain loop"),
        (stage2, another_backbone, "the classifiers differ by"),
    ],
)
def test_a_loop_that_trains_otherwise_is_noticed(quick, module, spoil, said):
    contest = module.Contest(quick, "resnet32")
    spoil(contest)
    with pytest.raises(DiffersError, match=said):
        module.check_same(contest)


def test_turns_alternate():
    order = []
    seconds = common.alternate({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_row_says_reached_by_the_median_of_its_pairs_or_of_its_own_seconds():
    row = common.row("a", "b", "s", [1.0, 1.0, 1.0], [1.0, 3.0, 2.0], 2.0)
    assert list(row.values())[3:] == ["1.00", "2.00", "1.00", "2.00", "3.00", "3", "2", "yes"]
    assert common.row("a", "b", "s", [1.0, 1.0], [1.0, 1.9], 2.0)["reached"] == "no"
    alone = common.row("a", "-", "s", [1.0, 1.2, 9.0], target=1.5)
    assert list(alone.values())[3:] == ["1.20", "-", "1.00", "1.20", "9.00", "3", "1.5", "yes"]
    assert common.row("a", "-", "s", [1.6], target=1.5)["reached"] == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_gpu_benchmark_says_so_in_one_line():
    says = f"benchmarks.gpu needs a CUDA device, torch {torch.__version__} sees none here"
    assert refusal(gpu.main) == says


@pytest.mark.parametrize(("amp", "capture"), [("off", None), ("bf16", PlainCapture())])
def test_epochs_and_feature_passes_of_the_gpu_benchmark_are_timed(amp, capture):
    data = build_data("digits_lt", imb_ratio=50)
    train = DeviceImages(data.train, data.views)
    config = resolve("main_stage1.py", {"dataset": "digits_lt", "amp": amp, "seed": 0})
    _, seconds, passes = gpu.measure(train, config, 2, capture, channels=1)
    assert len(seconds) == len(passes) == 2 and min(*seconds, *passes) > 0


@pytest.mark.long
def test_every_factor_is_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    factors = {"classes": (10, 40), "width": (8, 32), "rows": (500, 2000), "heads": (1, 2)}
    monkeypatch.setattr(scaling, "FACTORS", factors)
    monkeypatch.setattr(scaling, "BASE", scaling.Point(10, 8, 1000, 1))
    said = call(scaling.main, "--repeats", 1, "--csv", tmp_path / "made" / "scaling.csv")
    rows = pd.read_csv(tmp_path / "made" / "scaling.csv")
    assert rows["factor"].tolist() == [name for name in factors for _ in range(2)]
    assert (rows["seconds"] > 0).all() and set(rows["n"]) == {1}
    assert all(f"| {name} | " in said for name in factors)
    assert scaling.slope([1.0, 4.0, 16.0], (3, 6, 12)) == pytest.approx(2)
