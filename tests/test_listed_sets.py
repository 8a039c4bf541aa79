"""ImageNet-LT, Places-LT, iNaturalist 2018: lists and annotations, totals, layouts, validation, options."""

import shutil

import pytest

from datasets import build_data, data_name
from datasets.listed.lists import read_annotations
from datasets.listed.published import IMAGENET_LT, PLACES_LT
from datasets.types import FileViews
from tests.file_trees import (
    INAT_JSON,
    INAT_LISTS,
    annotations,
    edit,
    entries,
    imagenet_tree,
    inat_lists,
    inat_tree,
    places_tree,
    problems_of,
    published_lists,
    refused,
    write_annotations,
    write_list,
)

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


def files_of(images) -> list:
    return [images.root / images.paths[i] for i in range(len(images))]


# ---- what is built ----


def test_imagenet_lt_is_what_its_lists_say_and_the_notes_say_that_it_is_a_part(imagenet):
    data = build_data("imagenet_lt", imagenet, **PARTIAL)
    assert data.name == "imagenet_lt" and data.class_names == ["n01440764", "n01443537", "n01484850"]
    assert data.class_counts == data.train_counts == [12, 6, 3] and data.in_channels == 3
    for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        lines = (imagenet / f"ImageNet_LT_{part}.txt").read_text().splitlines()
        assert [f"{path} {label}" for path, label in entries(images)] == lines
        assert all(path.is_file() for path in files_of(images))
    assert data.val_source == "own" and data.shots == (20, 100)
    (note,) = data.notes
    assert "21 train images instead of 115,846" in note and "3 classes instead of 1,000" in note


def test_views_and_shots_are_handed_on_and_shot_limits_in_the_wrong_order_refused(imagenet):
    views = FileViews((0.5,) * 3, (0.25,) * 3, size=64)
    data = build_data("imagenet_lt", imagenet, views=views, shots=(4, 9), **PARTIAL)
    assert data.views is views and data.shots == (4, 9)
    assert build_data("imagenet_lt", imagenet, **PARTIAL).views.mean == (0.485, 0.456, 0.406)
    for shots in ((100, 20), (-1, 20)):
        assert "--shots" in refused("imagenet_lt", imagenet, shots=shots, **PARTIAL)


def test_classes_without_class_folders_are_numbered(lists):
    for path in lists.glob("*.txt"):
        path.write_text(path.read_text().replace("n01443537/", "n01440764/"))
    (lists / "images").mkdir()
    data = build_data("imagenet_lt", lists / "images", split_dir=lists, report=[].append, **PARTIAL)
    assert data.class_names == ["0", "1", "2"]


# ---- where images may lie ----


@pytest.mark.parametrize(("kaggle", "flat_val"), [(True, False), (False, True)])
def test_test_images_in_one_flat_folder_are_the_same_set(imagenet, tmp_path, kaggle, flat_val):
    usual = build_data("imagenet_lt", imagenet, **PARTIAL)
    root = imagenet_tree(tmp_path / "other", kaggle=kaggle, flat_val=flat_val)
    other = build_data("imagenet_lt", root, **PARTIAL)
    for ours, theirs in ((usual.train, other.train), (usual.val, other.val), (usual.test, other.test)):
        assert [p.read_bytes() for p in files_of(ours)] == [p.read_bytes() for p in files_of(theirs)]
        assert ours.labels.tolist() == theirs.labels.tolist()
    assert other.train.digest() == usual.train.digest()
    assert other.class_names == usual.class_names


@pytest.mark.parametrize("layout", ["folders", "flat", "256", "large"])
def test_places_lt_is_found_in_class_folders_and_as_places365_is_shipped(tmp_path, layout):
    data = build_data("places_lt", places_tree(tmp_path, layout=layout), **PARTIAL)
    assert data.class_names == ["airfield", "airplane_cabin", "arena-hockey"]
    assert data.class_counts == [12, 6, 3] and data.val_source == "own"
    for images in (data.train, data.val, data.test):
        assert all(path.is_file() for path in files_of(images))


def test_lists_in_split_dir_come_before_those_in_data_dir(lists, imagenet):
    edit(lists / "ImageNet_LT_train.txt", "train/n01440764/n01440764_10.JPEG 0\n", "")
    (lists / "ImageNet_LT_val.txt").unlink()
    data = build_data("imagenet_lt", imagenet, split_dir=str(lists), **PARTIAL)
    assert data.class_counts == [11, 6, 3] and len(data.val) == 6


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_images_that_are_not_there_are_refused_with_the_tree_that_is_expected(lists, imagenet, part):
    path = lists / f"ImageNet_LT_{part}.txt"
    first, *rest = path.read_text().splitlines()
    first = first.replace("_", "_9")
    path.write_text("\n".join([first, *rest]))
    message = refused("imagenet_lt", imagenet, split_dir=lists, **PARTIAL)
    assert str(path) in message and first.split()[0] in message
    assert f"{imagenet}/train/n01440764/" in message and f"{imagenet}/val/ILSVRC2012_val_" in message


