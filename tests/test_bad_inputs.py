"""The bad-input matrix: every row of tests/bad_inputs ends in its line, exit status 2 and no file touched."""

import os
import re
import runpy
import shutil
import signal
import stat
import sys
import warnings
from pathlib import Path

import pytest

from tests.bad_inputs import (
    FOLDER,
    MAINS,
    PLOTS,
    Kitchen,
    Row,
    arguments,
    checkpoints,
    images,
    named_images,
    packs,
    runs,
    snapshot,
)
from tests.bad_inputs.kitchen import furnish
from tests.helpers import HANG
from utils.base.errors import exit_cleanly
from utils.settings.table import ARGUMENTS, CHECK, EVALUATE, STAGE1, STAGE2

ROOT = Path(__file__).resolve().parent.parent
THEMES = (arguments, checkpoints, packs, images, named_images, runs)
ROWS = [row for theme in THEMES for row in theme.ROWS]
NOBODY = 65534


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory, digits) -> Kitchen:
    root = tmp_path_factory.mktemp("kitchen")
    made = furnish(root, digits)
    before = [snapshot(folder) for folder in (root, digits.root)]
    for folder in (root, digits.root):
        folder.chmod(0o755)  # for the rows without root's power
    yield made
    runs.let_go()
    assert [snapshot(folder) for folder in (root, digits.root)] == before


def prepare(row: Row, tmp_path: Path, kitchen: Kitchen) -> list[str]:
    root = tmp_path / "w"
    root.mkdir()
    if row.make:
        row.make(root, kitchen)
    return row.argv(root, kitchen)


def check_ending(row: Row, status: int, out: str, err: str, before: dict, tmp_path: Path) -> None:
    """One line that says what the row expects; nothing written, changed or removed."""
    assert status == 2, (out, err)
    assert "Traceback" not in out + err
    if row.listed:
        assert err == "" and re.search(row.expected, out), out
    else:
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert re.search(row.expected, err), err
        assert len(err) < 1500 and err[:-1].isprintable(), err
    after = snapshot(tmp_path)
    if row.started:
        assert (tmp_path / "w" / "out").is_dir(), "no run folder: take the mark `started` away"
        after = {path: entry for path, entry in after.items() if not path.startswith(f"{tmp_path}/w/out")}
    elif not row.listed:
        assert out == ""
    assert after == before


def without_power(row: Row, tmp_path: Path) -> bool:
    """Root may read everything: act as nobody, where the row is about permissions and this is root."""
    if not row.unprivileged or os.geteuid() != 0:
        return False
    (tmp_path / "w").chmod(0o777)
    # where several processes test, one more folder lies between
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & stat.S_ISVTX:
            folder.chmod(0o755)
    os.setresuid(NOBODY, NOBODY, 0)
    return True


def hangs(*_: object) -> None:
    raise TimeoutError("the script does not come to an end")


@pytest.fixture(autouse=True)
def alarm():
    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_bad_input_ends_in_one_line_with_status_2_and_no_file_touched(
    row, tmp_path, kitchen, capsys, monkeypatch
):
    argv = prepare(row, tmp_path, kitchen)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path / "w")
    capsys.readouterr()
    changed = without_power(row, tmp_path)
    signal.alarm(HANG)
    try:
        with pytest.raises(SystemExit) as ending:
            exit_cleanly(lambda: MAINS[row.script](argv))
    finally:
        signal.alarm(0)
        if changed:
            os.setresuid(0, 0, 0)
    check_ending(row, ending.value.code, *capsys.readouterr(), before, tmp_path)


@pytest.mark.parametrize("row", [row for row in ROWS if row.program], ids=lambda row: row.id)
def test_a_bad_input_ends_so_where_python_runs_the_file_as_a_program_too(
    row, tmp_path, kitchen, capsys, monkeypatch
):
    """tests/test_start.py has those that end before torch is loaded, in processes of their own."""
    argv = prepare(row, tmp_path, kitchen)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setattr(sys, "argv", [row.script, *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is there already
        if row.script.endswith(".py"):
            runpy.run_path(str(ROOT / row.script), run_name="__main__")
        runpy.run_module(row.script, run_name="__main__")
    check_ending(row, ending.value.code, *capsys.readouterr(), before, tmp_path)


def test_every_script_has_a_row_as_a_program_and_no_two_rows_are_called_alike():
    assert {row.script for row in ROWS if row.program} == set(MAINS)
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names)


def test_every_argument_that_takes_a_number_has_a_row_with_one_that_is_out_of_range():
    tried = {name for _, names in arguments.BOUNDS.values() for name in names.split()} | {"shots"}
    assert tried >= {argument.name for argument in ARGUMENTS if argument.kind in (int, float)}


def test_names_that_are_no_utf8_work_for_whatever_is_read_and_written(tmp_path, kitchen, capsysbinary):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(kitchen.pets, odd / "pets")
    for name in ("stage1", "pack", "pets1"):
        shutil.copy(getattr(kitchen, name), odd / name)
    shutil.copytree(kitchen.tables, odd / "tables")
    out = ["--out", odd / "out", "--ckpt_dir", odd / "ckpt"]
    digits = ["--dataset", "digits_lt", *out]
    lists = [word for part in ("train", "test") for word in (f"--{part}_list", odd / "lists" / f"{part}.txt")]
    shutil.copytree(kitchen.lists, odd / "lists")
    own = ["--image_size", "32", "--network", "resnet8", "--workers", "0", "--epochs", "1", *out]
    lines = [
        (STAGE1, [*digits, "--epochs", "1", "--pretrained", odd / "stage1"]),
        (STAGE2, [*digits, "--finetune_epoch", "1", "--save_features", odd / "new"]),
        (EVALUATE, [*digits, "--cur_stage", "stage2", "--predictions", odd / "p.csv"]),
        (STAGE2, ["--features", odd / "pack", "--finetune_epoch", "1", *out]),
        (STAGE1, ["--dataset", "folder", "--data_dir", odd / "pets", *own]),
        (STAGE1, ["--dataset", "list", "--data_dir", odd / "lists", *lists, *own]),
        (EVALUATE, ["--pretrained_pth", odd / "pets1", "--predict", odd / "pets", "--workers", "0", *out]),
        (CHECK, ["--dataset", "list", "--data_dir", odd / "lists", *lists]),
        (FOLDER, ["--dataset", "digits_lt", "--to", odd / "digits"]),
        (PLOTS, [odd / "tables"]),
    ]
    for script, words in lines:
        try:
            exit_cleanly(lambda script=script, words=words: MAINS[script](list(map(str, words))))
        except SystemExit:
            assert script == CHECK  # images in two parts
        out, err = capsysbinary.readouterr()
        assert out and not err, (script, err)
