"""docs/code.md: its patches fit this code, touch two files each at most, and what they add runs."""

import json
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
DIGITS = ["--dataset", "digits_lt", "--network", "resnet8", "--quiet"]
SMALL = ["--network", "resnet8", "--epochs", "1", "--seed", "0", "--quiet"]
SHORT = ["--finetune_epoch", "2"]
OWN = ["--method", "my_methods:build,los", "--option", "temperature=1,2,4", "--overwrite"]
RUNS = {  # in this order
    "stage 1": ["main_stage1", *DIGITS[:2], *SMALL],
    "loss": ["main_stage1", *DIGITS[:2], "--loss", "poly", "--ckpt_dir", "p", *SMALL],
    "method": ["main_stage2", *DIGITS, *SHORT, "--method", "poly,los", "--epsilon", "0.5,1,2"],
    "evaluate": ["evaluate", *DIGITS, "--cur_stage", "stage2"],
    "own method": ["main_stage2", *DIGITS, *SHORT, *OWN],
    "data set": ["main_stage1", "--dataset", "npz_lt", "--data_dir", ".", "--imb_ratio", "10", *SMALL],
}
CODE = """
import contextlib, importlib, io, json, sys
said = {}
for name, (script, *words) in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        importlib.import_module(script).main(words)
    said[name] = text.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What the scripts print in a copy of the code with all patches, and the files of the page beside it."""
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
    words = [sys.executable, "-c", CODE, json.dumps(RUNS)]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_what_re_trains_a_classifier_is_read_in_five_files_of_600_lines_together():
    files = re.findall(r"^\d\. `(\S+)`: ", PAGE, re.MULTILINE)
    assert len(files) == 5
    assert sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files) <= 600


def test_every_patch_touches_two_files_at_most():
    assert len(PATCHES) == 4
    assert all(1 <= patch.count("\n+++ ") <= 2 for patch in PATCHES)


@pytest.mark.parametrize("run", ["loss", "data set", "evaluate"])
def test_a_loss_of_the_page_trains_stage_1_its_data_set_is_trained_on_and_its_head_evaluated(said, run):
    assert said[run].startswith("test overall=")


@pytest.mark.parametrize(("run", "name"), [("method", "poly"), ("own method", "tempered")])
def test_a_method_with_its_head_and_option_is_swept_beside_los_from_a_users_own_file_too(said, run, name):
    lines = said[run].splitlines()
    assert sorted(line.split()[1] for line in lines) == ["method=los", *[f"method={name}"] * 3]
    assert run == "method" or "temperature=4" in said[run]
