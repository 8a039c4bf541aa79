"""A user's own images made long-tailed by a ratio: the images that the sets in memory would keep."""

import numpy as np
import pytest

from datasets import build_data, long_tail_counts
from datasets.long_tail import keep_indices, unused_indices
from datasets.split import fitting_counts
from tests.file_trees import entries, list_tree, refused, write_list
from utils.base.errors import UserError

LISTS = {"train_list": "train.txt", "test_list": "test.txt"}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    """Ten classes of 60 listed training images in mixed order; the files are empty."""
    root = tmp_path_factory.mktemp("balanced")
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60)).tolist()
    write_list(root / "train.txt", [(f"{label}/{i:03}.png", label) for i, label in enumerate(labels)])
    write_list(root / "test.txt", [(f"{label}/test.png", label) for label in range(10)])
    for name in ("train.txt", "test.txt"):
        path = root / (root / name).read_text().split()[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize("subset_seed", [None, 3])
def test_a_ratio_keeps_the_images_that_the_sets_in_memory_keep_in_the_same_order(balanced, subset_seed):
    whole = build_data("list", balanced, **LISTS)
    data = build_data("list", balanced, 20, **LISTS, subset_seed=subset_seed, val_source="unused")
    labels, counts = whole.train.labels.numpy(), long_tail_counts(10, 60, 20)
    kept = keep_indices(labels, counts, subset_seed)
    every = entries(whole.train)
    assert data.class_counts == data.train_counts == counts
    assert entries(data.train) == [every[i] for i in kept]
    assert entries(data.val) == [every[i] for i in unused_indices(labels, kept)]
    assert data.val_source == "unused" and data.test.digest() == whole.test.digest()
    assert any("60 images of class 0, 0, down to 3 of class 9, 9" in note for note in data.notes)


def test_a_hold_out_comes_out_of_the_long_tailed_set(balanced):
    whole = build_data("list", balanced, 20, **LISTS, val_source="none")
    data = build_data("list", balanced, 20, **LISTS, val_source="heldout", val_fraction=0.2)
    assert data.class_counts == whole.class_counts and data.val_source == "heldout"
    assert sorted(entries(data.train) + entries(data.val)) == sorted(entries(whole.train))


def test_own_validation_that_is_not_there_falls_back_to_unused_images(balanced, tmp_path):
    data = build_data("list", balanced, 20, **LISTS, val_source="own")
    assert data.val_source == "unused" and len(data.val) == 20 * 9 - 3  # class 1 leaves out 17 images
    message = refused("list", balanced, imb_ratio=20, **LISTS, val_source="own", val_required=True)
    assert message.endswith("take --val_source unused or heldout")
    data = build_data("list", list_tree(tmp_path), 4, **LISTS, val_list="val.txt")
    assert data.val_source == "own" and len(data.val) == 6


def test_without_a_ratio_everything_stays_in_the_order_of_the_list(balanced):
    data = build_data("list", balanced, **LISTS, val_source="none")
    lines = (balanced / "train.txt").read_text().splitlines()
    assert [f"{path} {label}" for path, label in entries(data.train)] == lines


@pytest.mark.parametrize("ratio", [0.5, float("nan"), float("inf"), 61])
def test_a_ratio_that_the_images_cannot_have_is_refused(balanced, ratio):
    assert "--imb_ratio" in refused("list", balanced, imb_ratio=ratio, **LISTS)


@pytest.mark.parametrize("ratio", [1, 7, 50, 100])
def test_the_counts_of_a_balanced_set_are_those_of_the_published_law(ratio):
    assert fitting_counts([500] * 100, ratio) == long_tail_counts(100, 500, ratio)


def test_the_largest_counts_that_every_class_can_give_are_taken():
    draws = np.random.default_rng(0)
    for _ in range(300):
        available = draws.integers(20, 200, draws.integers(2, 12)).tolist()
        ratio = float(draws.uniform(1, 15))
        try:
            counts = fitting_counts(available, ratio)
        except UserError:
            assert min(available) / ratio < 2
            continue
        larger = long_tail_counts(len(available), counts[0] + 1, ratio)
        assert counts == long_tail_counts(len(available), counts[0], ratio)
        assert all(n <= limit for n, limit in zip(counts, available, strict=True))
        assert any(n > limit for n, limit in zip(larger, available, strict=True))
