"""Feature packs: what is written comes back, mapped from disk; broken or contradictory packs are refused."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
from tests.helpers import call, last_line, places
from utils.base.errors import UserError
from utils.packs.pack import Pack, read_pack, write_pack
from utils.run.checkpoint import content_digest

TENSORS = ("train", "train_labels", "test", "test_labels", "val", "val_labels", "fc_weight", "fc_bias")


def tiny(dtype: torch.dtype = torch.float32, **facts: object) -> Pack:
    """3 classes with 4, 2 and 1 training images, 5 wide, 2 views, no validation images."""
    draw = torch.Generator().manual_seed(0)
    known = {"dataset": "tiny", "imb_ratio": 4.0, "network": "resnet8", "num_class": 3, "stage1_digest": None}
    known |= {"class_counts": [4, 2, 1], "class_names": ["Ä", 'b "c"', "d"], "note": {"lr": 1e-5}}
    known |= {"val_source": "none", "val_clean": False, "train_views": "augmented"}
    return Pack(
        train=torch.randn(2, 7, 5, generator=draw).to(dtype),
        train_labels=torch.tensor([0, 0, 1, 2, 0, 1, 0]),
        test=torch.randn(2, 4, 5, generator=draw).to(dtype),
        test_labels=torch.tensor([2, 1, 0, 2]),
        val=None,
        val_labels=None,
        fc_weight=torch.randn(3, 5, generator=draw),
        fc_bias=torch.randn(3, generator=draw),
        facts=known | facts,
    )


def with_val(pack: Pack, source: str = "unused") -> Pack:
    facts = pack.facts | {"val_source": source}
    return replace(pack, val=torch.ones(1, 2, 5), val_labels=torch.tensor([0, 2]), facts=facts)


def same(one: Pack, other: Pack) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in TENSORS]
    return one.facts == other.facts and all(
        a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def test_a_pack_of_ones_own_images_that_names_no_groups_has_the_usual_ones(tmp_path):
    write_pack(tmp_path / "a.pack", tiny(preset="folder", train_views="plain"))
    words = ("--features", tmp_path / "a.pack", "--cur_stage", "stage1")
    line = last_line(call(evaluate.main, *words, *places(tmp_path)))
    assert line.startswith("test overall=") and "many=- medium=- few=" in line


def write_raw(path: Path, pack: Pack, change: Callable | None = None, **header: str) -> None:
    """A file that holds just what is given, with a digest that fits; nothing is checked."""
    write_pack(path, pack)
    with safe_open(path, framework="pt") as file:
        known, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = {name: value.clone() for name, value in tensors.items()}
    if change:
        change(tensors)
    known |= {"digest": content_digest({"facts": header.get("facts", known["facts"])} | tensors)}
    save_file(tensors, path, metadata=known | header)


@pytest.mark.parametrize(("dtype", "extend"), [(torch.float16, with_val), (torch.float32, lambda pack: pack)])
def test_a_pack_comes_back_bit_for_bit_with_its_facts_and_digest(tmp_path, dtype, extend):
    pack = extend(tiny(dtype))
    digest = write_pack(tmp_path / "a.pack", pack)
    found = read_pack(tmp_path / "a.pack")
    assert same(found, pack) and found.path == tmp_path / "a.pack" and found.digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["a.pack"]


def test_several_views_that_an_older_pack_calls_plain_are_read_as_what_they_are(tmp_path):
    write_pack(tmp_path / "a.pack", tiny(train_views="plain"))
    assert read_pack(tmp_path / "a.pack").facts["train_views"] == "augmented"
    one = replace(tiny(train_views="plain"), train=tiny().train[:1])
    write_pack(tmp_path / "b.pack", one)
    assert same(read_pack(tmp_path / "b.pack"), one)


def test_what_a_pack_says_of_a_head_is_of_no_account(tmp_path):
    write_raw(tmp_path / "a.pack", tiny(), facts=json.dumps(tiny().facts | {"head": 5}))
    assert torch.equal(read_pack(tmp_path / "a.pack").train, tiny().train)


def test_a_pack_of_three_test_views_scores_their_mean_and_keeps_a_row_of_features_an_image(tmp_path):
    pack = with_val(tiny())
    pack = replace(pack, test=torch.cat([pack.test, pack.test[:1]]))
    write_pack(tmp_path / "a.pack", pack)
    words = ("--features", tmp_path / "a.pack", "--cur_stage", "stage1", "--logits", tmp_path / "a.npz")
    text = call(evaluate.main, *places(tmp_path), *words)
    kept, logits = np.load(tmp_path / "a.npz"), pack.test @ pack.fc_weight.T + pack.fc_bias
    assert len(pack.test) > 2 and "mirror averaging: off" in text
    np.testing.assert_allclose(kept["features"], pack.test.mean(dim=0), rtol=1e-5)
    np.testing.assert_allclose(kept["logits"], logits.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_the_digest_is_that_of_the_content_alone(tmp_path):
    digests = [write_pack(tmp_path / name, tiny()) for name in ("a", "b")]
    digests.append(write_pack(tmp_path / "c", tiny(network="resnet20")))
    digests.append(write_pack(tmp_path / "d", replace(tiny(), test=tiny().test + 1)))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_labels_take_four_bytes_in_the_file_and_parameters_or_slices_can_be_written(tmp_path):
    pack = tiny()
    wide = torch.cat([pack.train, pack.train], dim=2)[:, :, :5]
    weight = torch.nn.Parameter(pack.fc_weight)
    write_pack(tmp_path / "a", replace(pack, train=wide, fc_weight=weight))
    assert same(read_pack(tmp_path / "a"), pack)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.get_tensor("train_labels").dtype == torch.int32


def test_a_pack_can_be_written_over_the_one_it_is_read_from_and_its_mapping_is_private(tmp_path):
    write_pack(tmp_path / "a", tiny())
    pack = read_pack(tmp_path / "a")
    pack.test.add_(1)
    assert same(read_pack(tmp_path / "a"), tiny())
    write_pack(tmp_path / "a", pack)
    assert same(read_pack(tmp_path / "a"), pack)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"facts": tiny(class_names=("a", "b", "c")).facts}, "the fact class_names cannot be a tuple"),
        ({"train_labels": tiny().train_labels.int()}, r"train_labels is int32 \[7\], expected int64"),
        ({"fc_bias": None}, "fc_bias is missing"),
        ({"test_labels": None}, "test and test_labels are missing or one of them"),
        ({"test": None, "test_labels": None}, "without both, val and val_labels are needed"),
    ],
)
def test_a_contradictory_pack_is_not_written(tmp_path, change, reason):
    with pytest.raises(UserError, match=reason):
        write_pack(tmp_path / "a.pack", replace(tiny(), **change))
    assert not list(tmp_path.iterdir())


def test_held_out_images_may_be_missing_from_the_training_images_but_not_be_more(tmp_path):
    write_pack(tmp_path / "a", with_val(tiny(class_counts=[6, 2, 1]), "heldout"))
    for source in ("unused", "own"):
        with pytest.raises(UserError, match="class 0 has 4 training images, class_counts says 6"):
            write_pack(tmp_path / "b", with_val(tiny(class_counts=[6, 2, 1]), source))
    with pytest.raises(UserError, match="class 0 has 4 training images, class_counts says 3"):
        write_pack(tmp_path / "b", with_val(tiny(class_counts=[3, 2, 1]), "heldout"))


def test_a_value_that_is_not_finite_is_found_at_the_end_of_many(tmp_path):
    pack = replace(tiny(), train=torch.zeros(1, 7, 1 << 20), test=torch.zeros(1, 4, 1 << 20))
    pack.train[0, 6, -1] = float("nan")
    with pytest.raises(UserError, match="train holds values that are not finite"):
        write_pack(tmp_path / "a", replace(pack, fc_weight=torch.zeros(3, 1 << 20)))


def test_a_write_that_fails_leaves_the_old_pack_and_no_remains(tmp_path):
    path = tmp_path / "a.pack"
    write_pack(path, tiny())
    big = replace(tiny(), train=torch.ones(20_000, 7, 5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.pack cannot be written: .*File too large"):
            write_pack(path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(read_pack(path), tiny()) and len(list(tmp_path.iterdir())) == 1
