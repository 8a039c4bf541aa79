"""Signals: the status, the repeat that is the same wish, the second that ends at once, loader processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main_stage1
import main_stage2
from tests.file_trees import imagenet_tree
from tests.helpers import HANG, call, places, run_folder
from tests.kills import TORCHRUN, start, wait_for_an_epoch
from utils.base.signals import Signals
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
def test_a_signal_is_noted_a_repeat_within_a_moment_is_the_same_and_handlers_come_back(number, status):
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.asked == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert signals.asked == status
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\n"
        "from utils.base.signals import Signals\n"
        "with Signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1.1)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 130


def test_a_signal_to_all_processes_of_a_run_with_loaders_saves_the_step(tmp_path):
    """Ctrl-C reaches the loader processes too, and so does the end of a Slurm job."""
    imagenet_tree(tmp_path / "data", counts=(60, 30), test_per_class=4, val_per_class=4)
    words = ["--dataset", "imagenet_lt", "--data_dir", tmp_path / "data", "--allow_partial"]
    words += ["--network", "resnet8", "--image_size", "32", "--device", "cpu", "--workers", "2"]
    words += ["--epochs", "300", "--batch_size", "8", "--seed", "0", *places(tmp_path)]
    words += ["--accum", "2"]
    with start([sys.executable, "main_stage1.py", *words]) as process:
        wait_for_an_epoch(process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=HANG)
    assert (process.returncode, err) == (130, ""), err
    last = out.splitlines()[-1]
    assert re.match(r"stopped by a signal after (step \d+ of )?epoch \d+; go on with: python", last), out
    stored = checkpoint.read(run_folder(tmp_path, "stage1", "imagenet_lt") / "last.pth")
    assert all(value.isfinite().all() for value in stored.state.values() if torch.is_floating_point(value))


@pytest.mark.long
def test_two_processes_stop_in_their_features_and_one_goes_on_to_the_same_heads(tmp_path):
    """Stage 2: each process has its own share of the images."""
    imagenet_tree(tmp_path / "data", counts=(300, 40), test_per_class=4, val_per_class=4)
    data = ["--dataset", "imagenet_lt", "--data_dir", tmp_path / "data", "--allow_partial"]
    data += ["--network", "resnet8", "--image_size", "32", "--device", "cpu", "--workers", "1"]
    data += ["--seed", "0", "--ckpt_dir", tmp_path / "ckpt"]
    call(main_stage1.main, *data, "--epochs", "1", "--out", tmp_path / "out")
    words = [*data, "--views", "20", "--finetune_epoch", "2"]
    stage2 = [*TORCHRUN, "--signals_to_handle", "SIGUSR1", "main_stage2.py"]  # as docs/slurm.sh has it
    with start([*stage2, *words, "--out", tmp_path / "cut"]) as process:
        for text in process.stdout:
            if text.startswith("features as"):
                break
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=HANG)
    [said] = [text for text in out.splitlines() if text.startswith("stopped by a signal after its start; go")]
    command = said.partition("go on with: ")[2].split()
    assert command[:4] == ["torchrun", "--nproc_per_node", "2", "main_stage2.py"], err
    text = call(main_stage2.main, *command[4:])  # one process takes over; a block's bits are nobody's own
    assert "the last bits may differ from the unbroken run's: processes was 2, is 1" in text
    call(main_stage2.main, *words, "--out", tmp_path / "whole")
    lasts = [next((tmp_path / name).rglob("last.pth")) for name in ("cut", "whole")]
    assert not (lasts[0].parent / "features").exists()
    states = [checkpoint.content_digest(checkpoint.read(last).state) for last in lasts]
    assert states[0] == states[1]
