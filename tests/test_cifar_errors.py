"""CIFAR files that are hostile, broken or of another content: one line each that names the file."""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.cifar_folders import (
    CIFAR100,
    python2_pickle,
    refusal,
    small_part,
    write_small,
)

GOOD = small_part(CIFAR100)
LABELS = GOOD["fine_labels"]


# ---- hostile files ----


class Payload:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(marker) -> dict:
    """Contents that create `marker` when they are unpickled carelessly."""
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    shell = Payload(os.system, f"touch '{marker}'")
    inside = np.empty(2, dtype=object)
    inside[0] = shell
    return {
        "shell": shell,
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "beside": {**GOOD, "extra": shell},
        "nested in data": {**GOOD, "data": Payload(eval, code)},
        "nested in an array": {**GOOD, "data": inside},
        "as a key": {**GOOD, ("key", shell): 1},
        "in the labels": {**GOOD, "fine_labels": [*LABELS[:-1], shell]},
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", payloads("marker"))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, kind, protocol):
    marker = tmp_path / "marker"
    raw = pickle.dumps(payloads(marker)[kind], protocol=protocol)
    folder = write_small(tmp_path, train=raw)
    message = refusal(tmp_path)
    assert f"{folder / 'train'} is not an intact CIFAR file" in message and "no CIFAR file needs" in message
    assert not marker.exists()
    pickle.loads(raw)  # the negative control: a careless reader would have run it
    assert marker.exists()


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_every_file_of_the_folder_is_read_with_the_same_care(tmp_path, part):
    marker = tmp_path / "marker"
    folder = write_small(tmp_path, **{part: pickle.dumps(payloads(marker)["shell"], protocol=2)})
    assert str(folder / part) in refusal(tmp_path)
    assert not marker.exists()


def test_a_function_of_numpy_itself_is_refused_too(tmp_path):
    target = tmp_path / "written.npy"
    write_small(tmp_path, train=pickle.dumps({**GOOD, "data": Payload(np.save, str(target), 1)}))
    assert "numpy.save" in refusal(tmp_path)
    assert not target.exists()


# ---- broken files and files of another content ----


def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path):
    whole = python2_pickle({"batch_label": "x", "fine_labels": LABELS, "data": GOOD["data"]})
    folder = write_small(tmp_path)
    for length in sorted({*range(0, 300, 7), *range(300, len(whole), 6007), len(whole) - 1}):
        (folder / "train").write_bytes(whole[:length])
        assert f"{folder / 'train'} is not an intact CIFAR file" in refusal(tmp_path), length


FLIPS = """
import resource, sys
from pathlib import Path
from random import Random
from datasets.cifar_files import read_cifar
from utils.errors import UserError
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (1 << 30),) * 2)
root, draw, refused = Path(sys.argv[1]), Random(0), 0
train = root / "cifar-100-python" / "train"
whole = train.read_bytes()
structure = [*range(400), *range(len(whole) - 60, len(whole))]  # all that is not pixels
for position in draw.choices(structure, k=200):
    broken = bytearray(whole)
    broken[position] ^= 1 << draw.randrange(8)
    train.write_bytes(broken)
    try:
        read_cifar("cifar100", root)
    except UserError as error:
        refused += str(root) in str(error)
print(refused)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory with Linux's means")
def test_a_file_with_a_flipped_bit_ends_in_a_refusal_wherever_it_is(tmp_path):
    """In a process of limited memory: a flipped bit can make the reader ask for any amount of it."""
    write_small(tmp_path, train={"data": small_part(CIFAR100, 2)["data"], "fine_labels": [0, 1]})
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(tmp_path)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200"]


def test_a_broken_file_of_a_few_bytes_does_not_take_memory_without_limit(tmp_path):
    """One flipped bit turns REDUCE into LONG_BINPUT, whose number sizes a table in the C unpickler."""
    write_small(tmp_path, train=b"\x80\x02K\x01r" + struct.pack("<I", 10_000_000) + b".")
    tracemalloc.start()
    try:
        refusal(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("part", ["test", "meta"])
def test_a_broken_test_or_meta_file_is_named(tmp_path, part):
    folder = write_small(tmp_path, **{part: b"\x80\x02}q"})
    assert f"{folder / part} is not an intact CIFAR file" in refusal(tmp_path)
