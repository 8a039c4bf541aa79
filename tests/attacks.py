"""Files built to harm their reader: small builders of pickles, zip files and torch's old streams.

What is tried with them runs in a process of its own, whose memory and time are limited.
"""

import io
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch

from datasets.cifar_lt import read_cifar
from tests.cifar_folders import CIFAR100, python2_pickle, small_part, write_small
from tests.forking import forked
from utils.base.errors import NoMemoryError, UserError
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent
MANY = 1 << 40  # bytes or numbers, in files of a few kilobytes
GOOD = small_part(CIFAR100, 2)

# ---- words of pickles


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def together(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + together(*arguments) + b"R"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def dtype(name: str, *state: bytes) -> bytes:
    made = call("numpy", "dtype", text(name), b"\x89", b"\x88")
    return (
        made + together(number(3), text("|"), *(state or (b"NNN", number(-1), number(-1), number(63)))) + b"b"
    )


def array(kind: bytes, data: bytes, *shape: int) -> bytes:
    empty = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), b"K\x00\x85", text("b"))
    return empty + together(number(1), together(*map(number, shape)), kind, b"\x89", data) + b"b"


def of_bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def encoded(inner: bytes, codec: str, times: int = 1) -> bytes:
    """`inner` encoded and encoded again: hex doubles it each time."""
    return named("_codecs", "encode") * times + inner + (text(codec) + b"\x86R") * times


def doubled(times: int) -> bytes:
    """A tuple of two of a tuple of two of ..., whose hash takes 2 ** times steps."""
    return b")" + b"2\x86" * times


POINTERS = struct.pack("<2Q", 0x4141414141414141, 8)
BODIES = {  # as values of plain data, what a pickle may harm with
    "an array of objects made of raw bytes": array(dtype("O8"), of_bytes(POINTERS), 2),
    "a huge array of objects": array(dtype("O8"), b"]", 1 << 34),
    "an array of objects from a buffer": call(
        "numpy.core.numeric", "_frombuffer", of_bytes(POINTERS), dtype("O8"), b"K\x02\x85", text("C")
    ),
    "a scalar that is an object": call("numpy.core.multiarray", "scalar", dtype("O8"), of_bytes(POINTERS)),
    "records of a gigabyte": array(dtype("V1000000000"), of_bytes(b""), 1),
    "fields in a kind of numbers": array(dtype("u1", b"N", b"(t", b"}"), of_bytes(b"12"), 2),
    "an array larger than its bytes": array(dtype("u1"), of_bytes(b"12"), MANY, 3072),
    "an array of negative length": array(dtype("u1"), of_bytes(b"1"), -1, -1),
    "hex nested 24 times": encoded(encoded(text("a" * 64), "latin1"), "hex", 24),
    "punycode": encoded(text("".join(map(chr, range(256, 40_256)))), "punycode"),
    "a codec for a string": encoded(text("a"), "rot13"),
    "a key that takes for ever to hash": b"}" + doubled(60) + b"K\x01s",
    "a member of a set that takes for ever to hash": b"\x8f(" + doubled(60) + b"\x90",
    "a set of what takes for ever to hash": call("builtins", "set", b"](" + doubled(60) + b"e"),
    "keys of one hash": b"}(" + b"".join(number((k + 1) * (2**61 - 1)) + b"N" for k in range(60_000)) + b"u",
    "places of one hash": b"".join(b"Np%d\n" % (k * (2**61 - 1)) for k in range(1, 40_000)),
    "a long key again and again": b"}" + text("k" * (1 << 20)) + b"q\x010" + b"h\x01K\x01s" * 50_000,
    "bytes of a length that is a lie": b"\x8e" + struct.pack("<Q", MANY),
    "text of a length that is a lie": b"\x8d" + struct.pack("<Q", MANY),
    "a number of a length that is a lie": b"\x8b" + struct.pack("<i", (1 << 31) - 1),
    "a frame of a length that is a lie": b"\x95" + struct.pack("<Q", MANY) + b"N",
    "a number of a megabyte": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20),
    "a place of a high number": b"Nr" + struct.pack("<I", 1 << 31) + b"Q",
    "lists 400,000 deep": b"]" * 400_000 + b"a" * 399_999,
    "bytearray": call("__builtin__", "bytearray", number(1 << 36)),
    "a list changed by a state": b"]" + b"}b",
    "a class made in the old way": b"(ios\nsystem\n",
    "an object made in the old way": b"(" + named("os", "system") + text("true") + b"o",
    "an object made by keywords": named("os", "system") + b")}\x92",
    "a number of the registry": b"\x82\x01",
    "a place elsewhere": b"Psomewhere\n",
    "a buffer elsewhere": b"\x97",
    "a call of text": text("numpy dtype") + b")R",
    "a call without arguments": named("numpy", "dtype") + b"NR",
    "an unhashable key": b"}]K\x01s",
    "copies of a list": b"]q\x01(" + b"K\x01" * 100_000 + b"e" + call("builtins", "set", b"h\x01") * 50_000,
    "copies of a text": text("t" * (1 << 20)) + b"q\x010](" + encoded(b"h\x01", "hex") * 50_000 + b"e",
    "a set of a text's letters": text("t" * (1 << 20))
    + b"q\x010"
    + call("builtins", "set", b"h\x01") * 20_000,
}


