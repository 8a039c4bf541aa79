"""Feature packs: what is written comes back, mapped from disk; broken or contradictory packs are refused."""

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from utils.base.errors import UserError
from utils.packs.pack import VERSION, Pack, read_pack, write_pack
from utils.run.checkpoint import content_digest
from utils.run.facts import PACK_FORMAT

STATUS = Path("/proc/self/status")
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


def write_raw(
    path: Path, pack: Pack, without: str = "", change: Callable | None = None, **header: str
) -> None:
    """A file that holds just what is given, with a digest that fits; nothing is checked."""
    write_pack(path, pack)
    with safe_open(path, framework="pt") as file:
        known, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = {name: value.clone() for name, value in tensors.items() if name != without}
    if change:
        change(tensors)
    known |= {"digest": content_digest({"facts": header.get("facts", known["facts"])} | tensors)}
    save_file(tensors, path, metadata=known | header)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("extend", [lambda pack: pack, with_val])
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


def private_growth(step: Callable[[], object]) -> float:
    """MiB by which the process's private memory grew at most while `step` ran."""
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(int(STATUS.read_text().split("RssAnon:")[1].split()[0]) / 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    while not seen:
        time.sleep(0.002)
    before, _ = seen[-1], step()
    over.set()
    thread.join()
    return max(seen) - before


@pytest.mark.skipif(not STATUS.is_file(), reason="this system does not tell private memory")
def test_features_of_200_mib_are_copied_neither_by_writing_nor_by_reading_and_checking(tmp_path):
    pack, path = tiny(), tmp_path / "big.pack"
    big = torch.ones(2, 4900, 5120)
    assert private_growth(big.clone) > 150  # it would be noticed
    facts = pack.facts | {"class_counts": [2800, 1400, 700]}
    pack = replace(pack, train=big, train_labels=pack.train_labels.repeat(700), facts=facts)
    pack = replace(pack, test=torch.ones(1, 4, 5120), fc_weight=torch.ones(3, 5120))
    assert private_growth(lambda: write_pack(path, pack)) < 50
    found = []
    assert private_growth(lambda: found.append(read_pack(path))) < 50
    assert found[0].train[1, 4899, 5119] == 1
    path.unlink()


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "bad.pack"
    write_pack(path, with_val(tiny()))
    good = path.read_bytes()
    spoilt = [good[: len(good) * step // 40] for step in range(40)]
    for step in range(200):
        at, bit = len(good) * step // 200, step % 8
        spoilt.append(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
    for content in spoilt:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pack") as caught:
            read_pack(path)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_packs_are_refused_by_what_they_are(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    (tmp_path / "text").write_text("hello, this is no pack")
    reasons = {
        "x.pth": "is a checkpoint",
        "plain.safetensors": "not a feature pack of this project",
        "theirs.safetensors": "not a feature pack of this project",
        "text": "damaged or not a feature pack",
        "absent": "does not exist",
        ".": "is not a file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            read_pack(tmp_path / name)


def test_another_version_a_missing_tensor_and_a_header_without_entries_are_refused(tmp_path):
    path = tmp_path / "a.pack"
    write_raw(path, tiny(), version=str(VERSION + 1))
    with pytest.raises(UserError, match=r"a\.pack has format version 2, this code reads up to 1: update"):
        read_pack(path)
    for name in ("train", "test_labels", "fc_bias"):
        write_raw(path, tiny(), without=name)
        with pytest.raises(UserError, match=rf"a\.pack has no tensor {name}"):
            read_pack(path)
    save_file({"train": torch.zeros(1)}, path, metadata={"format": PACK_FORMAT})
    with pytest.raises(UserError, match="damaged"):
        read_pack(path)


def test_what_a_file_holds_is_checked_when_it_is_read_too(tmp_path):
    path = tmp_path / "a.pack"
    for facts, reason in (("[]", "facts are a list"), ("{}", "fact dataset is missing"), ("{", "damaged")):
        write_raw(path, tiny(), facts=facts)
        with pytest.raises(UserError, match=rf"a\.pack.*{reason}"):
            read_pack(path)
    write_raw(path, with_val(tiny()), without="val")
    with pytest.raises(UserError, match=r"a\.pack: val_source is 'unused': val and val_labels"):
        read_pack(path)


LABELS, NARROW = tiny().train_labels, torch.ones(2, 7, 4)
WRONG = {
    "train is float64 [2, 7, 5], expected float16 or float32 [views, images, width]": {
        "train": torch.ones(2, 7, 5).double()
    },
    "test is float32 [4, 5], expected": {"test": torch.ones(4, 5)},
    "train_labels is int32 [7], expected int64 [images]": {"train_labels": LABELS.int()},
    "fc_weight is float16 [3, 5], expected float32": {"fc_weight": torch.ones(3, 5).half()},
    "test is empty": {"test": torch.ones(1, 0, 5), "test_labels": LABELS[:0]},
    "fc_bias is missing": {"fc_bias": None},
    "train is 4 wide, fc_weight 5": {"train": NARROW},
    "train holds 6 images, train_labels 7 labels": {"train": torch.ones(2, 6, 5)},
    "fc_weight has 2 rows, num_class is 3": {"fc_weight": torch.ones(2, 5)},
    "fc_bias has 4 rows, num_class is 3": {"fc_bias": torch.ones(4)},
    "val and val_labels go with every source but 'none'": {"val": torch.ones(1, 2, 5)},
    "train_labels holds 3: labels must be 0 to 2": {"train_labels": LABELS + 1},
    "test_labels holds -1": {"test_labels": torch.tensor([0, 1, 2, -1])},
    "class 2 has no training image: labels count from 0": {"train_labels": LABELS.clamp(max=1)},
    "class 0 has 3 training images, class_counts says 4": {
        "train_labels": torch.tensor([0, 0, 0, 1, 1, 1, 2])
    },
    "train holds values that are not finite": {"train": torch.full((2, 7, 5), float("nan"))},
    "test holds values that are not finite": {"test": torch.full((2, 4, 5), float("inf")).half()},
    "fc_bias holds values that are not finite": {"fc_bias": torch.tensor([0, float("-inf"), 0])},
}
WRONG_FACTS = {
    "the fact val_clean must be true or false, found 1": {"val_clean": 1},
    "the fact class_names must be a list of texts, found a tuple": {"class_names": ("a", "b", "c")},
    "the fact num_class must be a whole number of 2 to 500000, found 1": {"num_class": 1},
    "num_class is 4": {"num_class": 4},
    "class_names has 2 entries, num_class is 3": {"class_names": ["a", "b"]},
    "the fact class_counts must be a list of whole numbers": {"class_counts": [4, 2, 1.0]},
    "the fact train_views must be plain or augmented, found 'fresh'": {"train_views": "fresh"},
    "val_source is 'own': val and val_labels go with": {"val_source": "own"},
}


@pytest.mark.parametrize("reason", [*WRONG, *WRONG_FACTS])
def test_a_contradictory_pack_is_not_written(tmp_path, reason):
    pack = replace(tiny(**WRONG_FACTS.get(reason, {})), **WRONG.get(reason, {}))
    with pytest.raises(UserError) as caught:
        write_pack(tmp_path / "a.pack", pack)
    assert reason in str(caught.value) and not list(tmp_path.iterdir())


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
