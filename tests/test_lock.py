"""The lock of a run folder: one run at a time, and none is left behind."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main_stage1
import main_stage2
from tests.helpers import call, in_step, places, refusal, run_folder, run_stage1, run_stage2
from utils.base.errors import UserError
from utils.run import checkpoint
from utils.run.lock import FolderLock

ROOT = Path(__file__).resolve().parent.parent


def test_a_killed_run_leaves_no_lock_even_while_a_process_that_it_forked_lives_on(tmp_path):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from utils.run.lock import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "os.write(1, f\"{child or 'ready'}\\n\".encode())  # print would write the line's end by itself\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    [child] = [
        int(line) for line in (holder.stdout.readline(), holder.stdout.readline()) if line != "ready\n"
    ]
    try:
        with pytest.raises(UserError, match="another run is writing to"):
            FolderLock(tmp_path)
        holder.kill()
        holder.wait()
        FolderLock(tmp_path).release()
    finally:
        holder.kill()
        holder.stdout.close()
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(("stage", "main"), [("stage1", main_stage1.main), ("stage2", main_stage2.main)])
def test_last_pth_is_read_only_while_its_folder_is_locked(digits, tmp_path, monkeypatch, stage, main):
    folder = shutil.copytree(run_folder(digits.root, stage), tmp_path / "run")
    words = ("--resume", folder, *places(tmp_path))
    words += ("--pretrained_pth", digits.stage1) if stage == "stage2" else ()
    read, inner = checkpoint.read, []

    def read_while_another_run_tries(path):
        if Path(path) == folder / "last.pth" and not inner:
            inner.append(refusal(main, *words))
        return read(path)

    monkeypatch.setattr(checkpoint, "read", read_while_another_run_tries)
    assert f"resumed {folder}" in call(main, *words)
    assert inner == [
        f"another run is writing to {folder}: let it end, or start a run of its own without --resume"
    ]


@pytest.mark.parametrize(("stage", "replaced"), [(1, True), (2, False)])
def test_a_run_whose_folder_is_moved_writes_nothing_by_its_old_name_and_goes_on_in_the_new(
    digits, tmp_path, stage, replaced
):
    words = ("--save_every", "1", "--seed", "0")
    run = {
        1: lambda: run_stage1(tmp_path, "--epochs", "3", *words),
        2: lambda: run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--finetune_epoch", "3", *words),
    }[stage]
    moved, before = tmp_path / "moved", {}

    def move() -> None:
        folder = run_folder(tmp_path, f"stage{stage}")
        folder.rename(moved)
        if replaced:
            shutil.copytree(moved, folder)
        before.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        with pytest.raises(UserError, match="another run is writing"):  # the lock has gone along
            FolderLock(moved)

    with in_step(7, move), pytest.raises(UserError) as caught:
        run()
    message = str(caught.value)
    parent = tmp_path / "out" / f"digits_lt_IR=50_stage{stage}"
    assert message.startswith(f"{parent}/") and "was moved or replaced while a run was writing" in message
    after = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    assert after == before and not (tmp_path / "ckpt").exists()
    assert bool(list(parent.iterdir())) == replaced
    main = {1: main_stage1.main, 2: main_stage2.main}[stage]
    assert f"resumed {moved}" in call(main, "--resume", moved, *places(tmp_path))


def test_a_log_that_an_editor_has_replaced_is_locked_anew_and_the_run_goes_on(tmp_path):
    lock = FolderLock(tmp_path)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").write_text("as an editor leaves it")
    lock.keep()
    with pytest.raises(UserError, match="another run is writing to"):
        FolderLock(tmp_path)
    lock.close()
    assert (tmp_path / "log.txt").read_text() == "as an editor leaves it"


def test_a_log_that_was_made_for_the_lock_alone_goes_with_it(tmp_path):
    FolderLock(tmp_path).close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "log.txt").touch()
    FolderLock(tmp_path).close()
    assert (tmp_path / "log.txt").exists()
