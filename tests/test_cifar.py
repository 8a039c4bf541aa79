"""CIFAR files of the official layout: what is read from them and kept."""

import shutil

import numpy as np
import pytest
import torch

from datasets import build_data, long_tail_counts
from tests.cifar_folders import CIFAR10, CIFAR100, write_cifar
from utils.base.errors import UserError

IR = 100


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A full-size CIFAR-100 of random pixels; removed afterwards, since it is 180 MB."""
    full = write_cifar(tmp_path_factory.mktemp("cifar100"), CIFAR100)
    yield full
    shutil.rmtree(full.root)


@pytest.fixture(scope="module")
def data(cifar100):
    return build_data("cifar100_lt", cifar100.root, IR)


def first_of_each_class(labels: np.ndarray, counts: list[int]) -> list[int]:
    kept: list[list[int]] = [[] for _ in counts]
    for index, label in enumerate(labels.tolist()):
        if len(kept[label]) < counts[label]:
            kept[label].append(index)
    return [index for indices in kept for index in indices]


def copy_with_black(full, root, part: str, rows: list[int]):
    """A copy of the folder in which these images of a part are all black."""
    shutil.copytree(full.folder, root / full.folder.name)
    path = root / full.folder.name / part
    images = full.images if part == "train" else full.test_images
    start = path.read_bytes().index(images[0].tobytes())
    with open(path, "r+b") as handle:
        for row in rows:
            handle.seek(start + row * 3072)
            handle.write(bytes(3072))
    return root


# ---- contents ----


def test_the_first_images_of_each_class_are_kept_in_file_order_pixel_by_pixel(cifar100, data):
    counts = long_tail_counts(100, 500, IR)
    kept = first_of_each_class(cifar100.labels, counts)
    assert data.class_counts == data.train_counts == counts and len(data.train) == 10_847
    assert data.train.labels.tolist() == cifar100.labels[kept].tolist()
    assert data.train.images.dtype == torch.uint8 and data.train.images.shape == (10_847, 3, 32, 32)
    assert (data.train.images.numpy() == cifar100.images[kept].reshape(-1, 3, 32, 32)).all()


def test_the_test_set_is_whole_and_in_file_order(cifar100, data):
    assert (data.test.images.numpy() == cifar100.test_images.reshape(-1, 3, 32, 32)).all()
    assert data.test.labels.tolist() == cifar100.test_labels.tolist()


def test_validation_images_are_the_last_20_unused_of_each_class(cifar100, data):
    assert data.val_source == "unused" and len(data.val) == 1980
    of_class = np.flatnonzero(cifar100.labels == 99)[-20:]
    assert (data.val.images[-20:].numpy().reshape(20, -1) == cifar100.images[of_class]).all()


def test_class_names_come_from_the_meta_file_and_files_of_another_origin_are_noted(cifar100, data):
    assert data.class_names == cifar100.names and len(set(data.class_names)) == 100
    assert (data.name, data.num_classes, data.in_channels) == ("cifar100_lt", 100, 3)
    assert any("not byte-identical to the published ones" in note for note in data.notes)


def test_the_folder_itself_may_be_named_instead_of_its_parent(cifar100, data):
    direct = build_data("cifar100_lt", cifar100.folder, IR, val_source="none")
    assert direct.train.digest() == data.train.digest() and direct.test.digest() == data.test.digest()


def test_the_files_of_these_tests_are_written_as_python_2_wrote_the_official_ones(cifar100):
    start = (cifar100.folder / "train").read_bytes()[:2_000_000]
    assert start.startswith(b"\x80\x02") and b"cnumpy.core.multiarray\n_reconstruct\n" in start
    assert b"U\x04data" in start and b"T" + (50_000 * 3072).to_bytes(4, "little") in start


def test_cifar10_is_read_from_its_five_batches_in_order(tmp_path):
    cifar10 = write_cifar(tmp_path, CIFAR10)
    data = build_data("cifar10_lt", tmp_path, IR)
    shutil.rmtree(cifar10.folder)  # it is 180 MB
    counts = long_tail_counts(10, 5000, IR)
    kept = first_of_each_class(cifar10.labels, counts)
    assert data.class_counts == counts and (counts[0], counts[-1]) == (5000, 50)
    assert data.class_names == cifar10.names and data.num_classes == 10
    assert data.train.labels.tolist() == cifar10.labels[kept].tolist()
    assert (data.train.images.numpy().reshape(-1, 3072) == cifar10.images[kept]).all()
    assert (data.test.images.numpy().reshape(-1, 3072) == cifar10.test_images).all()
    assert len(data.val) == 9 * 20


# ---- black images ----


@pytest.fixture(scope="module")
def black_unused(cifar100, tmp_path_factory):
    """The last image of class 99 is black: among the validation images, not among those trained on."""
    last = int(np.flatnonzero(cifar100.labels == 99)[-1])
    yield copy_with_black(cifar100, root := tmp_path_factory.mktemp("black"), "train", [last])
    shutil.rmtree(root)


def test_a_black_unused_image_means_no_validation_or_a_refusal_where_it_is_required(black_unused, data):
    found = build_data("cifar100_lt", black_unused, IR)
    assert found.val is None and found.val_source == "none"
    assert any("no validation" in note and "black" in note for note in found.notes)
    assert found.train.digest() == data.train.digest()
    with pytest.raises(UserError, match=r"black.* all-black images among the validation images"):
        build_data("cifar100_lt", black_unused, IR, val_required=True)


def test_a_black_unused_image_does_not_matter_to_a_hold_out(black_unused):
    found = build_data("cifar100_lt", black_unused, IR, val_source="heldout", val_required=True)
    assert found.val_source == "heldout" and len(found.val) > 0


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_black_image_among_those_used_is_refused(cifar100, tmp_path, part):
    row = int(np.flatnonzero(cifar100.labels == 99)[4]) if part == "train" else 9_999
    copy_with_black(cifar100, tmp_path, part, [row])
    with pytest.raises(UserError, match="all-black images among those that --imb_ratio 100 uses"):
        build_data("cifar100_lt", tmp_path, IR)
    shutil.rmtree(tmp_path / cifar100.folder.name)


# ---- the real data ----


def test_the_real_cifar100_has_its_counts_and_its_1980_validation_images(cifar_dir):
    data = build_data("cifar100_lt", cifar_dir, IR)
    assert len(data.train) == 10_847 and data.train_counts == long_tail_counts(100, 500, IR)
    assert np.bincount(data.test.labels).tolist() == [100] * 100
    assert len(data.val) == 1980 and 0 not in data.val.labels
    assert len(set(data.class_names)) == 100 and "apple" in data.class_names
    assert build_data("cifar100_lt", cifar_dir, 1, val_source="none").train_counts == [500] * 100
