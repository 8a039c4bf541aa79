"""The released feature pack: the benchmark of re-training methods without a single image."""

import re
from pathlib import Path

import pytest

import evaluate
import main_stage2
from tests.helpers import call, last_line, places
from utils.packs import read_pack

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "checkpoints" / "released"
PACK = RELEASED / "cifar100_lt" / "IR=100" / "resnet32_features.safetensors"
# command line in the README -> the script that it calls
SCRIPTS = {"main_stage2.py": main_stage2.main, "evaluate.py": evaluate.main}


def documented() -> list[tuple[str, str]]:
    """(command, last line) pairs that the released folder's README gives for the pack."""
    text = (RELEASED / "README.md").read_text()
    return re.findall(
        r"^    python (\S+\.py --features [^\n]+)\n    (test overall[^\n]+)$", text, re.MULTILINE
    )


def figures(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line)}


def test_the_pack_is_small_clean_and_holds_what_the_benchmark_needs():
    pack = read_pack(PACK)
    assert PACK.stat().st_size < 6 * 2**20
    assert (pack.train.shape, pack.test.shape, pack.val.shape) == (
        *((1, 10_847, 64), (2, 10_000, 64), (2, 1_980, 64)),
    )
    assert pack.facts["val_clean"] and pack.facts["val_source"] == "unused"
    assert pack.facts["train_views"] == "plain" and len(pack.facts["class_names"]) == 100


def test_the_readme_gives_a_line_for_stage_1_and_one_for_los():
    assert len(documented()) == 3


@pytest.mark.parametrize(("command", "expected"), documented() or [("none", "none")])
def test_a_documented_command_on_the_pack_ends_with_its_line(command, expected, tmp_path):
    script, *words = command.split()
    words = [str(ROOT / word) if word.startswith("checkpoints/") else word for word in words]
    found = last_line(call(SCRIPTS[script], *words, *places(tmp_path)))
    for name, value in figures(expected).items():
        assert figures(found)[name] == pytest.approx(value, abs=0.06 if name != "few" else 0.11), name
    assert found.split("selected_on")[1] == expected.split("selected_on")[1]
