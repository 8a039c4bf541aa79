"""Files from elsewhere: flipped bits, cuts, hostile pickles, sizes, wrong facts; old files for ever."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from models import build_model
from tests.helpers import checkpoint_content, last_line, run_evaluate
from tests.spoil import KINDS, cuts, flips, lost_blocks, unnoticed_flips
from utils import checkpoint
from utils.errors import UserError
from utils.packs import read_pack

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
OLD = {
    "v1_stage1.pth": "test overall=35.80 many=98.00 medium=74.67 few=6.00 selected_on=last",
    "v1_stage2_marc.pth": "test overall=49.20 many=100.00 medium=84.00 few=23.33 selected_on=last",
}


@pytest.mark.parametrize("name", OLD)
def test_a_checkpoint_of_format_version_1_loads_for_ever_and_scores_what_it_scored(tmp_path, name):
    text = last_line(run_evaluate(tmp_path, "--pretrained_pth", DATA / name))
    found, stated = (
        [float(word.partition("=")[2]) for word in line.split()[1:5]] for line in (text, OLD[name])
    )
    assert found == pytest.approx(stated, abs=0.5), text  # one image in 400 may fall otherwise on another CPU


def test_checkpoints_that_were_released_or_are_under_way_load_too():
    paths = sorted((ROOT / "checkpoints").rglob("*.pth"))
    assert len(paths) >= 2 and all(checkpoint.read(path).facts["num_class"] == 100 for path in paths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_at_500_random_places_is_noticed_or_has_no_effect_at_all(tmp_path, kind):
    assert flips(kind, tmp_path, 500) >= 450


def test_without_the_digest_flips_go_unnoticed(tmp_path):
    assert unnoticed_flips(tmp_path, 20) >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_at_every_record_and_at_200_random_lengths_is_noticed(tmp_path, kind):
    assert cuts(kind, tmp_path, 200) > 205


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_the_disk_lost_is_noticed_or_has_no_effect_at_all(tmp_path, kind):
    assert lost_blocks(kind, tmp_path, 20) >= 18


class Call:
    """An object that a pickle makes by calling `function`."""

    def __init__(self, function, *values):
        self.function, self.values = function, values

    def __reduce__(self):
        return (self.function, self.values)


def zipped(path: Path, value: object, record: bytes = b"", compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickle.dumps(value, 2))
        file.writestr("a/data/0", record)
        file.writestr("a/version", "3\n")


def nested() -> list:
    value = [1] * 10
    for _ in range(12):
        value = [value] * 10
    return value


def circle() -> dict:
    value = {"w": torch.zeros(2)}
    value["state_dict"] = value
    return value


def huge_old_storage(path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 10)}, path, _use_new_zipfile_serialization=False)
    declared = b"\x8a\x05" + (1 << 33).to_bytes(5, "little")
    path.write_bytes(path.read_bytes().replace(b"M\x00\x04", declared))


GREEDY = {
    "bytearray": lambda path: zipped(path, {"w": Call(bytearray, 1 << 34)}),
    "a tensor by its size": lambda path: zipped(path, {"w": Call(torch.Tensor, 1 << 34)}),
    "a zip bomb": lambda path: zipped(path, {"w": 1}, bytes(1 << 28), zipfile.ZIP_DEFLATED),
    "stride 0": lambda path: torch.save({"w": torch.zeros(1).expand(1 << 36)}, path),
    "a huge storage in the old format": huge_old_storage,
    "lists of lists of lists": lambda path: torch.save({"w": torch.zeros(2), "x": nested()}, path),
    "a circle": lambda path: torch.save(circle(), path),
    "much plain data": lambda path: zipped(path, [[] for _ in range(3 << 20)]),
}
PEAK = """
import resource, sys
from pathlib import Path
from utils import checkpoint
from utils.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        checkpoint.read(Path(name))
    except UserError as error:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


def test_files_that_declare_too_much_are_refused_before_memory_is_taken(tmp_path):
    for number, make in enumerate(GREEDY.values()):
        make(tmp_path / f"greedy{number}.pth")
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(GREEDY), done.stdout
    for line, path in zip(lines, paths, strict=True):
        assert path.name in line and int(line.split()[0]) < 100, line


