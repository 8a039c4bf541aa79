"""Parsers under random input: only clean errors or success. LOS_EXAMPLES sets how many inputs each gets."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.annotations import read_annotations
from datasets.lists import read_list
from tests.helpers import checkpoint_content
from tests.test_packs import tiny, with_val
from utils import checkpoint
from utils.arguments import ALL, ARGUMENTS, parse
from utils.config import resolve
from utils.errors import UserError
from utils.packs import read_pack, write_pack

EXAMPLES = int(os.environ.get("LOS_EXAMPLES", "200"))
bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
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
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), min_size=1, max_size=4)


def only_clean_errors(work, *names: str) -> None:
    try:
        work()
    except UserError as error:
        assert all(name in str(error) for name in names), error


def edited(good: bytes, edits: list[tuple[float, bytes]]) -> bytes:
    """`good` with a few stretches written over."""
    spoilt = bytearray(good)
    for place, piece in edits:
        at = int(place * len(good))
        spoilt[at : at + len(piece)] = piece
    return bytes(spoilt)


def test_the_list_parser(tmp_path):
    line = st.binary(max_size=40) | st.tuples(st.text(max_size=20), st.integers(-5, 1 << 33)).map(
        lambda pair: f"{pair[0]} {pair[1]}".encode("utf-8", "surrogatepass")
    )
    path = tmp_path / "list.txt"

    @bounded
    @given(st.lists(line, max_size=5).map(b"\n".join))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_clean_errors(lambda: read_list(path, tmp_path), "list.txt")

    check()


def test_the_annotations_parser(tmp_path):
    import json

    path = tmp_path / "train.json"
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

    @bounded
    @given((tree | PLAIN).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_clean_errors(lambda: read_annotations(path), "train.json")

    check()


def test_the_pack_reader(tmp_path):
    write_pack(tmp_path / "good", with_val(tiny()))
    good, path = (tmp_path / "good").read_bytes(), tmp_path / "x.pack"

    @bounded
    @given(st.binary(max_size=60) | EDITS.map(lambda edits: edited(good, edits)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_clean_errors(lambda: read_pack(path), "x.pack")

    check()


def test_the_checkpoint_reader_on_bytes(tmp_path):
    checkpoint.save(tmp_path / "good", checkpoint_content({"w": torch.zeros(9)}))
    torch.save({"w": torch.zeros(9)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    goods, path = [(tmp_path / name).read_bytes() for name in ("good", "old")], tmp_path / "x.pth"

    @bounded
    @given(st.binary(max_size=60) | st.tuples(st.sampled_from(goods), EDITS).map(lambda pair: edited(*pair)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_clean_errors(lambda: checkpoint.read(path), "x.pth")

    check()


def test_the_checkpoint_reader_on_facts_and_pickles(tmp_path):
    path = tmp_path / "x.pth"
    known = checkpoint_content({"w": torch.zeros(9)})

    @bounded
    @given(st.sampled_from([*known, "head", "progress", "optimizer", "args", "shots", "class_names"]), PLAIN)
    def check_facts(name: str, value: object) -> None:
        torch.save(known | {name: value, "digest": checkpoint.content_digest(known | {name: value})}, path)
        only_clean_errors(lambda: checkpoint.read(path), "x.pth")

    @bounded
    @given(st.binary(max_size=80).map(lambda body: b"\x80\x02" + body + b"."))
    def check_pickles(content: bytes) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", content)
            file.writestr("a/version", "3\n")
        only_clean_errors(lambda: checkpoint.read(Path(path)), "x.pth")

    check_facts()
    check_pickles()


def test_the_argument_parser_and_the_configuration():
    pair = st.tuples(WORDS.map(lambda word: f"--{word}"), VALUES | st.text(max_size=10))
    words = st.lists(pair, max_size=4).map(lambda pairs: [word for pair in pairs for word in pair])

    @bounded
    @given(st.sampled_from(ALL), words, st.dictionaries(st.sampled_from(["num_class", "shots"]), st.none()))
    def check(script: str, argv: list[str], known: dict) -> None:
        argv = [word for word in argv if word not in ("-h", "--help")]
        only_clean_errors(lambda: resolve(script, parse(script, "fuzz", argv), known))

    check()
