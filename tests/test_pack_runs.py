"""Stage 2 and evaluate from feature packs: the same bits as from images, and what they refuse."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate
import main_stage2
from losses.closed_form import StackedLoss
from tests.helpers import (
    HANG,
    call,
    files_below,
    last_line,
    places,
    read_summary,
    refusal,
    run_evaluate,
    run_folder,
    run_stage2,
)
from tests.stage2 import LargestNewTensor, read_table, result_lines, trained
from tests.test_own_features import own_and_plan
from tests.test_pack_arrays import Arrays
from tests.test_packs import tiny
from utils.base.errors import UserError
from utils.features.frozen import pack_representation
from utils.heads.outcome import outcome
from utils.packs.pack import read_pack, write_pack
from utils.plots.tables import read_run
from utils.run import checkpoint
from utils.settings.config import resolve
from utils.settings.methods import METHODS
from utils.settings.parse import STAGE2, parse
from utils.settings.presets import preset_for

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ("--finetune_epoch", "3", "--seed", "0")
PUBLISHED = Path("ckpt", "digits_lt", "IR=50")


def save_pack(root: Path, stage1: Path, *argv: object) -> Path:
    """A pack of the digits' features from this backbone."""
    start = ("--pretrained_pth", stage1, "--method", "stage1", *BUDGET[2:], "--views", "0")
    run_stage2(root, *start, "--save_features", root / "digits.pack", *argv)
    return root / "digits.pack"


@pytest.fixture(scope="module")
def pack(tmp_path_factory, digits) -> Path:
    """The plain images' features, fp32; read-only for the tests."""
    return save_pack(tmp_path_factory.mktemp("pack"), digits.stage1, "--pack_dtype", "fp32")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, pack) -> Path:
    """What stage 2 leaves behind after training on the pack."""
    root = tmp_path_factory.mktemp("classifier")
    run_stage2(root, "--features", pack, *BUDGET)
    return root / PUBLISHED / "resnet8_features_stage2.pth"


def refused(root: Path, *argv: object) -> str:
    """Stage 2's refusal, which leaves nothing behind."""
    message = refusal(main_stage2.main, *places(root), *argv)
    assert not (root / "ckpt").exists()
    return message


# ---- the same as from images


@pytest.mark.parametrize("name", ["los", "label_aware", "ncm", "disalign"])
def test_a_pack_of_full_precision_gives_the_bits_of_the_run_on_images(tmp_path, digits, pack, name):
    budget = BUDGET if METHODS[name].trained else BUDGET[2:]
    start = ("--pretrained_pth", digits.stage1, "--views", "0", "--method", name)
    images = run_stage2(tmp_path, *start, *budget)
    features = run_stage2(tmp_path, "--features", pack, "--method", name, *budget)
    one, other = (
        checkpoint.read(tmp_path / PUBLISHED / f"resnet8{kind}_stage2.pth") for kind in ("", "_features")
    )
    assert set(other.state) == (set() if name in ("ncm", "disalign") else {"fc.weight", "fc.bias"})
    assert all(torch.equal(one.state[key], value) for key, value in other.state.items())
    for key in ("head_state", "progress", "lr", "setting", "stage1_digest"):
        ours, theirs = ({"": file.facts.get(key)} for file in (one, other))
        assert checkpoint.content_digest(ours) == checkpoint.content_digest(theirs)
    assert last_line(features) == last_line(images)
    assert other.facts["features_digest"] == read_pack(pack).digest


def test_a_pack_of_cached_views_trains_as_the_cached_views_do(tmp_path, digits):
    saved = tmp_path / "views.pack"
    start = ("--pretrained_pth", digits.stage1, "--views", "2", *BUDGET)
    run_stage2(tmp_path, *start, "--save_features", saved, "--pack_dtype", "fp32")
    text = run_stage2(tmp_path, "--features", saved, *BUDGET)
    assert "2 fixed augmented view(s) in training, no fresh augmentation" in text
    one, other = (
        checkpoint.read(tmp_path / PUBLISHED / f"resnet8{kind}_stage2.pth") for kind in ("", "_features")
    )
    assert torch.equal(one.state["fc.weight"], other.state["fc.weight"])


