"""The lock of a run folder: one run at a time, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main_stage1
import main_stage2
from tests.helpers import refusal, run_folder
from utils.errors import UserError
from utils.lock import FolderLock

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("stage", "main"), [("stage1", main_stage1.main), ("stage2", main_stage2.main)])
def test_a_second_run_that_resumes_a_folder_in_use_is_refused_in_one_line(digits, stage, main):
    folder = run_folder(digits.root, stage)
    lock = FolderLock(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    message = refusal(main, "--resume", folder)
    lock.release()
    assert message.startswith(f"another run is writing to {folder}")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_killed_run_leaves_no_lock_even_while_a_process_that_it_forked_lives_on(tmp_path):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from utils.lock import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    time.sleep(0.2)
    with pytest.raises(UserError, match="another run is writing to"):
        FolderLock(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    FolderLock(tmp_path).release()
    os.kill(child, signal.SIGKILL)
