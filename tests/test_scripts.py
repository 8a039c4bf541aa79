"""The three scripts one after another on the embedded digits: what they print, write, keep and refuse."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import redirect_stderr
from pathlib import Path

import pandas as pd
import pytest
import torch

from models import build_model
from tests.helpers import (
    call,
    last_line,
    read_metrics,
    read_summary,
    run_evaluate,
    run_folder,
    run_stage1,
    run_stage2,
)
from utils.plots import drawing
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent
RESULT = re.compile(r"^test( (overall|many|medium|few)=\d+\.\d\d){4} selected_on=(?P<how>\w+)$")


def test_the_three_scripts_run_one_after_another_from_the_shell(tmp_path):
    def script(name: str, *argv: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / name), "--dataset", "digits_lt", *argv],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return last_line(done.stdout)

    stage1 = script("main_stage1.py", "--cur_stage", "stage1", "--epochs", "2", "--seed", "1")
    words = ("--label_smooth", "0.9", "--finetune_epoch", "2")
    stage2 = script("main_stage2.py", "--cur_stage", "stage2", *words)
    assert RESULT.match(stage1) and RESULT.match(stage2)
    assert script("evaluate.py", "--cur_stage", "stage2") == stage2


def test_evaluate_repeats_the_line_that_each_stage_ended_with(digits):
    for text in (digits.stage1_text, digits.stage2_text):
        assert RESULT.match(last_line(text))["how"] == "last"
    assert last_line(run_evaluate(digits.root, "--cur_stage", "stage1")) == last_line(digits.stage1_text)
    assert last_line(run_evaluate(digits.root, "--cur_stage", "stage2")) == last_line(digits.stage2_text)
    named = run_evaluate(digits.root, "--pretrained_pth", digits.stage2)
    assert last_line(named) == last_line(digits.stage2_text)


def test_a_run_announces_its_configuration_data_parameters_steps_and_device(digits):
    text = digits.stage2_text
    assert "δ = 0.9, logit gap 0.747" in text
    assert re.search(r"^  given: .*finetune_epoch 4", text, re.M)
    assert (
        "finetune_lr" not in text
        and '"finetune_lr"' in (run_folder(digits.root, "stage2") / "config.json").read_text()
    )
    assert "110 down to 2 images per class; classes: many 1, medium 3, few 6" in text
    assert "650 trainable of 75,002 parameters" in text
    assert "steps an epoch: 5" in text
    assert re.search(r"device \w+, \d+ CPU threads", text)
    assert "eta 0:00:0" in text


ALWAYS = {"config.json", "log.txt", "metrics.csv", "per_class.csv", "confusion.csv", "summary.json"}
ALWAYS |= {"last.pth", "best.pth"}


@pytest.mark.parametrize(
    ("stage", "epochs", "more"),
    [("stage1", 6, set()), ("stage2", 4, {"table.csv", "table.md"})],
)
def test_a_run_folder_holds_config_log_metrics_per_class_and_summary(digits, stage, epochs, more):
    folder = run_folder(digits.root, stage)
    assert {path.name for path in folder.iterdir()} == ALWAYS | more
    assert json.loads((folder / "config.json").read_text())["config"]["seed"] == 0
    metrics, per_class = read_metrics(folder), pd.read_csv(folder / "per_class.csv")
    if stage == "stage2":  # the stage-1 head stands first, for reference
        heads = [("stage1", ""), ("los", "finetune_lr=0.001 finetune_epoch=4 label_smooth=0.9")]
        for table in (metrics, per_class):
            found = table[["method", "setting", "seed"]].fillna("").drop_duplicates()
            assert [tuple(row) for row in found.values] == [(*head, 0) for head in heads]
        reference = metrics[metrics["method"] == "stage1"]
        assert reference["epoch"].tolist() == [0] and reference["train_loss"].isna().all()
        metrics, per_class = (table[table["method"] == "los"] for table in (metrics, per_class))
    assert metrics["epoch"].tolist() == list(range(1, epochs + 1))
    summary = read_summary(folder)
    assert per_class["train_images"].tolist() == [110, 71, 46, 29, 19, 12, 8, 5, 3, 2]
    assert per_class["accuracy"].mean() == pytest.approx(100 * summary["test"]["balanced"])
    assert summary["selected_on"] == "last" and summary["epoch"] == epochs
    assert last_line((folder / "log.txt").read_text()) in getattr(digits, f"{stage}_text")


def test_what_is_a_fraction_in_the_summary_is_percent_in_the_table(digits):
    folder = run_folder(digits.root, "stage2")
    table = pd.read_csv(folder / "table.csv").set_index("method")
    summary = read_summary(folder)["test"]
    figures = {name: value for name, value in summary.items() if type(value) in (int, float)}
    plain = {"temperature", "nll", "brier", "zero_classes", "rank_correlation"}
    assert len(figures) == 38 and plain < figures.keys()
    for name, value in figures.items():
        assert table[name]["los"] == pytest.approx(value if name in plain else 100 * value), name
    difference = table["overall"]["stage1"] - table["overall"]["los"]
    assert table["minus_los"]["stage1"] == pytest.approx(difference)
    assert table["relative_accuracy"].max() == 1 and set(table["accuracies"]) == {"percent"}


@pytest.mark.usefixtures("every_picture")
def test_few_classes_are_reported_by_name_and_drawn_for_a_single_network_too(digits):
    text = run_evaluate(digits.root, "--cur_stage", "stage1")
    folder = run_folder(digits.root, "evaluate_stage1")
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("class  training images"))
    rows = [re.split(" {2,}", line.strip()) for line in lines[start + 1 : start + 11]]
    classes = pd.read_csv(folder / "per_class.csv")
    confusion = pd.read_csv(folder / "confusion.csv")
    assert confusion["images"].sum() == 500 == classes["test_images"].sum()
    for (name, train, test, accuracy, taken), own in zip(rows, classes.itertuples(), strict=True):
        wrong = confusion[(confusion["class"] == own[1]) & (confusion["predicted"] != own[1])]
        most = wrong.loc[wrong["images"].idxmax()] if len(wrong) else None
        assert (name, int(train), int(test)) == (str(own.name), own.train_images, own.test_images)
        assert float(accuracy) == round(own.accuracy, 2)
        shown = "-" if most is None else f"{most['predicted_name']} ({100 * most['images'] / int(test):.2f})"
        assert taken == shown
    assert text.count("class  training images") == 1 == digits.stage1_text.count("class  training images")
    assert "class  training images" in digits.stage2_text
    drawn = call(drawing.main, folder).splitlines()
    assert [Path(path).stem for path in drawn] == ["accuracy", "loma", "rsd", "confusion"]


def test_quiet_prints_the_result_line_only_and_logs_the_rest_with_the_seed_that_was_drawn(tmp_path):
    assert RESULT.match(run_stage1(tmp_path, "--epochs", "1", "--quiet").strip())
    folder = run_folder(tmp_path, "stage1")
    log, record = (folder / "log.txt").read_text(), json.loads((folder / "config.json").read_text())
    assert "epoch 1/1" in log
    assert int(re.search(r"^  drawn.*: seed (\d+)", log, re.M).group(1)) == record["config"]["seed"]


def test_verbose_prints_every_setting_with_where_it_came_from(tmp_path):
    text = run_stage1(tmp_path, "--epochs", "1", "--verbose")
    config = json.loads((run_folder(tmp_path, "stage1") / "config.json").read_text())["config"]
    for name in (name for name, value in config.items() if value is not None):
        assert re.search(rf"^  {name} +\S.* (given|preset|drawn)", text, re.M), name


def test_stage_2_leaves_the_backbone_as_it_was_to_the_bit(digits):
    before, after = checkpoint.read(digits.stage1), checkpoint.read(digits.stage2)
    assert set(before.state) == set(after.state)
    moved = {name for name in before.state if not torch.equal(before.state[name], after.state[name])}
    assert moved == {"fc.weight", "fc.bias"}
    assert after.facts["stage1_digest"] == before.identity


def test_drifting_batch_norm_moves_statistics_but_no_backbone_weight_and_says_so(tmp_path, digits):
    words = ("--bn_mode", "train", "--finetune_epoch", "1", "--seed", "0")
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *words)
    assert "batch-norm statistics drift" in text
    before = checkpoint.read(digits.stage1).state
    after = checkpoint.read(tmp_path / digits.stage2.relative_to(digits.root)).state
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"fc.weight", "fc.bias"} < moved
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(name.endswith(statistics) for name in moved - {"fc.weight", "fc.bias"})
    evaluated = run_evaluate(tmp_path, "--cur_stage", "stage2")
    assert last_line(evaluated) == last_line(text)


def test_the_control_hardly_moves_what_over_smoothing_moves_far(tmp_path, digits):
    def moved(delta: str) -> float:
        words = ("--pretrained_pth", digits.stage1, "--label_smooth", delta, "--seed", "0")
        run_stage2(tmp_path / delta, *words)
        after = checkpoint.read(tmp_path / delta / digits.stage2.relative_to(digits.root)).state
        before = checkpoint.read(digits.stage1).state
        return float((after["fc.weight"] - before["fc.weight"]).norm())

    assert moved("0.9") > 2 * moved("0")


def test_views_are_fresh_by_default_cached_by_number_and_plain_at_zero(tmp_path, digits):
    def classifier(name: str, *option: str) -> torch.Tensor:
        start = ("--pretrained_pth", digits.stage1, "--finetune_epoch", "3", "--seed", "0")
        run_stage2(tmp_path / name, *start, *option)
        return checkpoint.read(tmp_path / name / digits.stage2.relative_to(digits.root)).state["fc.weight"]

    fresh, three = classifier("fresh"), classifier("three", "--views", "3")
    one, plain = classifier("one", "--views", "1"), classifier("plain", "--views", "0")
    assert torch.equal(fresh, three)
    assert not torch.equal(fresh, one) and not torch.equal(one, plain)


def test_a_held_out_part_is_taken_before_stage_1_and_inherited_by_stage_2(tmp_path, digits):
    held_out = ("--val_source", "heldout", "--val_fraction", "0.2")
    stage1 = run_stage1(tmp_path, "--epochs", "1", "--seed", "0", *held_out)
    assert "243 training, 62 validation (heldout)" in stage1
    stage2 = run_stage2(tmp_path, "--finetune_epoch", "1", "--select", "val")
    assert "243 training, 62 validation (heldout)" in stage2
    assert "classes: many 1, medium 3, few 6" in stage2
    other = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--finetune_epoch", "1", *held_out)
    assert "other images" in other


def test_progress_bars_go_to_standard_error_and_only_where_that_is_a_terminal(tmp_path, digits):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(theirs, "w") as terminal, redirect_stderr(terminal):
        text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--finetune_epoch", "1")
        drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert "features" in drawn and "features" not in text


def test_the_recipe_of_stage_1_reaches_every_parameter_of_the_optimiser(tmp_path):
    words = ("--lr", "0.05", "--momentum", "0.8", "--wd", "0.125", "--nesterov")
    run_stage1(tmp_path, "--network", "resnet8", "--epochs", "1", "--seed", "0", *words)
    stored = checkpoint.read(run_folder(tmp_path, "stage1") / "last.pth")
    [group] = stored.facts["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.125, 0.8, True)
    assert group["lr"] == 0.05  # of the first epoch of the cosine
    assert len(group["params"]) == len(list(build_model("resnet8", 10).parameters()))