def test_two_listed_images_that_would_be_one_file_in_the_flat_folder_are_refused(tmp_path):
    root = imagenet_tree(tmp_path, flat_val=True)
    old = "val/n01443537/ILSVRC2012_val_00000101"
    edit(root / "ImageNet_LT_test.txt", old, "val/n01443537/ILSVRC2012_val_00000001")
    assert "ILSVRC2012_val_00000001.JPEG' is twice in" in refused("imagenet_lt", root, **PARTIAL)


# ---- parts at odds ----


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


# ---- totals ----


@pytest.mark.parametrize("published", [IMAGENET_LT, PLACES_LT], ids=lambda published: published.name)
def test_the_published_totals_pass_and_any_other_is_refused(tmp_path, published):
    classes, most, least = published.num_classes, published.most, published.least
    train = published.images["train"]
    for part, listed in published_lists(published).items():
        write_list(tmp_path / published.lists[part], listed)
        first = tmp_path / listed[0][0]
        first.parent.mkdir(parents=True)
        first.touch()
    data = build_data(published.name, tmp_path)
    assert data.num_classes == classes and len(data.train) == train and data.notes == []
    assert (max(data.class_counts), min(data.class_counts)) == (most, least)
    train_list = tmp_path / published.lists["train"]
    last = train_list.read_text().splitlines()[-1]
    edit(train_list, f"{last}\n", "train/c0002/moved.jpg 2\n")
    assert f"{most:,} down to 4 training images" in refused(published.name, tmp_path)
    edit(train_list, "train/c0002/moved.jpg 2\n", "")
    message = refused(published.name, tmp_path)
    assert f"{train - 1:,} train images instead of {train:,}" in message and "--allow_partial" in message
    assert build_data(published.name, tmp_path, **PARTIAL).class_counts[-1] == least - 1


# ---- validation ----


def test_the_hold_out_comes_out_of_the_training_list_in_its_order(imagenet):
    whole = build_data("imagenet_lt", imagenet, **PARTIAL)
    data = build_data("imagenet_lt", imagenet, val_source="heldout", val_fraction=0.25, **PARTIAL)
    assert data.class_counts == [12, 6, 3] and data.val_source == "heldout"
    train, val = files_of(data.train), files_of(data.val)
    assert len(val) == 6 and sorted(train + val) == sorted(files_of(whole.train))
    assert train == [path for path in files_of(whole.train) if path not in val]


@pytest.mark.parametrize("source", ["none", "unused"])
def test_no_validation_is_given_where_none_is_asked_for_or_none_is_unused(imagenet, source):
    data = build_data("imagenet_lt", imagenet, val_source=source, **PARTIAL)
    assert data.val is None and data.val_source == "none"
    message = refused("imagenet_lt", imagenet, val_source=source, val_required=True, **PARTIAL)
    assert message.endswith("take --val_source own or heldout")


# ---- options and names ----


def test_options_of_files_are_refused_for_a_set_in_memory_and_their_defaults_let_pass(tmp_path):
    assert "--split_dir goes with" in refused("digits_lt", tmp_path, split_dir=tmp_path)
    assert "--allow_partial goes with" in refused("digits_lt", tmp_path, **PARTIAL)
    message = refused("imagenet_lt", tmp_path, train_list="train.txt", **PARTIAL)
    assert message == "--train_list goes with --dataset list, not with imagenet_lt"
    none = {"views": None, "split_dir": None, "allow_partial": False, "report": print}
    usual, data = (build_data("digits_lt", imb_ratio=50, **options) for options in ({}, none))
    assert data.train.digest() == usual.train.digest() and data.views == usual.views


def test_own_data_is_named_after_its_folder_and_the_others_after_themselves(tmp_path, monkeypatch):
    assert data_name("imagenet_lt", "/data/imagenet") == "imagenet_lt"
    assert data_name("folder", "/data/my birds (2)") == "folder_my_birds__2_"
    assert data_name("list", "/data/Vögel-1.0_x/") == "list_Vögel-1.0_x"
    monkeypatch.chdir(tmp_path)
    assert data_name("folder", ".") == f"folder_{tmp_path.name}"
    assert data_name("list", "a/..") == f"list_{tmp_path.name}"


