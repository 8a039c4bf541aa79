"""Pickles read as plain data: what pickle itself reads of them, at every protocol, arrays as stubs."""

import io
import pickle

import numpy as np
import pytest

from tests.cifar_folders import CIFAR10, CIFAR100, names_of, python2_pickle, small_part, write_small
from tests.file_trees import refused
from utils.base.plain_pickle import Array, UnwantedError, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SAME = ["shared", 2.5]
PLAIN = {
    "numbers": [0, -1, 255, 65536, -(2**31), 2**40, -(2**100), 1.5, float("-inf"), True, False, None],
    "text": ["", "a", "\n\\", "\xe9", "\u20ac", "t" * 300, "t" * 70_000],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], {}, {"a": {}}, SAME, SAME],
    "keys": {"a": 1, 2: 2, 2.5: 3, None: 4, True: 5},
    "sets": {"a", "b", 3},
}


def read(content: bytes) -> object:
    return load(io.BytesIO(content), len(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_is_read_as_pickle_reads_it(protocol):
    found = read(pickle.dumps(PLAIN, protocol))
    assert found == PLAIN and repr(found["numbers"]) == repr(PLAIN["numbers"])
    assert found["containers"][-1] is found["containers"][-2]


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.bool_, ">i4"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_array_becomes_a_stub_that_gives_the_same_array(protocol, kind):
    whole = np.arange(24).reshape(4, 6).astype(kind)
    arrays = {"rows": whole, "turned": whole.T, "one": whole[0, 1]}
    found = read(pickle.dumps(arrays, protocol))
    assert found["one"] == arrays["one"].item()
    for name in ("rows", "turned"):
        assert isinstance(found[name], Array) and found[name].shape == arrays[name].shape
        numbers = found[name].numbers()
        assert numbers.dtype == whole.dtype and np.array_equal(numbers, arrays[name])


def test_an_array_as_python_2_pickled_it_is_read_too():
    pixels = small_part(CIFAR100)["data"]
    assert np.array_equal(read(python2_pickle({"data": pixels}))["data"].numbers(), pixels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value", [np.array([[], 1], dtype=object), np.array(["a"]), np.zeros(2, "i4,f4"), 1j]
)
def test_arrays_of_anything_but_numbers_are_refused(protocol, value):
    with pytest.raises(UnwantedError):
        read(pickle.dumps(value, protocol))


def in_bytes(content: dict) -> dict:
    """As a program has it that read a file of Python 2 with encoding="bytes"."""
    return {
        key.encode(): [name.encode() for name in value] if key.endswith("names") else value
        for key, value in content.items()
    }


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("keys", [dict, in_bytes])
def test_cifar_files_that_were_pickled_anew_are_read(tmp_path, layout, protocol, keys):
    part = small_part(layout) | {"data": np.asfortranarray(small_part(layout)["data"])}
    parts = {name: pickle.dumps(keys(part), protocol) for name in (*layout.train, layout.test)}
    write_small(tmp_path, layout, **parts, **{layout.meta: pickle.dumps(keys(names_of(layout)), protocol)})
    name = "cifar10_lt" if layout is CIFAR10 else "cifar100_lt"
    assert "class 0 has " in refused(name, tmp_path)  # all of them were read: now they are counted