def test_features_too_small_for_half_precision_are_refused_with_advice_that_works(tmp_path, digits):
    model = checkpoint.read(digits.stage1)
    scale = {name: 1e-8 if "bn" in name and name.endswith(("weight", "bias")) else 1 for name in model.state}
    faint = {name: value * scale[name] for name, value in model.state.items()}
    checkpoint.save(tmp_path / "faint.pth", model.facts | {"model": faint})
    start = ("--dataset", "digits_lt", *places(tmp_path), "--pretrained_pth", tmp_path / "faint.pth")
    start += ("--method", "stage1", "--views", "0", "--save_features", tmp_path / "pack")
    said = "holds features too small for float16, it would lose them: take --pack_dtype fp32"
    assert said in refusal(main_stage2.main, *start) and not (tmp_path / "pack").exists()
    call(main_stage2.main, *start, "--pack_dtype", "fp32")
    saved = read_pack(tmp_path / "pack")
    assert 0 < saved.train.max() < 1e-6
    assert saved.facts["seed"] == model.facts["seed"], "the backbone's: that of stage 2 was drawn"


def test_a_pack_of_half_precision_is_half_as_large_and_gives_nearly_the_same(
    tmp_path, digits, pack, classifier
):
    half = save_pack(tmp_path, digits.stage1)
    assert read_pack(half).train.dtype == torch.float16
    assert half.stat().st_size < 0.55 * pack.stat().st_size
    text = run_stage2(tmp_path, "--features", half, *BUDGET)
    assert last_line(run_evaluate(tmp_path, "--features", half, "--cur_stage", "stage2")) == last_line(text)
    path = tmp_path / PUBLISHED / classifier.name
    one, other = (checkpoint.read(file).state["fc.weight"] for file in (path, classifier))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["los_weighted", "ncm", "disalign"])  # linear, and two that are not affine
def test_evaluate_repeats_the_line_of_stage_2_on_the_same_pack(tmp_path, pack, name):
    budget = BUDGET if METHODS[name].trained else ()
    line = last_line(run_stage2(tmp_path, "--features", pack, "--method", name, *budget))
    assert last_line(run_evaluate(tmp_path, "--features", pack, "--cur_stage", "stage2")) == line
    named = ("--pretrained_pth", tmp_path / PUBLISHED / "resnet8_features_stage2.pth")
    assert last_line(run_evaluate(tmp_path / "else", "--features", pack, *named)) == line


def test_evaluate_repeats_with_a_pack_the_lines_of_its_images_for_foreign_classifiers_too(
    tmp_path, digits, pack
):
    line = last_line(run_evaluate(tmp_path, "--features", pack, "--cur_stage", "stage1"))
    assert line == last_line(digits.stage1_text)
    state = checkpoint.read(digits.stage2).state
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "theirs.pth")
    ours, theirs = (
        last_line(call(evaluate.main, "--features", pack, "--pretrained_pth", path, *places(tmp_path)))
        for path in (digits.stage2, tmp_path / "theirs.pth")
    )
    assert ours == last_line(digits.stage2_text) and ours.split()[:5] == theirs.split()[:5]


def test_stage_2_says_what_a_pack_is_and_takes_shot_limits_of_the_users(tmp_path, pack):
    text = run_stage2(tmp_path, "--features", pack, "--method", "los,crt", "--shots", "10,50", *BUDGET)
    assert "1 fixed plain view(s) in training, no fresh augmentation" in text
    assert f"feature pack {pack} (sha256 {read_pack(pack).digest[:12]})" in text
    assert "110 down to 2 images per class; classes: many 2, medium 4, few 4" in text
    folder = run_folder(tmp_path, "stage2")
    rows = pd.read_csv(folder / "per_class.csv")
    assert rows["group"].value_counts().to_dict() == {"medium": 12, "few": 12, "many": 6}
    assert (folder / "plots" / "accuracy.png").is_file()


def test_validation_images_of_a_pack_select_as_the_images_do(tmp_path, digits, pack):
    select = (*BUDGET, "--method", "los", "--select", "val")
    images = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--views", "0", *select)
    ours = read_table(run_folder(tmp_path, "stage2"), "search")
    features = run_stage2(tmp_path, "--features", pack, *select)
    assert last_line(features) == last_line(images)
    assert read_table(run_folder(tmp_path, "stage2"), "search").equals(ours)


# ---- the user's own arrays


