"""Digits-LT: the embedded data set, its fixed test part, and parts that share no image."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from datasets import build_data
from utils.base.errors import UserError

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


@pytest.mark.parametrize("options", [{"imb_ratio": 1}, {"imb_ratio": 110}, {"subset_seed": 4}])
def test_the_test_set_does_not_depend_on_ratio_or_subset(options):
    usual = build_data("digits_lt", imb_ratio=50)
    other = build_data("digits_lt", **({"imb_ratio": 50} | options))
    assert other.test.digest() == usual.test.digest()
    assert other.train.digest() != usual.train.digest()


@pytest.mark.parametrize("ratio", [1, 10, 50, 110])
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
