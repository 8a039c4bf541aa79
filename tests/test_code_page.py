"""docs/code.md: its patches fit this code, touch two files each at most, and what they add runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import HANG

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
PATCHES = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
FILES = dict(re.findall(r"```python (\S+)\n(.*?)```", PAGE, re.DOTALL))
SMALL = ["--network", "resnet8", "--epochs", "1", "--seed", "0", "--quiet"]


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A copy of the code with all patches applied, and the files of the page beside it."""
    copy = tmp_path_factory.mktemp("copy") / "code"
    names = ("losses", "models", "datasets", "utils")
    for name in names:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    for patch in PATCHES:
        subprocess.run(["git", "apply", "-p1", "-"], cwd=copy, input=patch, text=True, check=True)
    for name, text in FILES.items():
        (copy / name).write_text(text)
    draws = np.random.default_rng(0)
    sets = {"train": 40, "test": 10}
    arrays = {f"x_{part}": draws.integers(0, 255, (5 * n, 3, 32, 32), np.uint8) for part, n in sets.items()}
    arrays |= {f"y_{part}": np.arange(5).repeat(n) for part, n in sets.items()}
    np.savez(copy / "images.npz", **arrays)
    run(copy, "main_stage1.py", "--dataset", "digits_lt", *SMALL)
    return copy


def run(copy: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_patch_touches_two_files_at_most():
    assert len(PATCHES) == 4
    assert all(1 <= patch.count("\n+++ ") <= 2 for patch in PATCHES)


def test_a_loss_of_the_page_trains_stage_1(patched):
    out = run(
        patched, "main_stage1.py", "--dataset", "digits_lt", "--loss", "poly", "--ckpt_dir", "p", *SMALL
    )
    assert out.startswith("test overall=")


def test_a_method_with_its_head_and_option_is_swept_beside_los(patched):
    words = ["--dataset", "digits_lt", "--network", "resnet8", "--finetune_epoch", "2", "--quiet"]
    out = run(patched, "main_stage2.py", *words, "--method", "poly,los", "--epsilon", "0.5,1,2")
    assert sorted(line.split()[1] for line in out.splitlines()) == ["method=los", *["method=poly"] * 3]
    assert run(patched, "evaluate.py", *words[:4], "--cur_stage", "stage2", "--quiet").startswith("test ")


def test_a_method_of_a_users_own_file_is_swept_beside_los(patched):
    words = ["--dataset", "digits_lt", "--network", "resnet8", "--quiet", "--ckpt_dir", "checkpoints"]
    words += ["--method", "my_methods:build,los", "--option", "temperature=1,2,4", "--overwrite"]
    words += ["--finetune_epoch", "2"]
    out = run(patched, "main_stage2.py", *words)
    assert sorted(line.split()[1] for line in out.splitlines()) == ["method=los", *["method=tempered"] * 3]
    assert "temperature=4" in out


def test_a_data_set_of_the_page_is_trained_on(patched):
    words = ["--dataset", "npz_lt", "--data_dir", ".", "--imb_ratio", "10", *SMALL]
    assert run(patched, "main_stage1.py", *words).startswith("test overall=")