def test_arrays_become_a_pack_that_stage_2_trains_on_and_evaluate_scores(tmp_path):
    """Even with the name of a kind of data set."""
    given, name = Arrays(tmp_path), "folder"
    given.pack("--name", name)
    run = (*places(tmp_path), "--features", given.out)
    text = call(main_stage2.main, *run, "--verbose", "--method", "los,ce,ncm,los_step,stage1", *BUDGET)
    *_, lead = lines = result_lines(text)
    assert lead.pop("method") == "los" and len(lines) == 5
    [first] = [line for line in lines if line.pop("method", "los") == "stage1"]
    path = float(re.search(r"path +([\d.]+) +preset", text).group(1))
    settings = read_table(run_folder(tmp_path, "stage2", name)).set_index("method")["setting"]
    assert all(f"path={path:g}" in settings[name].split() for name in ("los", "ce"))
    assert (tmp_path / "ckpt" / name / "features_stage2.pth").is_file()
    assert result_lines(call(evaluate.main, *run, "--cur_stage", "stage2")) == [lead]
    [stage1] = result_lines(call(evaluate.main, *run, "--cur_stage", "stage1"))
    assert stage1 == first | {"selected_on": "unknown"} and float(stage1["overall"]) > 85


def settings_of(pack: Path) -> dict:
    """What stage 2 would do with a pack, without its place and name."""
    _, config = own_and_plan(pack)
    return {name: value for name, value in config.as_dict().items() if name not in ("features", "dataset")}


def test_the_name_of_a_users_pack_chooses_no_setting(tmp_path):
    given = Arrays(tmp_path)
    given.pack("--name", "mine")
    wanted, made = settings_of(given.out), read_pack(given.out)
    older = {key: value for key, value in made.facts.items() if key != "preset"}  # does not say its kind
    for name in ("list_of_words", "folder_x", "list", "cifar100_lt", "cifar_mine", "imagenet_lt"):
        for facts in (made.facts, older):
            write_pack(tmp_path / "named", replace(made, facts=facts | {"dataset": name}))
            assert settings_of(tmp_path / "named") == wanted
    assert wanted["path"] != preset_for("folder")["path"]


def test_a_pack_keeps_the_settings_of_the_data_set_that_it_was_made_from(tmp_path, pack):
    wanted, made = settings_of(pack), read_pack(pack)
    older = {name: value for name, value in made.facts.items() if name != "preset"}
    write_pack(tmp_path / "older", replace(made, facts=older))
    write_pack(tmp_path / "renamed", replace(made, facts=made.facts | {"dataset": "mine"}))
    assert settings_of(tmp_path / "older") == settings_of(tmp_path / "renamed") == wanted
    assert wanted["label_smooth"] == 0.9
    own = older | {"dataset": "folder_x", "image_size": 32}
    write_pack(tmp_path / "folder", replace(made, facts=own))
    assert settings_of(tmp_path / "folder")["batch_size"] == 256


@pytest.mark.parametrize("select", ["val", "last"])
def test_without_test_labels_heads_are_selected_reported_and_published_by_validation(tmp_path, select):
    given = Arrays(tmp_path, test_y=None)
    left_out = f"{tmp_path}/test_x.npy has no labels and is left out of the pack"
    assert given.pack("--val_fraction", "0.2").startswith(left_out)
    made, run = read_pack(given.out), (*places(tmp_path), "--features", given.out)
    assert made.test is made.test_labels is None and made.val.shape == (1, 108, 64)
    words = ("--method", "la,ncm", "--select", select, "--seed", "0")
    text = call(main_stage2.main, *run, *words)
    assert "0 test images" in text and "note: no test images with labels: all figures are of" in text
    assert re.search(r"^validation balanced", text, re.M) and not re.search(r"^test |on test", text, re.M)
    assert {line.split()[0] for line in text.splitlines() if "selected_on=" in line} == {"val"}
    folder = run_folder(tmp_path, "stage2", "out")
    assert read_run(folder).judged == "val" and "test" not in read_summary(folder)
    found, rows = tmp_path / "p.csv", tmp_path / "val.npy"
    np.save(rows, made.val[0])
    call(evaluate.main, *run, "--cur_stage", "stage2", "--predict", rows, "--predictions", found)
    hits = pd.read_csv(found)["predicted"].to_numpy() == made.val_labels.numpy()
    assert f" overall={100 * hits.mean():.2f} " in last_line(text)
    said = f"{given.out} has no test features with labels: --predict X.npy needs none"
    assert refusal(evaluate.main, *run, "--cur_stage", "stage2") == said
    assert "take --select val" in refusal(main_stage2.main, *run, "--select", "test")


