"""The released feature packs: the benchmark of re-training methods without a single image."""

import re
from pathlib import Path

import pytest

from tests.helpers import PROGRAMS, call, last_line, places
from utils.packs.pack import read_pack

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "checkpoints" / "released"
# folder and network -> training images, validation images, width
PACKS = {
    ("IR=100", "resnet32"): (10_847, 1_980, 64),
    ("IR=50", "resnet32"): (12_608, 1_980, 64),
    ("IR=10", "resnet32"): (19_573, 1_972, 64),
    ("IR=100", "resnet34"): (10_847, 1_980, 512),
}


def documented() -> list[tuple[str, str]]:
    """(command, last line) pairs that the released folder's README gives for the pack."""
    text = (RELEASED / "README.md").read_text()
    return re.findall(
        r"^    python (\S+\.py --features [^\n]+)\n    (test overall[^\n]+)$", text, re.MULTILINE
    )


def figures(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line)}


@pytest.mark.parametrize(("name", "sizes"), PACKS.items(), ids=str)
def test_a_pack_is_small_clean_and_holds_what_the_benchmark_needs(name, sizes):
    path = RELEASED / "cifar100_lt" / name[0] / f"{name[1]}_features.safetensors"
    pack, (train, val, width) = read_pack(path), sizes
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    assert size < (6 if name[1] == "resnet32" else 36) * 2**20
    assert (pack.train.shape, pack.test.shape, pack.val.shape) == (
        *((1, train, width), (2, 10_000, width), (2, val, width)),
    )
    assert pack.facts["val_clean"] and pack.facts["val_source"] == "unused"
    assert pack.facts["train_views"] == "plain" and len(pack.facts["class_names"]) == 100


def test_the_readme_gives_a_line_for_stage_1_and_one_for_los_and_one_of_every_further_pack():
    assert len(documented()) == 7
    assert {f"{network}_features" for _, network in PACKS} <= set(
        re.findall(r"\w+_features", str(documented()))
    )


@pytest.mark.parametrize(("command", "expected"), documented() or [("none", "none")])
def test_a_documented_command_on_the_pack_ends_with_its_line(command, expected, tmp_path):
    script, *words = command.split()
    words = [str(ROOT / word) if word.startswith("checkpoints/") else word for word in words]
    found = last_line(call(PROGRAMS[script], *words, *places(tmp_path)))
    for name, value in figures(expected).items():
        assert figures(found)[name] == pytest.approx(value, abs=0.06 if name != "few" else 0.11), name
    assert found.split("selected_on")[1] == expected.split("selected_on")[1]
