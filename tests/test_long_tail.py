"""The long-tail law, the images it keeps, validation images that no run trains on, the embedded digits."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits

from datasets import build_data, long_tail_counts, shot_groups
from datasets.long_tail import held_out_mask, keep_indices, unused_indices
from datasets.split import split_long_tailed
from utils.base.errors import UserError

K, PER_CLASS = 10, 60


@pytest.fixture
def labels():
    """Ten classes of 60 images each, in mixed file order."""
    return np.random.default_rng(5).permutation(np.arange(K * PER_CLASS) % K)


@pytest.fixture
def counts():
    return long_tail_counts(K, PER_CLASS, 20)


# ---- the law ----


@pytest.mark.parametrize(
    ("ratio", "total", "many", "medium", "few"),
    [(10, 19_573, 69, 31, 0), (50, 12_608, 41, 41, 18), (100, 10_847, 35, 35, 30)],
)
def test_cifar100_lt_has_the_published_size_and_shot_groups(ratio, total, many, medium, few):
    counts = long_tail_counts(100, 500, ratio)
    sizes = {name: int(mask.sum()) for name, mask in shot_groups(counts).items()}
    assert sum(counts) == total
    assert sizes == {"many": many, "medium": medium, "few": few}
    assert (counts[0], counts[-1]) == (500, 500 // ratio)


def test_ratio_one_and_a_single_class_keep_every_image():
    assert long_tail_counts(7, 30, 1) == [30] * 7 and long_tail_counts(1, 30, 50) == [30]


@pytest.mark.parametrize("ratio", [1.0001, 33, 499.5, 500])
def test_counts_never_grow_and_span_the_ratio(ratio):
    counts = long_tail_counts(100, 500, ratio)
    assert len(counts) == 100 and counts[0] == 500
    assert all(type(count) is int for count in counts)
    assert all(before >= after >= 1 for before, after in pairwise(counts))
    assert counts[-1] in (int(500 / ratio), int(500 / ratio) + 1, int(500 / ratio) - 1)


@pytest.mark.parametrize("max_count", [110, 49])
def test_the_ratio_that_the_refusal_names_is_accepted(max_count):
    with pytest.raises(UserError) as caught:
        long_tail_counts(10, max_count, 2 * max_count)
    named = float(str(caught.value).rsplit(" ", 1)[1])
    assert named >= max_count - 1 and long_tail_counts(10, max_count, named)[-1] == 1


def test_classes_without_images_are_refused_in_a_line():
    with pytest.raises(UserError, match="the largest class has no image"):
        long_tail_counts(3, 0, 10)


# ---- the images kept ----


def test_a_subset_seed_draws_another_reproducible_set_with_the_same_counts(labels, counts):
    first, again = keep_indices(labels, counts, 3), keep_indices(labels, counts, 3)
    other, plain = keep_indices(labels, counts, 4), keep_indices(labels, counts)
    assert (first == again).all()
    for kept in (first, other):
        assert np.bincount(labels[kept], minlength=K).tolist() == counts
        assert (np.diff(labels[kept]) >= 0).all()
        assert len(np.unique(kept)) == len(kept)
    assert set(first) != set(other) != set(plain) != set(first)


def test_a_smaller_ratio_extends_the_subset_of_a_larger_one(labels):
    small, large = (keep_indices(labels, long_tail_counts(K, PER_CLASS, r), 3) for r in (50, 10))
    assert set(small) < set(large)


def test_a_class_with_too_few_images_is_named(labels, counts):
    short = labels[labels != 3]
    with pytest.raises(UserError, match=rf"class 3 has 0 images, {counts[3]} are needed"):
        keep_indices(short, counts)


# ---- unused images ----


def test_unused_images_are_disjoint_from_the_kept_and_at_most_20_a_class(labels, counts):
    kept = keep_indices(labels, counts)
    unused = unused_indices(labels, kept)
    assert not set(kept) & set(unused)
    assert len(np.unique(unused)) == len(unused)
    expected = [min(20, PER_CLASS - count) for count in counts]
    assert np.bincount(labels[unused], minlength=K).tolist() == expected
    assert expected[0] == 0 and expected[-1] == 20


# ---- held-out images ----


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_the_hold_out_is_stratified_and_leaves_one_of_each_class(fraction):
    counts = [110, 71, 46, 29, 19, 12, 8, 5, 2, 1]
    labels = np.repeat(np.arange(10), counts)
    taken = np.bincount(labels[held_out_mask(labels, fraction)], minlength=10)
    for count, got in zip(counts, taken, strict=True):
        assert got == min(max(1, round(fraction * count)), count - 1)
        assert count - got >= 1
    assert taken[-1] == 0 and (taken[:-1] >= 1).all()


def test_the_hold_out_is_the_same_every_time_and_another_for_another_seed():
    labels = np.repeat(np.arange(5), 40)
    first, again, other = (held_out_mask(labels, 0.2, seed) for seed in (7, 7, 8))
    assert first.dtype == bool and (first == again).all()
    assert (first != other).any() and first.sum() == other.sum()


# ---- splits ----


def test_unused_images_validate_beside_all_that_are_kept_and_the_class_at_full_count_has_none(labels, counts):
    split = split_long_tailed(labels, counts, val_source="unused", val_required=True)
    assert split.train.tolist() == keep_indices(labels, counts).tolist()
    assert split.val_source == "unused" and not set(split.train) & set(split.val)
    assert set(labels[split.val]) == set(range(1, K))


@pytest.mark.parametrize(("whole", "val_source"), [(True, "unused"), (False, "none")])
def test_where_none_is_unused_or_asked_for_there_is_no_validation(labels, counts, whole, val_source):
    counts = [PER_CLASS] * K if whole else counts
    split = split_long_tailed(labels, counts, val_source=val_source)
    assert split.val is None and split.val_source == "none"
    assert split.train.tolist() == keep_indices(labels, counts).tolist()


@pytest.mark.parametrize("subset_seed", [None, 3])
def test_the_heldout_split_divides_the_kept_images(labels, counts, subset_seed):
    split = split_long_tailed(labels, counts, subset_seed, val_source="heldout", val_fraction=0.2)
    assert split.val_source == "heldout" and not set(split.train) & set(split.val)
    assert set(split.train) | set(split.val) == set(keep_indices(labels, counts, subset_seed))
    assert set(labels[split.train]) == set(range(K))
    again = split_long_tailed(labels, counts, subset_seed, val_source="heldout", val_fraction=0.2)
    assert (again.train == split.train).all() and (again.val == split.val).all()


def test_required_validation_that_cannot_be_had_is_refused(labels, counts):
    with pytest.raises(UserError, match="none is unused: take --val_source heldout"):
        split_long_tailed(labels, [PER_CLASS] * K, val_source="unused", val_required=True)
    with pytest.raises(UserError, match="take --val_source unused or heldout"):
        split_long_tailed(labels, counts, val_source="none", val_required=True)


# ---- shot groups ----


def test_shot_groups_divide_at_100_and_20():
    groups = shot_groups([500, 101, 100, 99, 21, 20, 19, 1])
    assert groups["many"].tolist() == [True, True] + [False] * 6
    assert groups["medium"].tolist() == [False, False, True, True, True, True, False, False]
    assert groups["few"].tolist() == [False] * 6 + [True, True]


PUBLISHED = [110, 71, 46, 29, 19, 12, 8, 5, 3, 2]


def pixels(part):
    """The images of a part as a set of byte strings: the 1,797 digits are all different."""
    return {image.tobytes() for image in part.images.numpy()}


def test_digits_lt_has_the_published_counts_and_grey_images_of_8x8_and_writes_nothing(tmp_path):
    data = build_data("digits_lt", tmp_path / "absent", imb_ratio=50)
    assert list(tmp_path.iterdir()) == []
    assert data.class_counts == data.train_counts == PUBLISHED and len(data.train) == 305
    assert data.class_names == list("0123456789")
    assert (data.name, data.num_classes, data.in_channels) == ("digits_lt", 10, 1)
    assert len(pixels(data.train) | pixels(data.val) | pixels(data.test)) == 305 + len(data.val) + 500
    for part in (data.train, data.val, data.test):
        assert str(part.images.dtype) == "torch.uint8" and str(part.labels.dtype) == "torch.int64"
        assert part.images.shape == (len(part), 1, 8, 8)
        assert int(part.images.max()) == 240 and int(part.images.min()) == 0


def test_the_test_set_holds_the_last_50_of_each_class():
    digits = load_digits()
    test = build_data("digits_lt", imb_ratio=50).test
    assert np.bincount(test.labels).tolist() == [50] * 10
    for label in range(10):
        last = (digits.images[digits.target == label][-50:] * 15).astype(np.uint8)
        assert (test.images[test.labels == label].numpy()[:, 0] == last).all()


@pytest.mark.parametrize("options", [{"imb_ratio": 110}, {"subset_seed": 4}])
def test_the_test_set_does_not_depend_on_ratio_or_subset(options):
    usual = build_data("digits_lt", imb_ratio=50)
    other = build_data("digits_lt", **({"imb_ratio": 50} | options))
    assert other.test.digest() == usual.test.digest()
    assert other.train.digest() != usual.train.digest()


@pytest.mark.parametrize("ratio", [1, 110])
@pytest.mark.parametrize("val_source", ["unused", "heldout"])
@pytest.mark.parametrize("subset_seed", [None, 4])
def test_train_validation_and_test_share_no_image(ratio, val_source, subset_seed):
    data = build_data("digits_lt", imb_ratio=ratio, val_source=val_source, subset_seed=subset_seed)
    train, val, test = pixels(data.train), pixels(data.val), pixels(data.test)
    assert len(train) == len(data.train) and len(val) == len(data.val) > 0 and len(test) == 500
    assert not train & val and not train & test and not val & test
    assert data.val_source == val_source


def test_every_part_has_the_labels_of_its_images():
    digits = load_digits()
    truth = {
        (image * 15).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    data = build_data("digits_lt", imb_ratio=20, subset_seed=1)
    for part in (data.train, data.val, data.test):
        found = [truth[image.tobytes()] for image in part.images.numpy()]
        assert found == part.labels.tolist()


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown data set 'mnist', known: .*cifar100_lt.*digits_lt"):
        build_data("mnist")
