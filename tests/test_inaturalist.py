"""iNaturalist 2018: annotations and text lists give the same set, wherever its images lie."""

import shutil

import pytest

from datasets import build_data
from datasets.listed.annotations import read_annotations
from tests.file_trees import (
    INAT_JSON,
    INAT_LISTS,
    annotations,
    entries,
    inat_lists,
    inat_tree,
    refused,
    write_annotations,
)

COUNTS, TEST = (12, 6, 3), 4
PARTS = inat_lists(COUNTS, TEST)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A small iNaturalist with annotations and text lists, read-only for the tests."""
    return inat_tree(tmp_path_factory.mktemp("inat"), COUNTS, TEST, kind="both")


@pytest.fixture
def lists(both, tmp_path):
    """A copy of the text lists alone; give it as split_dir."""
    for name in INAT_LISTS.values():
        shutil.copy(both / name, tmp_path)
    return tmp_path


def build(root, **options):
    return build_data("inaturalist18", root, allow_partial=True, **options)


# ---- annotations and lists ----


def test_annotations_and_text_lists_give_the_same_images_and_labels_and_the_notes_say_which(both, lists):
    for data, names in ((build(both), INAT_JSON), (build(both, split_dir=lists), INAT_LISTS)):
        folder = both if names is INAT_JSON else lists
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


def test_class_names_are_those_of_the_categories(both, lists):
    assert build(both).class_names == ["Species 0", "Species 1", "Species 2"]
    assert build(both, split_dir=lists).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "categories",
    [None, [], "none", [{"id": 0, "name": "a"}, {"id": 1}], [{"id": i, "name": "same"} for i in range(3)]],
)
def test_without_a_name_for_each_category_the_folders_name_the_classes(tmp_path, categories):
    root = inat_tree(tmp_path)
    write_annotations(root / "train2018.json", PARTS["train"], categories=categories)
    assert build(root).class_names == ["0", "1", "2"]


# ---- layouts of the images ----


@pytest.mark.parametrize("kind", ["json", "txt"])
@pytest.mark.parametrize("layout", ["official", "content", "torchvision"])
def test_images_are_found_in_every_layout(both, tmp_path, kind, layout):
    usual, data = build(both), build(inat_tree(tmp_path, kind=kind, layout=layout))
    for ours, theirs in ((usual.train, data.train), (usual.test, data.test)):
        assert ours.labels.tolist() == theirs.labels.tolist()
        for i in range(len(ours)):
            same = (ours.root / ours.paths[i]).read_bytes()
            assert (theirs.root / theirs.paths[i]).read_bytes() == same


def test_a_list_of_bare_names_is_not_taken_for_another_layout(both, lists):
    path = lists / "iNaturalist18_train.txt"
    path.write_text("".join(line.rpartition("/")[2] for line in path.read_text().splitlines(True)))
    assert "its first image" in refused("inaturalist18", both, split_dir=lists, allow_partial=True)


# ---- validation, totals, parts at odds ----


def test_validation_can_only_be_held_out(both):
    data = build(both, val_source="heldout", val_fraction=0.25)
    assert data.val_source == "heldout" and len(data.train) + len(data.val) == sum(COUNTS)
    for source in ("own", "unused"):
        assert build(both, val_source=source).val is None
        message = refused("inaturalist18", both, val_source=source, val_required=True, allow_partial=True)
        assert message.endswith("take --val_source heldout")