def test_training_and_scoring_on_a_pack_copy_no_more_than_some_of_its_rows(tmp_path):
    images, width = 60_000, 64
    few = tiny(class_counts=[images - 1000, 900, 100], preset="digits_lt")  # one's own are standardised
    labels = torch.arange(3).repeat_interleave(torch.tensor(few.facts["class_counts"]))
    train = torch.ones(1, images, width, dtype=torch.float16)
    wide = replace(few, train=train, train_labels=labels, test=train[:, :4], fc_weight=torch.zeros(3, width))
    write_pack(tmp_path / "wide.pack", wide)
    argv = ["--method", "crt,ncm", "--finetune_epoch", "1", "--seed", "0", "--batch_size", "1024"]
    config = resolve(STAGE2, parse(STAGE2, ["--dataset", "digits_lt", *argv]))
    frozen = pack_representation(read_pack(tmp_path / "wide.pack"), torch.device("cpu"))
    with LargestNewTensor() as seen:
        outcomes = [outcome(head) for head in trained(config, frozen)]
    assert len(outcomes) == 3
    assert 1024 * width <= seen.elements < train.numel() / 4, seen.operation


# ---- refusals


def test_selection_needs_validation_images_in_the_pack_that_its_backbone_never_saw(tmp_path, digits, pack):
    select = ("--select", "val", "--method", "la")
    without, unclean = tmp_path / "without.pack", tmp_path / "unclean.pack"
    save_pack(tmp_path, digits.stage1, "--val_source", "none").rename(without)
    assert "--select val needs validation images" in refused(tmp_path / "a", "--features", without, *select)
    save_pack(tmp_path, digits.stage1, "--val_source", "heldout", "--overwrite").rename(unclean)
    assert not read_pack(unclean).facts["val_clean"] and read_pack(pack).facts["val_clean"]
    message = refused(tmp_path / "a", "--features", unclean, *select)
    assert message.startswith(f"--select val refused: {unclean} says that its backbone may have seen")
    assert "other images" in run_stage2(tmp_path / "b", "--features", unclean, *select[2:])


def test_a_classifier_of_other_features_is_refused(tmp_path, digits, pack, classifier):
    made, other = read_pack(pack), tmp_path / "other.pack"
    write_pack(other, replace(made, facts=made.facts | {"stage1_digest": "0" * 64}))
    for path in (classifier, digits.stage2, digits.stage1):
        argv = ("--features", other, "--pretrained_pth", path)
        message = refusal(evaluate.main, *places(tmp_path), *argv)
        assert message == f"{path} is a classifier for other features than those of {other}"


def test_a_classifier_without_a_backbone_asks_for_its_pack_and_is_not_offered_as_a_network(
    tmp_path, classifier
):
    argv = (*places(tmp_path), "--pretrained_pth", classifier)
    for stage in ((), ("--cur_stage", "stage2")):
        message = refusal(evaluate.main, *argv, *stage)
        assert message.startswith(f"{classifier} holds a classifier without a backbone: give the pack")
    root = classifier.parents[2]
    message = refusal(evaluate.main, "--dataset", "digits_lt", "--ckpt_dir", root, "--cur_stage", "stage2")
    assert message.startswith("no stage2 checkpoint at ") and "--network resnet8_features" not in message


def test_predictions_from_a_pack_are_those_from_its_images(digits, tmp_path, pack):
    words = ["--cur_stage", "stage1", "--predictions"]
    line = ["--pretrained_pth", digits.stage1, *places(tmp_path)]
    call(evaluate.main, *words, tmp_path / "images.csv", *line)
    call(evaluate.main, "--features", pack, *words, tmp_path / "pack.csv", *places(tmp_path))
    one, other = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("images", "pack"))
    assert len(one) == 500 and list(one["image"]) == list(range(500))
    assert (one["predicted"] == other["predicted"]).all()
    assert one["confidence"].to_numpy() == pytest.approx(other["confidence"].to_numpy(), abs=0.02)


