"""What needs no run is answered before torch is loaded; names that are loaded late are all there."""

import subprocess
import sys

import pytest

import datasets
import losses
import models
from utils.settings.commands import ROOT
from utils.settings.table import EVALUATE, STAGE1, STAGE2

CODE = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
NO_FILE = "--pretrained_pth no_such_file.pth"
ANSWERED = [(script, "--help", "usage:") for script in (STAGE1, STAGE2, EVALUATE)]
ANSWERED.append((STAGE2, f"--method list {NO_FILE}", "label over-smoothing"))
REFUSED = [
    (STAGE1, "--epochs 0", "--epochs must be 1 or more"),
    (STAGE1, "--network resnet99", "unknown network 'resnet99'"),
    (STAGE1, "--dataset digits_lt --image_size 32", "--image_size is for images on disk"),
    (STAGE2, f"{NO_FILE} --method lso", "did you mean lws or los?"),
    (STAGE2, "--features no_such_file --views 2", "--views has no use beside it"),
    (EVALUATE, "", "say what to evaluate"),
]


def ended(script: str, words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT / script), *words.split()],
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("script", "words", "says"), ANSWERED)
def test_help_and_lists_are_printed_before_torch_is_loaded(script, words, says):
    done = ended(script, words)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout and done.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize(("script", "words", "says"), REFUSED)
def test_a_refused_argument_ends_in_its_line_before_torch_is_loaded(script, words, says):
    done = ended(script, words)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and says in done.stderr


@pytest.mark.parametrize("package", [losses, models, datasets], ids=lambda package: package.__name__)
def test_every_public_name_of_a_package_can_be_imported_and_no_other(package):
    assert package.__all__ and all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "table", [losses.LOSSES, models.HEADS, datasets.DATASETS], ids=["losses", "heads", "sets"]
)
def test_every_name_of_a_table_stands_for_something_that_can_be_called(table):
    assert table and all(callable(table[name]) for name in table)
