"""A user's own images: class folders and lists, as they are and made long-tailed."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from datasets import ImageSet, build_data, long_tail_counts, to_folder
from datasets.images.decode import ENDINGS, read_image
from datasets.listed.lists import read_list
from datasets.long_tail import SHOTS, keep_indices, shot_groups, suited_shots, unused_indices
from datasets.split import fitting_counts
from tests.file_trees import entries, folder_tree, list_tree, problems_of, refused, write_list
from tests.helpers import call
from utils.base.errors import UserError
from utils.settings.sizes import PHOTOGRAPHS, by_size

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
    data = build_data("folder", folder, shots=(20, 100))
    for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert entries(images) == as_torchvision(folder, part)
    assert data.class_names == ["ant", "bee", "cat"] == ImageFolder(folder / "train").classes
    assert data.class_counts == [12, 6, 3] and data.val_source == "own" and data.notes == []
    assert data.name == "folder_my_images" and data.train.root == folder


def test_nested_linked_and_oddly_named_images_come_in_torchvisions_order(copied, tmp_path):
    outside = shutil.copytree(copied / "train" / "ant", tmp_path / "elsewhere")
    (copied / "train" / "dog").symlink_to(outside)
    (copied / "train" / "bee" / "more").symlink_to(outside)
    images = ("b/1.JPG", "b-c/2.PNG", "b/c/3.webp", "B/4.tiff", "0.Ppm", "é/5.bmp", "b.jpg/6.jpeg")
    for name in (*images, "notes.txt", "clip.mp4", "jpg", "image.jpg.part"):
        path = copied / "train" / "cat" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
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
    data = build_data("folder", copied, shots=(20, 100))
    assert entries(data.test) == as_torchvision(copied, "val")
    assert data.val is None and data.val_source == "none"
    assert data.notes == ["val/ is taken as the test part, since there is no test/<class>/"]


@pytest.mark.parametrize("names", [["labels.csv"], ["z.jpg", "a.jpg", ".DS_Store"]])
def test_files_beside_the_class_folders_are_counted_in_a_note_with_the_first(folder, copied, names):
    for name in names:
        shutil.copy(folder / "train" / "ant" / "000.jpg", copied / "train" / name)
    seen = sorted(name for name in names if name[0] != ".")
    said = f"{copied}/train/: {len(seen)} file(s) beside the class folders are passed over, {seen[0]!r} first"
    data = build_data("folder", copied, shots=(20, 100))
    [note] = data.notes
    assert len(data.train) == 21 and note.startswith(said)


@pytest.mark.parametrize("options", [{"test_fraction": 0.25}, {}])
def test_a_test_folder_without_class_folders_is_no_test_part(copied, options):
    for path in list((copied / "test").rglob("*.jpg")):
        path.rename(copied / "test" / f"{path.parent.name}{path.name}")
    for name in ("ant", "bee", "cat"):
        (copied / "test" / name).rmdir()
    data = build_data("folder", copied, shots=(20, 100), **options)
    assert data.notes[0].startswith("test/ has no class folders, so its images have no labels: --predict")
    assert (len(data.train), len(data.test)) == ((15, 6) if options else (21, 6))


def test_a_class_without_test_images_is_noted(copied):
    shutil.rmtree(copied / "test" / "bee")
    notes = build_data("folder", copied, shots=(20, 100)).notes
    assert notes == ["1 class(es) have no test image and are left out of the test means"]


def test_everything_wrong_is_collected_and_what_is_left_still_built(copied):
    (copied / "test" / "bee").rename(copied / "test" / "wasp")
    (copied / "train" / "bee" / "loop").symlink_to(".")
    (copied / "train" / "dog").mkdir()
    found = problems_of("folder", copied)
    for words in ("wasp", "loop", "dog holds no image"):
        assert sum(words in problem for problem in found) == 1


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_a_set_without_a_test_part_gives_a_stratified_share_the_same_to_every_run(kind, folder, tmp_path):
    whole = shutil.copytree(folder / "train", tmp_path / "photos")
    (whole / "dog").mkdir()
    shutil.copy(whole / "ant" / "000.jpg", whole / "dog" / "only.jpg")
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*.jpg"))
    write_list(tmp_path / "all.txt", [(name, "abcd".index(name[0])) for name in names])
    lists = {"train_list": tmp_path / "all.txt"} if kind == "list" else {}
    options = {"test_fraction": 0.25, "val_source": "heldout", "val_fraction": 0.2, **lists}
    data = build_data(kind, whole, **options)
    assert data.class_names == ["ant", "bee", "cat", "dog"]
    counts = [torch.bincount(part.labels, minlength=4).tolist() for part in data.parts.values()]
    assert counts == [[7, 3, 1, 1], [2, 1, 1, 0], [3, 2, 1, 0]] and data.class_counts == [9, 4, 2, 1]
    assert sorted(entry[0] for part in data.parts.values() for entry in entries(part)) == names
    again = build_data(kind, whole, **options | {"val_source": "none"})
    assert entries(again.test) == entries(data.test) and again.class_counts == again.train_counts


def test_photographs_are_copied_to_the_parts_that_a_run_would_make_of_them(folder, tmp_path):
    to = tmp_path / "made"
    call(to_folder.main, "--from", folder / "train", "--to", to, "--test_fraction", "0.25")
    options = {"test_fraction": 0.25, "val_source": "heldout", "val_fraction": 0.1}
    parted = build_data("folder", folder / "train", **options).parts
    for name, part in build_data("folder", to).parts.items():
        assert entries(part) == [(f"{name}/{path}", label) for path, label in sorted(entries(parted[name]))]


def test_images_are_counted_by_the_endings_that_are_read_and_hidden_ones_are_not(tmp_path):
    assert set(PHOTOGRAPHS) >= set(ENDINGS)
    folder_tree(tmp_path / "own", counts=(4, 4), test_per_class=1)
    for number, path in enumerate(sorted((tmp_path / "own").rglob("*.jpg"))):
        path.rename(path.with_name(f"._{number}.jpg" if number % 3 == 0 else f"{number}.ppm"))
    said = {"dataset": "folder", "data_dir": tmp_path / "own"}
    shown = len([path for path in (tmp_path / "own" / "train").rglob("*") if path.suffix == ".ppm"])
    assert by_size(said)[0].startswith(f"for {shown} images with sides of ")


# ---- lists ----


def test_lists_are_read_in_their_order_with_folders_as_class_names(listed):
    data = build_data("list", listed, **LISTS, val_list="val.txt")
    for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        lines = (listed / f"{part}.txt").read_text().splitlines()
        assert [f"{path} {label}" for path, label in entries(images)] == lines
    assert data.class_names == ["ant", "bee", "cat"] and data.class_counts == [12, 6, 3]
    assert data.name == "list_listed" and data.val_source == "own"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"my cat/one two.jpg 3\n", [("my cat/one two.jpg", 3)]),
        (b"a.jpg \t  4  \n", [("a.jpg", 4)]),
        (b"a.jpg\t2147483647", [("a.jpg", 2147483647)]),
        (b"a.jpg 1\r\nb.jpg 2\r\n\r\n", [("a.jpg", 1), ("b.jpg", 2)]),
        (b"a.jpg 1\n\n  \nb.jpg 2\n\n", [("a.jpg", 1), ("b.jpg", 2)]),
        (b"\xef\xbb\xbfa.jpg 1\n", [("a.jpg", 1)]),
        (b"caf\xe9.jpg 1\n", [("caf\udce9.jpg", 1)]),
        ("Straße/日本.jpg 1\n".encode(), [("Straße/日本.jpg", 1)]),
        (b"./a.jpg 1\na/./b//c.jpg 2\na/../d.jpg 3\n", [("a.jpg", 1), ("a/b/c.jpg", 2), ("d.jpg", 3)]),
        (b".hidden/..a.jpg 1\na..b/c...jpg 2\n", [(".hidden/..a.jpg", 1), ("a..b/c...jpg", 2)]),
    ],
)
def test_what_lists_in_the_wild_hold_is_read(tmp_path, content, expected):
    (tmp_path / "list.txt").write_bytes(content)
    assert entries(read_list(tmp_path / "list.txt", tmp_path)) == expected


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


# ---- shot groups ----


@pytest.mark.parametrize(
    ("counts", "shots"),
    [
        ([110, 90, 70, 50, 40, 30, 25, 22, 21, 20, 20, 10], (22, 49)),  # one class of twelve had been many
        ([500] * 100, SHOTS),  # no limits could part equal counts
        (long_tail_counts(100, 500, 100), SHOTS),
        ([9, 9, 5, 5, 2], (3, 8)),
        ([3, 2], SHOTS),
    ],
)
def test_classes_are_cut_into_thirds_where_the_usual_limits_leave_a_group_next_to_none(counts, shots):
    found, note = suited_shots(counts)
    assert found == shots and bool(note) == (shots != SHOTS)
    sizes = [mask.sum() for mask in shot_groups(counts, found).values()]
    assert sum(sizes) == len(counts) and (shots == SHOTS or min(sizes) > 0)


def test_the_limits_of_own_images_are_noted_and_those_given_win(folder):
    data = build_data("folder", folder)
    [note] = data.notes
    assert data.shots == (4, 11) and data.groups == ["many", "medium", "few"]
    assert note.startswith(
        "shot groups: thirds of the classes by their images, --shots 4,11; --shots 20,100 "
    )
    assert build_data("folder", folder, shots=(20, 100)).notes == []


# ---- made long-tailed ----


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
    options = {"subset_seed": subset_seed, "val_source": "unused", "shots": (20, 100)}
    data = build_data("list", balanced, 20, **LISTS, **options)
    labels, counts = whole.train.labels.numpy(), long_tail_counts(10, 60, 20)
    kept = keep_indices(labels, counts, subset_seed)
    every = entries(whole.train)
    assert data.class_counts == data.train_counts == counts
    assert entries(data.train) == [every[i] for i in kept]
    assert entries(data.val) == [every[i] for i in unused_indices(labels, kept)]
    assert data.val_source == "unused" and data.test.digest() == whole.test.digest()
    assert data.notes == [
        "made long-tailed by --imb_ratio 20: 60 images of class 0, 0, down to 3 images of class 9, 9",
        "1 class(es) have no validation image and are left out of the validation means",
    ]


def test_own_validation_that_is_not_there_falls_back_to_unused_images(balanced, tmp_path):
    data = build_data("list", balanced, 20, **LISTS, val_source="own")
    assert data.val_source == "unused" and len(data.val) == 20 * 9 - 3  # class 1 leaves out 17 images
    message = refused("list", balanced, imb_ratio=20, **LISTS, val_source="own", val_required=True)
    assert message.endswith("take --val_source unused or heldout")
    data = build_data("list", list_tree(tmp_path), 4, **LISTS, val_list="val.txt")
    assert data.val_source == "own" and len(data.val) == 6


@pytest.mark.parametrize(("available", "ratio"), [([100, 2, 50], 60), ([2, 100], 50)])
def test_a_ratio_that_the_order_of_classes_cannot_give_is_refused_without_a_number_that_is_refused_too(
    available, ratio
):
    with pytest.raises(UserError, match="as the classes lie in the order of their names: take a smaller one"):
        fitting_counts(available, ratio)


def test_a_set_of_single_images_has_no_share_to_test(tmp_path):
    whole = folder_tree(tmp_path / "whole", counts=(1, 1), test_per_class=1) / "train"
    assert "--test_fraction takes no image" in refused("folder", whole, test_fraction=0.2)


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


def test_folders_of_numbered_classes_sort_as_the_classes_do(tmp_path):
    digits = build_data("digits_lt", imb_ratio=50)
    labels = torch.arange(12).repeat_interleave(2)
    train = ImageSet(digits.train.images[:24], labels)
    data = replace(digits, class_names=[str(k) for k in range(12)], class_counts=[2] * 12, train=train)
    to_folder.write_tree(replace(data, val=None, test=train), tmp_path)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [f"{k:02}" for k in range(12)]
