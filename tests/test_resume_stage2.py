"""Stage 2 stopped anywhere, one head or all methods, ends at what the unbroken run leaves behind."""

import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import main_stage1
import main_stage2
from tests.file_trees import imagenet_tree
from tests.helpers import (
    call,
    places,
    read_metrics,
    refusal,
    run_evaluate,
    run_folder,
    run_stage2,
    stopped_at_step,
)
from tests.stage2 import left_behind, published
from utils.base.signals import Stopped
from utils.features import views
from utils.heads.head import HeadRun
from utils.packs.pack import read_pack
from utils.run import checkpoint

ONE = ("--seed", "0", "--finetune_epoch", "3")
MAIN = {1: main_stage1.main, 2: main_stage2.main}
LOS, SEVERAL = " ".join(ONE), "--seeds 0,1 --finetune_epoch 3"
DRIFTING = "--method los,ce,crt,la --seeds 0,1 --finetune_epoch 2 --bn_mode train"


def stop_at(root: Path, step: int, *argv: object) -> tuple[int, str]:
    return stopped_at_step(root, step, lambda: run_stage2(root, *argv))


def go_on(said: str) -> None:
    call(main_stage2.main, *said.partition("main_stage2.py ")[2].split())


LINES = {
    "los": (LOS, (5, 8)),
    "all": (f"{SEVERAL} --method all --budget equal", (80,)),
    "selected": (f"{SEVERAL} --method los,marc --select val", (7, 22)),
    "drifting": (f"{LOS} --bn_mode train", (5, 8)),
    "drifting, several": (DRIFTING, (2, 17, 24)),
    "drifting, several, selected": (f"{SEVERAL} --method los,crt --bn_mode train --select test", (20,)),
    "views": (f"{LOS} --views 2", (7,)),
}


@pytest.mark.parametrize("line", LINES)
def test_heads_stopped_at_any_step_resume_to_the_same_bits_rows_and_tables(digits, tmp_path, line):
    words, steps = LINES[line]
    words = (*words.split(), "--pretrained_pth", digits.stage1)
    whole = tmp_path / "whole"
    run_stage2(whole, *words)
    expected = left_behind(run_folder(whole, "stage2"), whole)
    for step in steps:
        root = tmp_path / str(step)
        code, said = stop_at(root, step, *words)
        folder = run_folder(root, "stage2")
        assert code == 143 and said.startswith("stopped by a signal after step ")
        assert "; go on with: python main_stage2.py " in said and said.endswith(f" --resume {folder}")
        assert not list((root / "ckpt").rglob("*_stage2.pth"))
        go_on(said)
        assert left_behind(folder, root) == expected


def test_no_csv_file_of_fractions_is_left_where_a_run_of_an_older_version_is_resumed(digits, tmp_path):
    words = (*ONE, "--method", "los,ncm", "--pretrained_pth", digits.stage1)
    run_stage2(tmp_path, *words)
    folder = run_folder(tmp_path, "stage2")
    expected = left_behind(folder, tmp_path)
    for name in ("metrics.csv", "table.csv", "per_class.csv"):
        pd.read_csv(folder / name).drop(columns="accuracies").to_csv(folder / name, index=False)
    run_stage2(tmp_path, "--resume", folder)
    assert left_behind(folder, tmp_path) == expected


