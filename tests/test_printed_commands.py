"""Every command that a message or the log prints runs as it is printed, from where the user is."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import main_stage1
import main_stage2
from datasets import data_name
from tests.file_trees import folder_tree, list_tree
from tests.helpers import HANG, PROGRAMS, call, refusal, stopped_at_step
from utils.features.__main__ import main as features_main
from utils.run import checkpoint
from utils.settings.commands import ROOT, command

ODD = "it's a $HOME of `my own`"  # a folder's name that a shell takes apart
SMALL = ("--epochs", "1", "--seed", "0")
NETWORK = ("--network", "tests.user_networks:tiny")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current folder that is not the project's."""
    (tmp_path / ODD).mkdir()
    monkeypatch.chdir(tmp_path / ODD)
    return Path()


def printed(text: str) -> str:
    """The one command in a text."""
    found = re.findall(r"`((?:PYTHONPATH=\S+ )?(?:python|torchrun) .*?)`(?=,|\)|$)", text, re.MULTILINE)
    found += re.findall(r"^(?:stopped .*; go on with|pictures): (.*)$", text, re.MULTILINE)
    assert len(found) == 1, text
    return found[0]


def words_of(line: str) -> list[str]:
    """A command line as a shell hands it on."""
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in out.split(b"\0")[:-1]]


def program(line: str) -> tuple[Callable, list[str]]:
    """The main that a printed command runs, and its words."""
    words = [word for word in words_of(line) if not word.startswith("PYTHONPATH=")]
    assert words[0] == "python" and (words[1] == "-m" or Path(words[1]).parent == ROOT), line
    name = words[2] if words[1] == "-m" else Path(words[1]).name
    return PROGRAMS[name], words[3 if words[1] == "-m" else 2 :]


def run(line: str, *more: str) -> str:
    """Run a printed command in this process, with `more` that makes it short."""
    main, words = program(line)
    return call(main, *words, *more)


DIGITS = ("--dataset", "digits_lt", "--ckpt_dir", "the models", "--out", "runs", "--imb_ratio", "20")


def test_a_run_that_lacks_its_stage_prints_the_command_that_makes_it_for_the_same_data():
    asked = (*DIGITS, "--subset_seed", "3", "--shots", "5,30", "--val_source", "none")
    message = refusal(main_stage2.main, *asked, "--finetune_epoch", "1")
    assert "--subset_seed 3 --shots 5,30 --val_source none" in message
    run(printed(message), *SMALL)
    evaluated = (*asked[:-2], "--cur_stage", "stage2")
    run(printed(refusal(evaluate.main, *evaluated)), "--finetune_epoch", "1")
    assert "selected_on=last" in call(evaluate.main, *evaluated)


def own_images(elsewhere: Path) -> list[str]:
    """The words of a data set of lists, and of the places where its runs leave things."""
    root = list_tree(elsewhere / "my images", counts=(5, 4, 3), test_per_class=2)
    lists = [word for part in ("train", "test") for word in (f"--{part}_list", str(root / f"{part}.txt"))]
    words = ["--dataset", "list", "--data_dir", str(root), *lists, "--workers", "0"]
    return [*words, "--ckpt_dir", "m", "--out", "o"]


def test_so_does_one_on_images_of_ones_own_with_a_network_of_ones_own(elsewhere):
    asked = own_images(elsewhere)
    wanted = (*asked, *NETWORK, "--finetune_epoch", "1")
    run(printed(refusal(main_stage2.main, *wanted)), *SMALL, "--image_size", "32")
    call(main_stage2.main, *wanted)
    other = refusal(main_stage2.main, *asked, "--network", "resnet8")
    assert re.search("; beside it: .*_stage1.pth$", other)


@pytest.mark.parametrize(
    ("parts", "words", "shares"),
    [
        (("",), (), "--test_fraction 0.2 --val_fraction 0.1"),
        (("",), ("--test_fraction", "0.4", "--val_source", "none"), "--test_fraction 0.4 --val_source none"),
        (("",), ("--val_fraction", "0.3"), "--test_fraction 0.2 --val_fraction 0.3"),
        (("train", "test"), (), ""),
        (("train", "val"), ("--select", "val"), "--val_fraction 0.1"),
        (("train", "val", "test"), ("--select", "val"), ""),
    ],
)
def test_so_does_one_on_folders_that_lack_a_part_with_the_shares_that_take_it_out(
    elsewhere, parts, words, shares
):
    for part in parts:
        folder_tree(elsewhere / "made", counts=(5, 4, 3), test_per_class=0)
        shutil.copytree(elsewhere / "made" / "train", elsewhere / "photos" / part)
    asked = ("--dataset", "folder", "--data_dir", "photos", "--workers", "0", "--ckpt_dir", "m", "--out", "o")
    message = refusal(main_stage2.main, *asked, *words)
    said = words_of(printed(message))
    found = {
        name: said[said.index(f"--{name}") + 1]
        for name in ("test_fraction", "val_fraction", "val_source")
        if f"--{name}" in said
    }
    assert " ".join(f"--{name} {value}" for name, value in found.items()) == shares
    if parts == ("",):
        run(printed(message), *SMALL)
        assert "selected_on" in call(main_stage2.main, *asked, *words, "--finetune_epoch", "1")