COUNTS, TEST = (12, 6, 3), 4
PARTS = inat_lists(COUNTS, TEST)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A small iNaturalist with annotations and text lists, read-only for the tests."""
    return inat_tree(tmp_path_factory.mktemp("inat"), COUNTS, TEST, kind="both")


@pytest.fixture
def texts(both, tmp_path):
    """A copy of the text lists alone; give it as split_dir."""
    for name in INAT_LISTS.values():
        shutil.copy(both / name, tmp_path)
    return tmp_path


def build(root, **options):
    return build_data("inaturalist18", root, allow_partial=True, **options)


# ---- annotations and lists ----


def test_annotations_and_text_lists_give_the_same_images_and_labels_and_the_notes_say_which(both, texts):
    for data, names in ((build(both), INAT_JSON), (build(both, split_dir=texts), INAT_LISTS)):
        folder = both if names is INAT_JSON else texts
        assert entries(data.train) == PARTS["train"] and entries(data.test) == PARTS["val"]
        assert data.class_counts == list(COUNTS) and data.val is None and data.val_source == "none"
        assert data.notes[0] == f"read from {folder / names['train']} and {folder / names['val']}"


def test_annotations_in_a_folder_of_their_own_are_found_after_lists_beside_the_images(tmp_path):
    root = inat_tree(tmp_path / "images", lists=tmp_path / "images" / "annotations")
    assert f"{root / 'annotations' / 'train2018.json'}" in build(root).notes[0]
    inat_tree(tmp_path / "images", kind="txt")
    assert "iNaturalist18_train.txt" in build(root).notes[0]


def test_half_of_the_annotations_do_not_come_before_whole_lists(tmp_path):
    root = inat_tree(tmp_path, kind="both")
    (root / "val2018.json").unlink()
    assert "iNaturalist18_train.txt" in build(root).notes[0]


def test_category_ids_with_gaps_become_ranks_the_same_for_train_and_test(tmp_path):
    root, ids, ranks = inat_tree(tmp_path, COUNTS, TEST), {0: 41, 1: 7, 2: 5000}, {0: 1, 1: 0, 2: 2}
    for part, found in PARTS.items():
        write_annotations(root / INAT_JSON[part], [(name, ids[label]) for name, label in found])
    data = build(root)
    assert entries(data.train) == [(name, ranks[label]) for name, label in PARTS["train"]]
    assert entries(data.test) == [(name, ranks[label]) for name, label in PARTS["val"]]
    assert data.class_names == ["Species 7", "Species 41", "Species 5000"] and data.class_counts == [6, 12, 3]


def test_annotations_are_joined_to_images_by_id_not_by_position(tmp_path):
    root, found = inat_tree(tmp_path, COUNTS, TEST), PARTS["train"]
    turned = [{"id": i, "image_id": 9 + i, "category_id": found[i][1]} for i in reversed(range(len(found)))]
    write_annotations(root / "train2018.json", found, annotations=turned)
    assert entries(build(root).train) == found


def test_a_byte_order_mark_and_what_is_not_asked_for_are_let_pass(tmp_path):
    root = inat_tree(tmp_path)
    more = [{"id": 9, "file_name": "of another list.jpg"}, {"image_id": 9, "category_id": 7}]
    write_annotations(root / "train2018.json", PARTS["train"], more=more)
    path = root / "train2018.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert build(root).class_counts == list(COUNTS)


def test_bad_file_names_can_be_collected_and_keep_their_places(tmp_path):
    found, images = [], annotations(PARTS["train"])["images"]
    images[1]["file_name"] = "../b.jpg"
    write_annotations(tmp_path / "train2018.json", PARTS["train"], images=images)
    read, _ = read_annotations(tmp_path / "train2018.json", tmp_path, found.append)
    assert len(found) == 1
    assert list(read.paths.every())[:3] == [PARTS["train"][0][0].encode(), b"", PARTS["train"][2][0].encode()]


# ---- class names ----


def test_class_names_are_those_of_the_categories(both, texts):
    assert build(both).class_names == ["Species 0", "Species 1", "Species 2"]
    assert build(both, split_dir=texts).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "categories",
    [None, [], "none", [{"id": 0, "name": "a"}, {"id": 1}], [{"id": i, "name": "same"} for i in range(3)]],
)
def test_without_a_name_for_each_category_the_folders_name_the_classes(tmp_path, categories):
    root = inat_tree(tmp_path)
    write_annotations(root / "train2018.json", PARTS["train"], categories=categories)
    assert build(root).class_names == ["0", "1", "2"]


# ---- layouts of the images ----


@pytest.mark.parametrize(
    ("kind", "layout"), [("txt", "official"), ("json", "content"), ("txt", "torchvision")]
)
def test_images_are_found_in_every_layout(both, tmp_path, kind, layout):
    usual, data = build(both), build(inat_tree(tmp_path, kind=kind, layout=layout))
    for ours, theirs in ((usual.train, data.train), (usual.test, data.test)):
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [p.read_bytes() for p in files_of(ours)] == [p.read_bytes() for p in files_of(theirs)]


def test_a_list_of_bare_names_is_not_taken_for_another_layout(both, texts):
    path = texts / "iNaturalist18_train.txt"
    path.write_text("".join(line.rpartition("/")[2] for line in path.read_text().splitlines(True)))
    assert "its first image" in refused("inaturalist18", both, split_dir=texts, allow_partial=True)


# ---- validation, totals, parts at odds ----
