"""Lists at odds with themselves, each other or the published set: each is named, or all are collected."""

import shutil

import pytest

from datasets import build_data
from tests.file_trees import edit, imagenet_tree, problems_of, refused

PARTIAL = {"allow_partial": True}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A small ImageNet, read-only for the tests."""
    return imagenet_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def lists(imagenet, tmp_path):
    """A copy of its lists, to be spoilt; give it as split_dir."""
    for path in imagenet.glob("*.txt"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_class_without_a_training_image_is_refused(lists, imagenet):
    path = lists / "ImageNet_LT_train.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if " 1\n" not in line))
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert f"{path}: class 1 has no training image, class 2 has" in message


def test_labels_that_start_at_1_are_refused(lists, imagenet):
    path = lists / "ImageNet_LT_train.txt"
    path.write_text(path.read_text().replace(" 0\n", " 3\n"))
    assert "class 0 has no training image, class 3 has" in refused(
        "imagenet_lt", imagenet, split_dir=lists, **PARTIAL
    )


def test_a_huge_label_is_a_gap_and_takes_no_memory(lists, imagenet):
    edit(lists / "ImageNet_LT_train.txt", "n01484850_12.JPEG 2", "n01484850_12.JPEG 2147483647")
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert "class 3 has no training image, class 2147483647 has" in message


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_in_val_or_test_that_train_lacks_is_refused(lists, imagenet, part):
    path = lists / f"ImageNet_LT_{part}.txt"
    first = path.read_text().split()[0]
    edit(path, f"{first} 0", f"{first} 3")
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert message.startswith(f"{path}: class 3 of '{first}' has no training image in ")


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_an_image_in_two_lists_is_refused_with_both(lists, imagenet, one, other):
    paths = [lists / f"ImageNet_LT_{part}.txt" for part in (one, other)]
    lines = paths[0].read_text().splitlines(True)[1:3]
    with open(paths[1], "a") as handle:
        handle.writelines(lines)
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert f"{lines[0].split()[0]}' is in both {paths[0]} and {paths[1]}, and so are 1 more" in message


def test_a_single_class_is_refused(tmp_path):
    assert "has 1 class(es)" in refused("imagenet_lt", imagenet_tree(tmp_path, counts=(4,)), **PARTIAL)


def test_a_bad_line_is_refused_with_file_and_line_number(lists, imagenet):
    edit(lists / "ImageNet_LT_test.txt", "val/n01440764/ILSVRC2012_val_00000002", "../secret")
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert f"{lists / 'ImageNet_LT_test.txt'}, line 2: '../secret.JPEG' leaves the data folder" in message


def test_everything_wrong_is_collected_and_what_is_left_still_built(lists, imagenet):
    edit(lists / "ImageNet_LT_test.txt", "val/n01440764/ILSVRC2012_val_00000002", "../secret")
    edit(lists / "ImageNet_LT_val.txt", "n01484850_5001.JPEG 2", "n01484850_5001.JPEG 9")
    edit(lists / "ImageNet_LT_train.txt", "n01443537_12.JPEG 1", "n01443537_12.JPEG 40")
    found = problems_of("imagenet_lt", imagenet, split_dir=lists)
    for words in ("line 2: ", "not the published", "class 3 has no training image", "class 9 of "):
        assert sum(words in problem for problem in found) == 1
    data = build_data("imagenet_lt", imagenet, split_dir=lists, report=found.append)
    assert data.num_classes == 4 and len(data.train) == 21 and len(data.test) == 11


def test_nothing_but_bad_lines_is_collected_without_a_crash(lists, imagenet):
    for path in lists.glob("*.txt"):
        path.write_text("nothing\n")
    assert len(problems_of("imagenet_lt", imagenet, split_dir=lists)) >= 6