def test_so_does_evaluate_on_a_pack(digits, elsewhere):
    call(main_stage2.main, *DIGITS[:2], "--pretrained_pth", digits.stage1, "--save_features", "my pack",
         "--views", "1", "--finetune_epoch", "1", "--out", "runs", "--ckpt_dir", "first")  # fmt: skip
    asked = ("--features", "my pack", "--cur_stage", "stage2", "--ckpt_dir", "the models", "--out", "runs")
    run(printed(refusal(evaluate.main, *asked)), "--finetune_epoch", "1")
    assert "selected_on=last" in call(evaluate.main, *asked)


def test_a_stopped_run_goes_on_by_the_command_that_it_prints(elsewhere):
    asked = (*DIGITS, "--seed", "0")
    _, said = stopped_at_step(elsewhere, 3, lambda: call(main_stage1.main, *asked, "--epochs", "1"))
    assert "selected_on=last" in run(printed(said))
    _, said = stopped_at_step(elsewhere, 3, lambda: call(main_stage2.main, *asked, "--finetune_epoch", "1",
                                                         "--save_features", "my pack"))  # fmt: skip
    assert "selected_on=last" in run(printed(said)) and Path("my pack").is_file()
    assert len(list(Path("the models").rglob("*.pth"))) == 2


def test_a_network_of_ones_own_is_named_where_a_run_is_gone_on_with(elsewhere):
    asked = (*own_images(elsewhere), *NETWORK, "--image_size", "32", *SMALL, "--batch_size", "4")
    _, said = stopped_at_step(elsewhere, 2, lambda: call(main_stage1.main, *asked))
    assert "selected_on=last" in run(printed(said))


def test_the_pictures_of_a_run_are_drawn_by_the_command_that_it_prints_in_a_shell(digits, elsewhere):
    start = ("--dataset", "digits_lt", "--pretrained_pth", digits.stage1, "--finetune_epoch", "1")
    text = call(main_stage2.main, *start, "--out", "runs", "--ckpt_dir", "m")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    shell = ["bash", "-c", printed(text)]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True, timeout=HANG)
    drawn = done.stdout.split("\n")[:-1]
    assert drawn and all(Path(name).is_file() for name in drawn)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (main_stage1.main, ["--epochs"]),
        (features_main, []),
        (features_main, ["pack"]),
        (evaluate.main, ["xyz"]),
    ],
)
def test_the_help_that_a_message_names_is_there(main, words, capsys):
    named, rest = program(printed(refusal(main, *words)))
    with pytest.raises(SystemExit) as ended:
        named(rest)
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


def test_in_the_projects_own_folder_commands_are_as_short_as_in_the_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command("main_stage1.py", "--lr", 0.1) == "python main_stage1.py --lr 0.1"
    assert command("utils.plots", "a b") == "python -m utils.plots 'a b'"
    assert command("main_stage1.py", processes=2) == "torchrun --nproc_per_node 2 main_stage1.py"


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"caf\xe9'"), "\x1b[2J", "é", "-x"])
def test_names_that_no_terminal_shows_come_through_a_shell_whole(name):
    line = command("main_stage1.py", name)
    assert line.isprintable() and words_of(line)[2:] == [name]


def test_features_too_large_for_half_precision_are_kept_as_the_message_says(digits, elsewhere):
    """An ImageNet-like run on images that the backbone answers with values beyond float16."""
    asked = (*own_images(elsewhere), "--network", "resnet8")
    call(main_stage1.main, *asked, *SMALL, "--image_size", "32")
    path = next(Path("m").rglob("*_stage1.pth"))
    found = checkpoint.read(path)
    state = dict(found.state)
    last = max(name for name in state if name.endswith("bn2.weight"))
    state[last] = state[last].abs() * 1e7 + 1e7
    checkpoint.save(path, found.facts | {"model": state})
    asked = (*asked, "--finetune_epoch", "1")
    message = refusal(main_stage2.main, *asked)
    assert message.endswith("holds values beyond 65504: take --pack_dtype fp32")
    assert "selected_on=last" in call(main_stage2.main, *asked, "--pack_dtype", "fp32")


def test_names_in_both_forms_of_unicode_are_one_name(elsewhere):
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert one != two and data_name("folder", f"x/{one}") == data_name("folder", f"x/{two}") == "folder_café"
    lists = list_tree(elsewhere / "images", counts=(5, 4, 3), test_per_class=2)
    tree = elsewhere / "tree"
    source = sorted(path for path in lists.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for place in (f"train/{one}", f"test/{two}", "train/dog", "test/dog"):
        (tree / place).mkdir(parents=True)
        for image in source[:3]:
            shutil.copy(image, tree / place)
    asked = ("--dataset", "folder", "--data_dir", tree, "--workers", "0", "--out", "o", "--ckpt_dir", "m")
    start = (*asked, *SMALL, "--network", "resnet8", "--image_size", "32", "--val_source", "none")
    assert "6 training, 0 validation (none), 6 test images of 2 classes" in call(main_stage1.main, *start)
    (tree / f"train/{one}").rename(tree / f"train/{two}")
    assert "selected_on" in call(evaluate.main, *asked, "--network", "resnet8", "--cur_stage", "stage1")
    (tree / f"train/{one}").mkdir()
    shutil.copy(source[0], tree / f"train/{one}")
    assert "two class folders look alike" in refusal(main_stage1.main, *start)
