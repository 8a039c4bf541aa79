"""What parsers are given at random: bytes, edited files, trees, words. Only clean errors, or success."""

import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.listed.lists import read_annotations, read_list
from tests.attacks import cifar, sound_files
from tests.helpers import checkpoint_content
from tests.test_packs import tiny, with_val
from utils.base.errors import UserError
from utils.packs.pack import read_pack, write_pack
from utils.run import checkpoint
from utils.settings.config import resolve
from utils.settings.parse import ALL, ARGUMENTS, parse


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [argument.name for argument in ARGUMENTS] + ["lr=", "imb_ratio=0", "", "a" * 300, "seed=1,2", "head"]
)
VALUES = st.sampled_from(["1", "0", "-1", "nan", "inf", "1e400", "all", "los,ce", "digits_lt", "1,2", "1,,2"])
PICKLES = st.binary(max_size=80).map(lambda body: b"\x80\x02" + body + b".")
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), min_size=1, max_size=4)


def only_clean_errors(work: Callable[[], object], *names: str) -> None:
    try:
        work()
    except UserError as error:
        assert all(name in str(error) for name in names), error


def each_file(path: Path, examples: int, contents: st.SearchStrategy, read: Callable, name: str = "") -> None:
    """`read` is given `path` with each of the contents; its error names the file, or `name`."""

    @bounded(examples)
    @given(contents)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_clean_errors(lambda: read(path), name or path.name)

    check()


def edited(good: bytes, edits: list[tuple[float, bytes]]) -> bytes:
    """`good` with a few stretches written over."""
    spoilt = bytearray(good)
    for place, piece in edits:
        at = int(place * len(good))
        spoilt[at : at + len(piece)] = piece
    return bytes(spoilt)


def one_edited(goods: list[bytes]) -> st.SearchStrategy:
    """One of these files, a few stretches of it written over."""
    return st.tuples(st.sampled_from(goods), EDITS).map(lambda pair: edited(*pair))


def list_parser(folder: Path, examples: int) -> None:
    line = st.binary(max_size=40) | st.tuples(st.text(max_size=20), st.integers(-5, 1 << 33)).map(
        lambda pair: f"{pair[0]} {pair[1]}".encode("utf-8", "surrogatepass")
    )
    lists = st.lists(line, max_size=5).map(b"\n".join)
    each_file(folder / "list.txt", examples, lists, lambda path: read_list(path, folder))


def annotations_parser(folder: Path, examples: int) -> None:
    image = st.fixed_dictionaries({"id": PLAIN | st.integers(0, 3), "file_name": PLAIN | st.just("a/b.jpg")})
    of_image = st.fixed_dictionaries(
        {"image_id": PLAIN | st.integers(0, 3), "category_id": PLAIN | st.integers(0, 3)}
    )
    tree = st.fixed_dictionaries(
        {
            "images": st.lists(image | PLAIN, max_size=3),
            "annotations": st.lists(of_image | PLAIN, max_size=3),
            "categories": PLAIN,
        }
    )
    trees = (tree | PLAIN).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)
    each_file(folder / "train.json", examples, trees, lambda path: read_annotations(path, folder))


def pack_reader(folder: Path, examples: int) -> None:
    write_pack(folder / "good", with_val(tiny()))
    good = (folder / "good").read_bytes()
    packs = st.binary(max_size=60) | EDITS.map(lambda edits: edited(good, edits))
    each_file(folder / "x.pack", examples, packs, read_pack)


def checkpoint_reader_on_bytes(
    folder: Path, examples: int, read: Callable[[Path], object] = checkpoint.read
) -> None:
    checkpoint.save(folder / "good", checkpoint_content({"w": torch.zeros(9)}))
    torch.save({"w": torch.zeros(9)}, folder / "old", _use_new_zipfile_serialization=False)
    goods = [(folder / name).read_bytes() for name in ("good", "old")]
    each_file(folder / "x.pth", examples, st.binary(max_size=60) | one_edited(goods), read)


def checkpoint_reader_on_facts(folder: Path, examples: int) -> None:
    path = folder / "x.pth"
    known = checkpoint_content({"w": torch.zeros(9)})

    @bounded(examples)
    @given(st.sampled_from([*known, "head", "progress", "optimizer", "args", "shots", "class_names"]), PLAIN)
    def check(name: str, value: object) -> None:
        torch.save(known | {name: value, "digest": checkpoint.content_digest(known | {name: value})}, path)
        only_clean_errors(lambda: checkpoint.read(path), "x.pth")

    check()


def checkpoint_reader_on_pickles(folder: Path, examples: int) -> None:
    def zipped(pickled: bytes) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("a/data.pkl", pickled)
            file.writestr("a/version", "3\n")
        return content.getvalue()

    each_file(folder / "x.pth", examples, PICKLES.map(zipped), checkpoint.read)


def cifar_reader(folder: Path, examples: int) -> None:
    path, read = cifar(folder)
    files = PICKLES | one_edited(sound_files("cifar"))
    each_file(path, examples, files, lambda _: read(), "cifar-100-python")


def argument_parser(folder: Path, examples: int) -> None:
    pair = st.tuples(WORDS.map(lambda word: f"--{word}"), VALUES | st.text(max_size=10))
    words = st.lists(pair, max_size=4).map(lambda pairs: [word for pair in pairs for word in pair])

    @bounded(examples)
    @given(st.sampled_from(ALL), words, st.dictionaries(st.sampled_from(["num_class", "shots"]), st.none()))
    def check(script: str, argv: list[str], known: dict) -> None:
        argv = [word for word in argv if word not in ("-h", "--help")]
        only_clean_errors(lambda: resolve(script, parse(script, argv), known))

    check()


TARGETS = {
    "the list parser": list_parser,
    "the annotations parser": annotations_parser,
    "the pack reader": pack_reader,
    "the checkpoint reader on bytes": checkpoint_reader_on_bytes,
    "the checkpoint reader on facts": checkpoint_reader_on_facts,
    "the checkpoint reader on pickles": checkpoint_reader_on_pickles,
    "the CIFAR reader": cifar_reader,
    "the argument parser": argument_parser,
}


def torch_alone_fails(folder: Path) -> bool:
    """The control: are torch's own errors, without the reader around it, found to be none of ours?"""
    try:
        checkpoint_reader_on_bytes(folder, 20, partial(torch.load, weights_only=True))
    except Exception as error:
        return not isinstance(error, UserError)
    return False