# seconds of a processor each: tried in one place of each kind of file, for one reader reads both
SLOW = ("lists 400,000 deep", "copies of a list")


@cache
def cifar_attacks() -> dict[str, bytes]:
    """Files `train`: each value in the place of the pixels, and alone."""
    labels = b"](" + b"K\x01" * 2 + b"e"
    return {
        f"{name}, {place}": whole(body)
        for name, value in BODIES.items()
        for place, body in {
            "as pixels": b"}(" + text("fine_labels") + labels + text("data") + value + b"u",
            "alone": value,
        }.items()
        if place == "alone" or name not in SLOW
    }


# ---- torch's files


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    said = (text("storage"), named("torch", kind), text(key), text("cpu"), number(count))
    return together(*said) + b"Q"


def tensor(numbers: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    lengths = (together(*map(number, size)), together(*map(number, stride)))
    made = (numbers, number(offset), *lengths, b"\x89", call("collections", "OrderedDict"))
    return call("torch._utils", "_rebuild_tensor_v2", *made)


def weights(*values: bytes, key: bytes = b"") -> bytes:
    """A dictionary of such values."""
    pairs = (text(f"w{place}") + value for place, value in enumerate(values))
    return whole(b"}(" + b"".join(pairs) + key + b"u")


def zipped(
    records: dict[str, bytes], hidden: bytes = b"", comment: bytes = b"", twice: bool = False
) -> bytes:
    """A zip file as simple as can be; `hidden` lies between the records and their table."""
    body, table = b"", b""
    for name, content in records.items():
        facts = struct.pack(
            "<5H3L2H", 20, 0, 0, 0, 0, zlib.crc32(content), *(len(content),) * 2, len(name), 0
        )
        entry = facts + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name.encode()
        table += (b"PK\1\2" + struct.pack("<H", 20) + entry) * (1 + twice)
        body += b"PK\3\4" + facts + name.encode() + content
    body += hidden
    count = len(records) * (1 + twice)
    return body + table + ending(count, len(table), len(body), comment)


def ending(count: int, length: int, start: int, comment: bytes = b"") -> bytes:
    return b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, length, start, len(comment)) + comment


def archive(pickled: bytes, numbers: bytes = bytes(16), **how: object) -> bytes:
    return zipped({"a/data.pkl": pickled, "a/data/0": numbers, "a/version": b"3\n"}, **how)