def test_a_run_stopped_many_times_in_a_row_ends_at_the_same_bits(digits, tmp_path):
    words = (*ONE, "--method", "los,crt,ncm", "--pretrained_pth", digits.stage1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage2(whole, *words)
    code, said = stop_at(cut, 4, *words)
    for step in (1, 6, 3, 1):
        more = said.partition("main_stage2.py ")[2].split()
        code, said = stopped_at_step(cut, step, lambda words=more: call(main_stage2.main, *words))
        assert code == 143
    go_on(said)
    assert left_behind(run_folder(cut, "stage2"), cut) == left_behind(run_folder(whole, "stage2"), whole)


def test_without_the_optimisers_state_the_heads_end_elsewhere(digits, tmp_path, monkeypatch):
    words = (*ONE, "--pretrained_pth", digits.stage1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage2(whole, *words)
    _, said = stop_at(cut, 5, *words)
    restore = HeadRun.restore

    def without_momentum(head: HeadRun, state: dict) -> None:
        restore(head, state)
        for tensor in head.momentum.values():
            tensor.zero_()

    monkeypatch.setattr(HeadRun, "restore", without_momentum)
    go_on(said)
    assert left_behind(run_folder(cut, "stage2"), cut) != left_behind(run_folder(whole, "stage2"), whole)


def test_a_head_that_had_failed_stays_failed_and_the_others_go_on(digits, tmp_path):
    words = ("--method", "los,crt", "--finetune_lr", "0.001,1e38", "--finetune_epoch", "3", "--seed", "0")
    words = (*words, "--pretrained_pth", digits.stage1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage2(whole, *words)
    expected = left_behind(run_folder(whole, "stage2"), whole)
    assert "the loss is not finite" in expected["table.csv"]
    _, said = stop_at(cut, 25, *words)
    go_on(said)
    assert left_behind(run_folder(cut, "stage2"), cut) == expected


def test_a_run_of_before_the_shifted_schedule_goes_on_with_its_own(digits, tmp_path, monkeypatch):
    words = ("--method", "crt", *ONE, "--finetune_lr", "0.4", "--pretrained_pth", digits.stage1)
    state = HeadRun.state

    def older(head: HeadRun) -> dict:
        return {name: value for name, value in state(head).items() if name != "shifted"}

    with monkeypatch.context() as patch:
        patch.setattr(HeadRun, "__init__", _unshifted(HeadRun.__init__))
        patch.setattr(HeadRun, "state", older)
        _, said = stop_at(tmp_path, 6, *words)
    go_on(said)
    rates = read_metrics(run_folder(tmp_path, "stage2")).query("method == 'crt'")["lr"]
    assert list(rates) == pytest.approx([0.4, 0.3, 0.1])


def _unshifted(start: Callable) -> Callable:
    def begin(head: HeadRun, *given: object) -> None:
        start(head, *given)
        head.shifted = False

    return begin


def test_a_run_in_which_every_seed_had_an_epoch_of_its_own_is_not_mixed_with_one_for_all(digits, tmp_path):
    words = ("--finetune_lr", "0.01", "--finetune_epoch", "3", "--seeds", "0,1", "--select", "val")
    stop_at(tmp_path, 8, *words, "--pretrained_pth", digits.stage1)
    last = run_folder(tmp_path, "stage2") / "last.pth"
    source = checkpoint.read(last)
    heads = source.facts["heads"]
    assert heads[1]["progress"]["best_epoch"] == heads[2]["progress"]["best_epoch"]
    heads[1]["progress"]["best_epoch"] += 1
    checkpoint.save(last, source.facts | {"model": source.state, "heads": heads})
    message = refusal(main_stage2.main, "--resume", last)
    assert "has a chosen epoch for each seed" in message and message.endswith("start a new run")


def test_auto_takes_the_unfinished_run_of_the_same_words_and_stage_1_else_a_fresh_one(digits, tmp_path):
    words = (*ONE, "--pretrained_pth", digits.stage1)
    stop_at(tmp_path, 6, *words)
    cut = run_folder(tmp_path, "stage2")
    others = [("--label_smooth", "0.5"), ("--method", "los,crt"), ("--finetune_lr", "0.0001")]
    for other in [*others, ("--finetune_lr", "0.001")]:  # the last is the preset's own, as a word
        text = run_stage2(tmp_path, *words, *other, "--resume", "auto")
        assert "--resume auto: no unfinished run of this configuration, this is a fresh one" in text
    again = tmp_path / "stage1.pth"
    content = checkpoint.read(digits.stage1)
    checkpoint.save(again, content.facts | {"model": {k: v + 0 for k, v in content.state.items()}, "seed": 7})
    shutil.move(digits.stage1, kept := digits.stage1.with_suffix(".kept"))
    try:
        shutil.copy(again, digits.stage1)  # the same path, another stage 1
        text = run_stage2(tmp_path, *words, "--resume", "auto")
        assert "this is a fresh one" in text
        message = refusal(main_stage2.main, "--resume", cut)
        assert "was trained on another stage 1 (stage1_digest" in message
    finally:
        shutil.move(kept, digits.stage1)
    text = run_stage2(tmp_path, *words, "--resume", "auto")
    assert f"resumed {cut}" in text and "2 of 2 heads go on" in text
    assert "this is a fresh one" in run_stage2(tmp_path, *words, "--resume", "auto")


def test_auto_begins_afresh_on_a_pack_that_was_made_again(digits, tmp_path):
    words = (*ONE, "--features", tmp_path / "digits.pack")
    made = ("--pretrained_pth", digits.stage1, "--method", "stage1", "--save_features", words[-1])
    run_stage2(tmp_path / "made", *made, "--views", "0")
    stop_at(tmp_path, 6, *words)
    run_stage2(tmp_path / "made", *made, "--views", "1")
    message = refusal(main_stage2.main, "--resume", run_folder(tmp_path, "stage2"))
    assert "was trained on other features (features_digest" in message
    assert "this is a fresh one" in run_stage2(tmp_path, *words, "--resume", "auto")


def test_what_cannot_be_resumed_is_refused_in_one_line(digits, tmp_path):
    stop_at(tmp_path, 6, *ONE, "--pretrained_pth", digits.stage1)
    last = run_folder(tmp_path, "stage2") / "last.pth"
    stage1 = run_folder(digits.root, "stage1") / "last.pth"
    assert "is not the last.pth of a stage-2 run" in refusal(main_stage2.main, "--resume", stage1)
    assert "is not the last.pth of a stage-2 run" in refusal(main_stage2.main, "--resume", digits.stage2)
    source = checkpoint.read(last)
    content, heads = source.facts | {"model": source.state}, source.facts["heads"]
    named = [head["method"] for head in heads]
    assert named == ["stage1", "los"]
    momentum = {name: torch.zeros(2) for name in heads[1]["momentum"]}
    for change, said in (
        ({"momentum": momentum}, "momentum does not fit"),
        ({"seconds": "x"}, "the fact heads cannot be"),
        ({"progress": {}}, "the fact heads cannot be"),
        ({"weights": 3}, "the fact heads cannot be"),
    ):
        checkpoint.save(last, content | {"heads": [heads[0], heads[1] | change]})
        message = refusal(main_stage2.main, "--resume", last)
        assert said in message and str(last) in message


def test_a_run_cut_off_in_its_features_goes_on_with_those_it_has(tmp_path, monkeypatch):
    """Image files: their features are on the disk, and stay there until the run has come to its end."""
    imagenet_tree(tmp_path / "data", counts=(300, 40), test_per_class=4, val_per_class=4)
    data = ["--dataset", "imagenet_lt", "--data_dir", tmp_path / "data", "--allow_partial", "--workers", "0"]
    data += ["--network", "resnet8", "--image_size", "32", "--device", "cpu", "--seed", "0"]
    call(main_stage1.main, *data, "--epochs", "1", "--save_every", "3", *places(tmp_path))
    words = [*data, "--finetune_epoch", "2", "--ckpt_dir", tmp_path / "ckpt"]
    call(main_stage2.main, *words, "--out", tmp_path / "whole")
    [whole] = (tmp_path / "whole").glob("*/*")
    assert not (whole / "features").exists()
    expected = left_behind(whole, tmp_path)
    published(tmp_path).unlink()
    real, passes = views.forward_views, [0]

    def stopped(*given):
        passes[0] += 1
        if passes[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(views, "forward_views", stopped)
    with pytest.raises(Stopped) as caught:
        call(main_stage2.main, *words, "--out", tmp_path / "cut")
    assert caught.value.code == 130 and passes[0] < 8
    [cut] = (tmp_path / "cut").glob("*/*")
    said = (cut / "log.txt").read_text().splitlines()[-1]
    assert said.startswith("stopped by a signal after its start; go on with: python main_stage2.py ")
    assert (cut / "features").is_dir()
    before, passes[0] = passes[0], 100
    go_on(said)
    assert not (cut / "features").exists() and left_behind(cut, tmp_path) == expected
    # of 340 training images two views and the plain ones, of test and validation a batch each
    assert passes[0] - 100 == 3 * 2 + 2 - before


def test_the_last_checkpoint_of_a_stopped_run_is_evaluated_as_any(digits, tmp_path):
    stop_at(tmp_path, 11, *ONE, "--pretrained_pth", digits.stage1, "--save_every", "4")
    last = run_folder(tmp_path, "stage2") / "last.pth"
    assert checkpoint.read(last).facts["version"] == 2
    assert "test overall=" in run_evaluate(tmp_path, "--pretrained_pth", last)


# ---- no file chooses where is written


def test_the_place_of_a_pack_is_never_taken_from_last_pth_and_may_be_another(digits, tmp_path):
    pack, other = tmp_path / "a pack", tmp_path / "other"
    words = (*ONE, "--pretrained_pth", digits.stage1, "--views", "2", "--pack_dtype", "fp32")
    _, said = stop_at(tmp_path, 6, *words, "--save_features", pack)
    folder = run_folder(tmp_path, "stage2")
    before = read_pack(pack).digest
    pack.write_bytes(b"")
    assert "--save_features" in said and shlex.split(said)[-1] == str(folder)
    message = refusal(main_stage2.main, "--resume", folder)
    assert f"was started with --save_features {pack}: no file chooses where is written" in message
    assert pack.read_bytes() == b""
    shutil.copytree(folder, tmp_path / "kept")
    call(main_stage2.main, "--resume", folder, "--save_features", other)
    assert pack.read_bytes() == b"" and read_pack(other).digest == before
    shutil.rmtree(folder)
    (tmp_path / "kept").rename(folder)
    call(main_stage2.main, *shlex.split(said.partition("main_stage2.py ")[2]))
    assert read_pack(pack).digest == before


@pytest.mark.parametrize("stage", [1, 2])
def test_a_last_pth_that_was_copied_elsewhere_harms_nothing_there(digits, tmp_path, stage):
    run, place = run_folder(digits.root, f"stage{stage}"), tmp_path / "mine"
    (place / "features").mkdir(parents=True)
    (place / "features" / "notes").write_text("mine")
    (place / "config.json").write_text('{"mine": true}')
    shutil.copy(run / "last.pth", place)
    for words in ((), ("--ckpt_dir", tmp_path / "ckpt")):
        message = refusal(MAIN[stage], "--resume", place, *words)
        assert "mine is not the folder of the run in last.pth" in message and "a folder of its own" in message
    (place / "config.json").unlink()
    assert "is not the folder of the run" in refusal(MAIN[stage], "--resume", place)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_last_pth_in_a_folder_of_its_own_goes_on_and_its_model_goes_where_the_user_says(
    digits, tmp_path, stage
):
    place = tmp_path / "a" / "b" / "moved"
    place.mkdir(parents=True)
    shutil.copy(run_folder(digits.root, f"stage{stage}") / "last.pth", place)
    model = {1: digits.stage1, 2: digits.stage2}[stage]
    before = model.stat().st_mtime_ns
    message = refusal(MAIN[stage], "--resume", place)
    assert "does not lie where its run wrote it" in message and "--ckpt_dir" in message
    assert [path.name for path in place.iterdir()] == ["last.pth"]
    start = ("--pretrained_pth", digits.stage1) if stage == 2 else ()
    call(MAIN[stage], "--resume", place, "--ckpt_dir", tmp_path / "ckpt", *start)
    assert (tmp_path / "ckpt" / model.relative_to(digits.root / "ckpt")).is_file()
    assert model.stat().st_mtime_ns == before


@pytest.mark.parametrize(("stage", "dataset"), [(1, "cifar100_lt"), (2, "imagenet_lt")])
def test_a_data_dir_that_a_file_names_never_starts_a_download(digits, tmp_path, stage, dataset):
    (tmp_path / "run").mkdir()
    (tmp_path / "far").mkdir()
    kept = checkpoint.read(run_folder(digits.root, f"stage{stage}") / "last.pth")
    start = checkpoint.read(digits.stage1)
    classes = {"cifar100_lt": 100, "imagenet_lt": 1000}[dataset]
    ratio = 100.0 if classes == 100 else None
    set_ = {"dataset": dataset, "num_class": classes, "imb_ratio": ratio}
    facts = set_ | {"class_counts": [1] * classes, "class_names": list(map(str, range(classes)))}
    far = set_ | {"data_dir": str(tmp_path / "far")}
    for source, path in ((start, tmp_path / "start.pth"), (kept, tmp_path / "run" / "last.pth")):
        more = {"args": source.facts["args"] | far}
        if "given" in source.facts:
            more["given"] = {name: v for name, v in (source.facts["given"] | far).items() if v is not None}
        checkpoint.save(path, source.facts | facts | more | {"model": source.state})
    more = ("--pretrained_pth", tmp_path / "start.pth") if stage == 2 else ()
    message = refusal(MAIN[stage], "--resume", tmp_path / "run", *more, *places(tmp_path))
    assert message.startswith(f"{tmp_path / 'far'} lacks files of the data set")
    assert "give --data_dir" in message
    assert not list((tmp_path / "far").iterdir())