# ---- a pack that changes while it is mapped


def overwritten(pack: Path) -> None:
    with open(pack, "rb+") as handle:
        handle.seek(-5000, os.SEEK_END)
        handle.write(os.urandom(100))


def replaced(pack: Path) -> None:
    new = pack.with_name("new")
    write_pack(new, replace(read_pack(pack), fc_bias=torch.ones(10)))
    os.replace(new, pack)


SPOILT = {
    "overwritten": overwritten,
    "replaced": replaced,
    "removed": Path.unlink,
    "grown": lambda pack: os.truncate(pack, pack.stat().st_size + 100),
}
UNHARMED = {
    "touched": os.utime,
    "replaced by itself": lambda pack: os.replace(shutil.copy(pack, pack.with_name("new")), pack),
}


def during(where: str, act, patch: pytest.MonkeyPatch) -> None:
    """Act once within a run: in an optimiser step, while heads are scored on test, while evaluate scores."""
    module, name = {
        "step": (StackedLoss, "__call__"),
        "scores": (main_stage2, "outcomes"),
        "evaluate": (evaluate.scoring, "score"),
    }[where]
    real, done = getattr(module, name), []

    def spoiling(*args, **options):
        if not done:
            done.append(act())
        return real(*args, **options)

    patch.setattr(module, name, spoiling)


def on_pack(root: Path, pack: Path, where: str, patch: pytest.MonkeyPatch, act) -> str:
    during(where, act, patch)
    if where == "evaluate":
        words = ("--cur_stage", "stage1", "--predictions", root / "p.csv")
        return run_evaluate(root, "--features", pack, *words)
    return run_stage2(root, "--features", pack, *BUDGET, "--save_every", "1")


@pytest.mark.parametrize(
    ("where", "kind"), [*(("step", kind) for kind in SPOILT), ("scores", "replaced"), ("evaluate", "removed")]
)
def test_a_pack_that_is_changed_during_a_run_ends_it_in_a_line_with_nothing_published(
    tmp_path, pack, monkeypatch, kind, where
):
    own = shutil.copy(pack, tmp_path / "own.pack")
    with pytest.raises(UserError, match=r"own\.pack was changed while it was in use"):
        on_pack(tmp_path, own, where, monkeypatch, lambda: SPOILT[kind](own))
    names = {path.name for path in files_below(tmp_path)}
    assert not names & {"resnet8_features_stage2.pth", "summary.json", "per_class.csv", "p.csv"}


@pytest.mark.parametrize(
    ("where", "kind"), [("step", "touched"), ("scores", "replaced by itself"), ("evaluate", "touched")]
)
def test_a_pack_that_is_touched_or_replaced_by_the_same_content_does_no_harm(
    tmp_path, pack, monkeypatch, kind, where
):
    own = shutil.copy(pack, tmp_path / "own.pack")
    assert "test overall=" in last_line(
        on_pack(tmp_path, own, where, monkeypatch, lambda: UNHARMED[kind](own))
    )


def test_a_pack_that_is_cut_short_during_a_run_ends_it_in_one_line_with_status_2(tmp_path, pack):
    """Each in a process of its own, which the signal that the mapped file raises would end.

    Nor do they load torchvision, which takes seconds.
    """
    cases = [("step", 0), ("scores", 4096), ("evaluate", 4096)]
    for where, _ in cases:
        (tmp_path / where).mkdir()
        shutil.copy(pack, tmp_path / where / "own.pack")
    code = f"""
import os, sys, pytest
from pathlib import Path
from tests.test_pack_runs import on_pack
from utils.base.errors import exit_cleanly
for where, left in {cases!r}:
    root = Path({str(tmp_path)!r}, where)
    own, child = root / "own.pack", os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            act = lambda: os._exit(3) if "torchvision" in sys.modules else os.truncate(own, left)
            exit_cleanly(lambda: on_pack(root, own, where, patch, act))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, where
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert done.returncode == 0 and done.stderr.count("\n") == 3, done.stderr
    for line in done.stderr.splitlines():
        assert re.match(r"error: .*(cut short|changed while it was in use)", line), line
    assert not list(tmp_path.rglob("summary.json")) and not list(tmp_path.rglob("*_stage2.pth"))
