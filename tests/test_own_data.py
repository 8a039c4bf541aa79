"""A user's own images: class folders and lists, as they are."""

import os
import shutil

import pytest
from torchvision.datasets import ImageFolder

from datasets import build_data
from datasets.images.decode import read_image
from tests.file_trees import entries, folder_tree, list_tree, problems_of, refused

LISTS = {"train_list": "train.txt", "test_list": "test.txt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders with a validation part, read-only for the tests."""
    return folder_tree(tmp_path_factory.mktemp("own") / "my images", val_per_class=2)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Images with lists, read-only for the tests."""
    return list_tree(tmp_path_factory.mktemp("own") / "listed")


@pytest.fixture
def copied(folder, tmp_path):
    """Class folders to be spoilt."""
    return shutil.copytree(folder, tmp_path / "copy")


def as_torchvision(root, part) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, root), label) for path, label in ImageFolder(root / part).samples]


# ---- class folders ----


def test_class_folders_are_read_as_torchvision_reads_them(folder):
    data = build_data("folder", folder)
    for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert entries(images) == as_torchvision(folder, part)
    assert data.class_names == ["ant", "bee", "cat"] == ImageFolder(folder / "train").classes
    assert data.class_counts == [12, 6, 3] and data.val_source == "own" and data.notes == []
    assert data.name == "folder_my_images" and data.train.root == folder


def test_nested_linked_and_oddly_named_images_come_in_torchvisions_order(copied, tmp_path):
    outside = shutil.copytree(copied / "train" / "ant", tmp_path / "elsewhere")
    (copied / "train" / "dog").symlink_to(outside)
    (copied / "train" / "bee" / "more").symlink_to(outside)
    for name in ("b/1.JPG", "b-c/2.PNG", "b/c/3.webp", "B/4.tiff", "0.Ppm", "é/5.bmp", "b.jpg/6.jpeg"):
        path = copied / "train" / "cat" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    for name in ("notes.txt", "clip.mp4", "jpg", "image.jpg.part"):
        (copied / "train" / "cat" / name).touch()
    found = entries(build_data("folder", copied).train)
    assert found == as_torchvision(copied, "train") and len(found) == 21 + 12 + 12 + 7


def test_hidden_files_and_folders_are_passed_over(copied):
    for name in ("ant/._000.jpg", "ant/.thumbs/000.jpg", ".ipynb_checkpoints/a.jpg"):
        path = copied / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert build_data("folder", copied).class_counts == [12, 6, 3]


def test_names_that_are_no_utf8_are_read_and_shown_escaped(copied):
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree(copied / "train" / "ant", copied / "train" / name)
    data = build_data("folder", copied)
    assert data.class_names == ["ant", "bee", "caf\\xe9", "cat"] and len(data.train) == 33
    assert all((copied / data.train.paths[i]).is_file() for i in range(33))


def test_val_alone_is_the_test_part_and_the_notes_say_so(copied):
    shutil.rmtree(copied / "test")
    data = build_data("folder", copied)
    assert entries(data.test) == as_torchvision(copied, "val")
    assert data.val is None and data.val_source == "none"
    assert data.notes == ["val/ is taken as the test part, since there is no test/"]
    assert "take --val_source heldout" in refused("folder", copied, val_source="own", val_required=True)


def test_a_data_dir_that_is_not_there_or_a_file_is_refused(copied, tmp_path):
    assert "has no train/" in refused("folder", tmp_path / "absent")
    assert "has no train/" in refused("folder", copied / "test" / "ant" / "000.jpg")


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_class_folder_that_train_lacks_is_refused(copied, part):
    (copied / part / "bee").rename(copied / part / "wasp")
    assert f"{copied / part / 'wasp'}: train/ has no class folder of that name" in refused("folder", copied)


def test_a_class_without_test_images_is_noted(copied):
    shutil.rmtree(copied / "test" / "bee")
    notes = build_data("folder", copied).notes
    assert notes == ["1 class(es) have no test image and are left out of the test means"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_above_it_is_refused(copied, target):
    (copied / "train" / "bee" / "loop").symlink_to(target)
    message = refused("folder", copied)
    assert "is a link to a folder above it" in message and str(copied / "train" / "bee" / "loop") in message


def test_everything_wrong_is_collected_and_what_is_left_still_built(copied):
    (copied / "test" / "bee").rename(copied / "test" / "wasp")
    (copied / "train" / "bee" / "loop").symlink_to(".")
    (copied / "train" / "dog").mkdir()
    found = problems_of("folder", copied)
    for words in ("wasp", "loop", "dog holds no image"):
        assert sum(words in problem for problem in found) == 1


# ---- lists ----


def test_lists_are_read_in_their_order_with_folders_as_class_names(listed):
    data = build_data("list", listed, **LISTS, val_list="val.txt")
    for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        lines = (listed / f"{part}.txt").read_text().splitlines()
        assert [f"{path} {label}" for path, label in entries(images)] == lines
    assert data.class_names == ["ant", "bee", "cat"] and data.class_counts == [12, 6, 3]
    assert data.name == "list_listed" and data.val_source == "own"


def test_without_a_val_list_there_is_no_validation(listed):
    data = build_data("list", listed, **LISTS)
    assert data.val is None and data.val_source == "none"
    message = refused("list", listed, **LISTS, val_source="own", val_required=True)
    assert message.endswith("no validation images of its own: take --val_source heldout")


def test_a_list_is_taken_as_given_before_one_of_that_name_in_data_dir(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorter = (listed / "train.txt").read_text().splitlines(True)[1:]
    (tmp_path / "train.txt").write_text("".join(shorter))
    assert build_data("list", listed, **LISTS).class_counts == [11, 6, 3]
    absolute = {"train_list": listed / "train.txt", "test_list": str(listed / "test.txt")}
    assert build_data("list", listed, **absolute).class_counts == [12, 6, 3]


def test_a_link_inside_the_folder_may_lead_out_of_it_where_a_path_may_not(listed, tmp_path):
    root = shutil.copytree(listed, tmp_path / "listed")
    image = root / "photos" / "ant" / "train000.jpg"
    image.rename(tmp_path / "outside.jpg")
    image.symlink_to(tmp_path / "outside.jpg")
    train = build_data("list", root, **{name: root / path for name, path in LISTS.items()}).train
    assert read_image(str(train.root / train.paths[0])).shape[0] == 3


@pytest.mark.parametrize("given", [{}, {"train_list": "train.txt"}, {"test_list": "test.txt"}])
def test_missing_list_arguments_are_named(listed, given):
    assert "needs --train_list and --test_list" in refused("list", listed, **given)


def test_a_missing_list_is_named(listed):
    message = refused("list", listed, **LISTS, val_list="absent.txt")
    assert message == "absent.txt cannot be read: No such file or directory"


def test_images_that_are_not_below_data_dir_are_named(listed, tmp_path):
    lists = {name: listed / path for name, path in LISTS.items()}
    message = refused("list", tmp_path, **lists)
    assert "'photos/ant/train000.jpg' is not there" in message and str(tmp_path) in message