def saved(content: object, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def old_stream(pickled: bytes, keys: list[str], numbers: bytes) -> bytes:
    """Torch's format of before 2020, with another pickle in the place of its content."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(one, 2) for one in head) + pickled + pickle.dumps(keys, 2) + numbers


def two_tables() -> bytes:
    """A file of torch's, with a second table of records for readers that trust the smaller numbers."""
    good = saved({"w": torch.zeros(4)})
    count, length, start = struct.unpack("<HLL", good[-12:-2])
    table, zip64 = good[start : start + length], bytearray(good[-98:-42])
    zip64[40:56] = struct.pack("<2Q", length, start + length)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, start + 2 * length, 1)
    return good[:start] + table * 2 + zip64 + locator + ending(count, length, start)


def zip_bomb() -> bytes:
    """256 MiB of zeros, made a megabyte at a time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", weights(FOUR))
        with file.open("a/data/0", "w") as record:
            for _ in range(256):
                record.write(bytes(1 << 20))
    return out.getvalue()


def lists_of_lists() -> list:
    value = [1] * 10
    for _ in range(12):
        value = [value] * 10
    return value


def circle() -> dict:
    value = {"w": torch.zeros(2)}
    value["state_dict"] = value
    return value


SMALL = {"w": torch.arange(4.0)}
FOUR = tensor(storage(4), 0, (4,), (1,))


@cache
def checkpoint_attacks() -> dict[str, bytes]:
    new, old, plain = saved(SMALL), saved(SMALL, old=True), weights(FOUR)
    sixteen = struct.pack("<q", 4) + bytes(16)
    return {
        **{f"{name}, zip": archive(weights(value)) for name, value in BODIES.items()},
        **{
            f"{name}, old": old_stream(weights(value), [], b"")
            for name, value in BODIES.items()
            if name not in SLOW
        },
        "an old file with a new one behind it": old + new,
        "a new file with an old one behind it": new + old,
        "a new file with a new one behind it": new + new,
        "a new file behind text": b"text" + new,
        "two tables of records": two_tables(),
        "a comment": archive(plain, comment=b"comment"),
        "a comment that is an end": archive(plain, comment=ending(3, 10, 10)),
        "an old file within a new one": archive(plain, hidden=old),
        "two records of one name": archive(plain, twice=True),
        "two records of one name but for capitals": zipped(
            {"a/data.pkl": plain, "a/data/0": bytes(16), "A/DATA.PKL": plain}
        ),
        "a zip file of something else": zipped({"a/word.xml": b"<x/>"}),
        "a zip file of nothing": ending(0, 0, 0),
        "a storage longer than its record": archive(weights(tensor(storage(1 << 30), 0, (4,), (1,)))),
        "a storage shorter than its record": archive(plain, bytes(20)),
        "a storage of no record": archive(weights(tensor(storage(4, "1"), 0, (4,), (1,)))),
        "a storage of two kinds": archive(
            weights(FOUR, tensor(storage(4, kind="IntStorage"), 0, (4,), (1,)))
        ),
        "a tensor behind its storage": archive(weights(tensor(storage(4), 1, (4,), (1,)))),
        "a tensor far behind its storage": archive(weights(tensor(storage(4), 1 << 40, (1,), (1,)))),
        "a tensor with strides beyond its storage": archive(weights(tensor(storage(4), 0, (2, 2), (4, 1)))),
        "a tensor before its storage": archive(weights(tensor(storage(4), 3, (4,), (-1,)))),
        "a tensor of stride 0": archive(weights(tensor(storage(4), 0, (1 << 36,), (0,)))),
        "a tensor of more strides than sizes": archive(weights(tensor(storage(4), 0, (4,), (1, 1)))),
        "a tensor of 100 dimensions": archive(weights(tensor(storage(4), 0, (1,) * 100, (1,) * 100))),
        "a tensor of no storage": archive(weights(tensor(text("w"), 0, (4,), (1,)))),
        "a storage described by less": archive(weights(together(text("storage"), text("0")) + b"Q")),
        "one tensor ten thousand times": archive(
            whole(b"](" + tensor(storage(1024), 0, (1024,), (1,)) + b"q\x09" + b"h\x09" * 10_000 + b"e"),
            bytes(4096),
        ),
        "a text a million times": archive(
            whole(text("t" * (1 << 20)) + b"q\x01" + b"]r\x02\0\0\0(" + b"h\x01" * 1_000_000 + b"e")
        ),
        "a zip bomb": zip_bomb(),
        "lists of lists of lists": saved({"w": torch.zeros(2), "x": lists_of_lists()}),
        "a circle": saved(circle()),
        "a tensor made by its size": archive(weights(call("torch", "Tensor", number(1 << 34)))),
        "an old storage of terabytes": old_stream(
            weights(tensor(storage(1 << 38), 0, (4,), (1,))), ["0"], sixteen
        ),
        "an old storage without numbers": old_stream(plain, [], b""),
        "an old storage named twice": old_stream(plain, ["0", "0"], sixteen * 2),
        "an old storage of another length": old_stream(plain, ["0"], struct.pack("<q", 5) + bytes(20)),
        "an old storage cut off": old_stream(plain, ["0"], sixteen[:-1]),
        "an old file that goes on": old + b"\0",
        "an old key that is a list": old_stream(plain, [["0"]], sixteen),
    }


# ---- what is tried


def cifar(folder: Path) -> tuple[Path, Callable[[], object]]:
    place = write_small(folder, train=GOOD) / "train"
    return place, lambda: read_cifar("cifar100", folder)


def torch_file(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "x.pth", lambda: checkpoint.read(folder / "x.pth")


def sound_files(kind: str) -> list[bytes]:
    if kind == "cifar":
        return [python2_pickle(GOOD), *(pickle.dumps(GOOD, protocol) for protocol in (0, 2, 4, 5))]
    nested = {
        "state_dict": SMALL,
        "rows": [{"a": 1.5, "b": (1, None)}],
        "best": np.float64(3),
        "n": np.int64(3),
    }
    return [saved(nested), saved(nested, old=True), archive(weights(FOUR))]


KINDS = {"cifar": (cifar, cifar_attacks), "checkpoint": (torch_file, checkpoint_attacks)}


def outcome(read: Callable[[], object]) -> str:
    """refused, or read; what else happens is not caught."""
    try:
        read()
    except NoMemoryError:
        raise
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 1000, error
        return "refused"
    return "read"


def attack(kind: str, folder: Path, count: int) -> tuple[int, int, int, int]:
    """Attack files and how many are refused, random mutations of them and sound ones and how many are."""
    place, read = KINDS[kind][0](folder)
    attacks, refused = KINDS[kind][1](), 0
    for name, content in attacks.items():
        place.write_bytes(content)
        found = outcome(read)
        assert found == "refused", f"{name}: {found}"
        refused += 1
    small = [content for content in attacks.values() if len(content) < 5000] + sound_files(kind) * 9
    draw, spoilt = Random(0), 0
    for _ in range(count):
        content = bytearray(draw.choice(small))
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(min(len(content), 600))
            piece = draw.choice((b"", draw.randbytes(1), b"\x8e\xff", b"R"))
            content[at : at + draw.choice((0, 1, 1))] = piece
        place.write_bytes(content)
        spoilt += outcome(read) == "refused"
    return len(attacks), refused, count, spoilt


def limited_attack(
    kind: str, folder: Path, count: int, megabytes: int = 200, seconds: int = 300
) -> list[int]:
    """`attack` in a process that may take so much memory and time beyond what it has at its start."""
    code, out, error = forked(["-m", "tests.attacks", kind, folder, count, megabytes, seconds])
    assert code == 0, error[-2000:]
    return [int(word) for word in out.split()]


def main(kind: str, folder: str, *limits: str) -> None:
    count, megabytes, seconds = map(int, limits)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    found = attack(kind, Path(folder), count)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used.ru_maxrss) >> 10
    assert grown < megabytes, f"memory grew by {grown} MB"
    print(*found, grown)


if __name__ == "__main__":
    main(*sys.argv[1:])
