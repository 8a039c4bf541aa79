"""Every indented command of every page runs, in the order of its page, in a folder like a fresh checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from datasets import to_folder
from tests.file_trees import imagenet_tree
from tests.helpers import call
from tests.test_documents import PAGES, ROOT

# a command with the lines that it goes on with; an assignment; a loop with all that is in it
_ON = r"(?:.*\\\n|.*\n {6,}|.*\n    (?=done))*.*"
COMMAND = re.compile(rf"^((?: {{4}})?(?:python|torchrun) {_ON}|    (?:\w+=|for ){_ON})$", re.MULTILINE)
ENCODER = """
import torch

def encoder():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())

lite0 = encoder
"""


def checkout(root: Path, text: str) -> None:
    """Links to the files of the project, and what the page takes for granted."""
    for place in ROOT.iterdir():
        if not place.name.startswith(".") and place.name not in ("output", "checkpoints", "data"):
            (root / place.name).symlink_to(place)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "released").symlink_to(ROOT / "checkpoints" / "released")
    if "to_folder" not in text:
        call(to_folder.main, "--dataset", "digits_lt", "--to", root / "my_images")
    if "photos" in text:
        call(to_folder.main, "--dataset", "digits_lt", "--to", root / "digits")
        shutil.move(root / "digits" / "train", root / "photos")
        shutil.move(root / "digits" / "test", root / "new_photos")
    rng = np.random.default_rng(0)
    np.save(root / "Y.npy", np.arange(60) % 3)
    np.save(root / "X.npy", rng.normal(size=(60, 8)).astype(np.float32))
    shutil.copytree(root / "my_images" / "test", root / "new_images") if "new_images" in text else None
    for module in ("mine", "my_encoders"):
        (root / f"{module}.py").write_text(ENCODER)
    if "resnet50.pth" in text:
        torch.save(resnet50().state_dict(), root / "resnet50.pth")
    (root / "bin").mkdir()
    for name in ("python", "torchrun"):
        shell = root / "bin" / name
        shell.write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'page_shell.py').read_text()}")
        shell.chmod(0o755)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "tutorial"], ids=str)
def test_every_indented_command_of_a_page_runs(page, tmp_path, request):
    """The tutorial's have a test of their own, which holds what they print to the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    # other tests run those on a file or a folder of the reader's own
    lines = [line for line in COMMAND.findall(text) if not re.search(r"\b(RUN|FILE|RUN_FOLDER)\b", line)]
    if not lines:
        pytest.skip("it has none")
    checkout(tmp_path, text)
    if "imb_ratio" in text:
        (tmp_path / "data").symlink_to(request.getfixturevalue("cifar_dir"))
    tree = imagenet_tree(tmp_path / "imagenet")
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "IMAGENET": str(tree)}
    script = "\n".join(["set -eu", *lines, "wait"])
    words = ["bash", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