@pytest.mark.parametrize("old", [False, True])
def test_a_hostile_pickle_does_not_run_in_either_format(tmp_path, old):
    marker = tmp_path / "marker"
    for payload in (Call(os.system, f"touch {marker}"), Call(eval, f"open({str(marker)!r}, 'w').close()")):
        content = {"model": {"w": torch.zeros(2)}, "x": payload}
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
        with pytest.raises(UserError, match=r"x\.pth holds Python objects"):
            checkpoint.read(tmp_path / "x.pth")
        assert not marker.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert marker.exists()  # the payload does work


def resnet8_content(**facts) -> dict:
    state = build_model("resnet8", 10, in_channels=1).state_dict()
    return checkpoint_content(state, class_names=list("abcdefghij"), class_counts=[1] * 10, **facts)


WRONG = {
    "stage": ["stage3", 1, ["stage1"]],
    "dataset": [None, 3],
    "network": [None, ["resnet8"]],
    "num_class": ["10", 10.0, True, 1, None, 9],
    "epoch": [-1, "3", None],
    "class_names": ["abc", [1] * 10, list("abc"), None],
    "class_counts": [[1.5] * 10, [1], {}],
    "shots": [[100, 20], [20], "20,100", [0, 5]],
    "imb_ratio": ["50", [50]],
    "seed": [-1, "0", None],
    "tta": ["yes", 1],
    "args": [[], {1: 2}, None],
    "environment": ["cpu"],
    "head": [
        "linear",
        {},
        {"kind": 3},
        {"kind": "lws"},
        {"kind": "lws", "options": {}},
        {"kind": "x", "options": 3},
    ],
    "head_state": [[], {"weight": 3}],
    "progress": [{}, [], {"epoch": 1, "best_epoch": "x", "best_score": None, "rows": []}],
    "optimizer": [{}, {"state": {}, "param_groups": 3}, {"state": [], "param_groups": []}],
    "model": ["weights", {"w": 3}, [1], None],
    "version": ["1", 0, None, True, 1.0],
}


@pytest.mark.parametrize("fact", WRONG)
def test_a_malformed_fact_with_a_right_digest_is_refused_by_its_name(tmp_path, fact):
    assert (
        checkpoint.save(tmp_path / "x.pth", resnet8_content()) == checkpoint.read(tmp_path / "x.pth").digest
    )
    for value in WRONG[fact]:
        checkpoint.save(tmp_path / "x.pth", resnet8_content() | {fact: value})
        with pytest.raises(UserError, match=rf"x\.pth .*({fact}|class_names|head)") as caught:
            checkpoint.read(tmp_path / "x.pth")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fact", ["stage", "dataset", "network", "num_class", "epoch", "model"])
def test_a_missing_fact_is_named(tmp_path, fact):
    content = resnet8_content()
    del content[fact]
    checkpoint.save(tmp_path / "x.pth", content)
    with pytest.raises(UserError, match=f"the fact {fact} is missing"):
        checkpoint.read(tmp_path / "x.pth")


def test_weights_of_a_kind_that_the_network_has_no_use_for_are_refused(tmp_path):
    model = build_model("resnet8", 10, in_channels=1)
    for kind in (torch.int64, torch.bool, torch.uint8):
        state = {name: value.to(kind) for name, value in model.state_dict().items()}
        checkpoint.save(tmp_path / "x.pth", checkpoint_content(state))
        with pytest.raises(UserError, match=r"x\.pth: \S+ is \w+, its network needs float32"):
            checkpoint.load_weights(model, checkpoint.read(tmp_path / "x.pth"), "resnet8")


@pytest.mark.parametrize("read", [checkpoint.read, read_pack])
def test_what_is_no_regular_file_is_refused_and_nothing_hangs(tmp_path, read):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.write_bytes(b"hello, this is nothing")
    reasons = {
        "loop": "cannot be read",
        "dangling": "does not exist",
        "pipe": "is not a file",
        ".": "is not a file",
    }
    reasons |= {
        "/dev/zero": "is not a file",
        "\0": "cannot be read",
        "x" * 300: "cannot be read",
        odd.name: "damaged",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            read(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save(path, resnet8_content())
    path.chmod(0)
    code = (
        "import os, pathlib, sys\nfrom utils.files import require_file\n"
        "os.geteuid() or os.setuid(65534)\nrequire_file(pathlib.Path(sys.argv[1]))"
    )
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f"UserError: {path} cannot be read: Permission denied" in done.stderr
