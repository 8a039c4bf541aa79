"""Several runs at once on one machine do not touch each other's bits: how several seeds share a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HANG, places, run_folder
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent


def start(root: Path, seed: int) -> subprocess.Popen:
    """Stage 1 on Digits-LT in a process of its own."""
    words = ["--dataset", "digits_lt", "--epochs", "3", "--seed", str(seed), "--quiet", *places(root)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main_stage1.py"), *words],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen) -> None:
    try:
        assert process.wait(HANG) == 0
    finally:
        process.kill()


def left_behind(root: Path) -> tuple[str, bytes]:
    folder = run_folder(root, "stage1")
    digest = checkpoint.content_digest(checkpoint.read(folder / "last.pth").state)
    return digest, (folder / "metrics.csv").read_bytes()


@pytest.mark.long
def test_two_seeds_trained_at_once_end_with_the_bits_of_each_alone(tmp_path):
    roots = {(seed, when): tmp_path / f"{seed} {when}" for seed in (0, 1) for when in ("at once", "alone")}
    for root in roots.values():
        root.mkdir()
    together = [start(roots[seed, "at once"], seed) for seed in (0, 1)]
    try:
        for process in together:
            finish(process)
    finally:
        for process in together:
            process.kill()
    for seed in (0, 1):
        finish(start(roots[seed, "alone"], seed))
    ends = {key: left_behind(root) for key, root in roots.items()}
    assert ends[0, "at once"] == ends[0, "alone"] and ends[1, "at once"] == ends[1, "alone"]
    assert ends[0, "alone"] != ends[1, "alone"]
