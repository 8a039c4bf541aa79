"""Whose model is it: places of their own, images that meet or were replaced, models that are kept."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import main_stage1
import main_stage2
from datasets import build_data, place_name, types
from tests.file_trees import Entry, list_tree, write_images, write_list
from tests.helpers import (
    call,
    last_line,
    places,
    published,
    read_summary,
    refusal,
    run_folder,
    run_stage1,
    run_stage2,
    stopped_at_step,
)
from tests.test_pack_runs import save_pack
from utils.packs.pack import read_pack
from utils.run import checkpoint
from utils.run.facts import compared
from utils.settings.config import resolve
from utils.settings.data import load_data
from utils.settings.parse import parse

FOLDS, A_CLASS = 4, 8  # folds of a list, images of each of its two classes
PHOTOS = [(f"photos/{label}/{i}.png", label) for label in (0, 1) for i in range(A_CLASS)]
SMALL = ("--network", "resnet8", "--image_size", "16", "--workers", "0")
LISTS = ("--train_list", "train.txt", "--test_list", "test.txt")
STAGE1 = ("--epochs", "1", "--batch_size", "8", "--seed", "0")
STAGE2 = ("--finetune_epoch", "1", "--finetune_lr", ".1", "--batch_size", "8", "--seed", "0")


def of_list(root: Path, *words: object) -> list[object]:
    """A data set of lists in root/data, whose runs leave everything below `root`."""
    return ["--dataset", "list", "--data_dir", root / "data", *LISTS, *SMALL, *places(root), *words]


def write_fold(root: Path, number: int) -> None:
    """The lists of a fold, under the names that those of every fold have."""
    parts: dict[str, list[Entry]] = {"train": [], "test": []}
    for i, entry in enumerate(PHOTOS):
        parts["test" if i % FOLDS == number else "train"].append(entry)
    for part, found in parts.items():
        write_list(root / "data" / f"{part}.txt", found)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A list of images, and the stage 1 of each of its folds; read-only but for the lists."""
    root, models = tmp_path_factory.mktemp("folds"), []
    write_images(root / "data", PHOTOS)
    for number in range(FOLDS):
        write_fold(root, number)
        call(main_stage1.main, *of_list(root, *STAGE1))
        models += [path for path in (root / "ckpt").glob("list_data-*/*_stage1.pth") if path not in models]
    return root, models


# ---- training images that meet test images


def test_every_fold_has_its_own_place_and_finds_its_own_model(folds):
    root, models = folds
    assert len(models) == FOLDS
    for number, model in enumerate(models):
        write_fold(root, number)
        assert f"checkpoint {model} " in call(evaluate.main, *of_list(root, "--cur_stage", "stage1"))


def test_of_all_pairs_of_folds_every_model_that_saw_test_images_is_refused_and_no_other(folds, tmp_path):
    root, models = folds
    met = 2 * A_CLASS // FOLDS
    for number in range(FOLDS):
        write_fold(root, number)
        for of, model in enumerate(models):
            words = of_list(root, "--pretrained_pth", model, "--ckpt_dir", tmp_path)
            if of == number:
                assert "overall=" in last_line(call(evaluate.main, *words))
                assert "overall=" in last_line(call(main_stage2.main, *words, *STAGE2))
                continue
            said = f"{model} was trained on {met} of the {met} test images of list_data, figures on them tell"
            assert refusal(evaluate.main, *words).startswith(said)
            assert refusal(main_stage2.main, *words, *STAGE2).startswith(said)
            words = of_list(root, "--pretrained", model, "--ckpt_dir", tmp_path)
            assert refusal(main_stage1.main, *words, *STAGE1).startswith(said)


def test_a_head_is_refused_where_its_backbone_saw_the_test_images(folds, tmp_path):
    root, models = folds
    write_fold(root, 0)
    shutil.copytree(root / "data", tmp_path / "data", ignore=shutil.ignore_patterns("photos"))
    other = [(f"others/{label}/{i}.png", label) for label in (0, 1) for i in range(4)]
    write_images(root / "data", other)
    write_list(root / "data" / "train.txt", other)
    words = of_list(root, "--ckpt_dir", tmp_path / "ckpt")
    call(main_stage2.main, *words, *STAGE2, "--pretrained_pth", models[0])
    head = published(tmp_path, "list_data", "resnet8_stage2.pth")
    write_fold(root, 1)
    message = refusal(evaluate.main, *words, "--pretrained_pth", head)
    assert f"{head} was trained on 4 of the 4 test" in message
    shutil.rmtree(root / "data" / "others")


def test_a_model_that_saw_the_test_images_under_other_names_is_refused_and_single_twins_are_not(tmp_path):
    entries = [(f"train/{label}/{i}.png", label) for label in (0, 1) for i in range(A_CLASS)]
    for name, parts in (("one", ("train", "test")), ("two", ("test", "train"))):
        for fold, part in enumerate(parts):
            chosen = entries[fold::2]
            places_of = [entry[0].replace("train", part) for entry in chosen]
            write_images(tmp_path / name, [(str(fold), 2 * fold + label) for _, label in chosen], places_of)
        words = ("--dataset", "folder", "--data_dir", tmp_path / name, *SMALL, *places(tmp_path))
        call(main_stage1.main, *words, *STAGE1)
    (model,) = (tmp_path / "ckpt").glob("folder_one-*/*_stage1.pth")
    words += ("--pretrained_pth", model)
    said = f"{model} was trained on 8 or more, by their bytes, of the 8 test images of folder_two"
    assert refusal(evaluate.main, *words).startswith(said)
    assert refusal(main_stage2.main, *words, *STAGE2).startswith(said)
    shutil.copy(tmp_path / "one" / "test" / "0" / "1.png", tmp_path / "one" / "train" / "0" / "twin.png")
    words = ("--dataset", "folder", "--data_dir", tmp_path / "one", *SMALL, *places(tmp_path), *STAGE1)
    call(main_stage1.main, *words, "--overwrite")  # its own test images, of which it saw a twin
    assert "overall=" in last_line(call(evaluate.main, *words[:-6], "--cur_stage", "stage1"))


def test_other_images_under_the_names_of_training_images_are_none_of_them(folds, tmp_path):
    root, models = folds
    write_fold(root, 1)
    shutil.copytree(root / "data", tmp_path / "data")
    words = [*of_list(tmp_path, "--pretrained_pth", models[0])]
    assert "was trained on 4 of the 4 test images" in refusal(evaluate.main, *words)  # a copy, moved
    write_images(tmp_path / "data", [(name, 1 - label) for name, label in PHOTOS])
    assert "overall=" in last_line(call(evaluate.main, *words))


def test_a_model_without_the_files_facts_is_refused_where_its_training_set_is_the_test_set(folds, tmp_path):
    root, models = folds
    write_fold(root, 0)
    old = checkpoint.read(models[0])
    facts = {name: value for name, value in old.facts.items() if name not in ("train_files", "identity")}
    checkpoint.save(tmp_path / "old.pth", facts | {"model": old.state})
    words = of_list(root, "--pretrained_pth", tmp_path / "old.pth", "--ckpt_dir", tmp_path)
    assert "compared with those of" in (text := call(main_stage2.main, *words, *STAGE2))
    assert "by their names alone, it was made before more was noted" in text
    train, test = (root / "data" / f"{part}.txt" for part in ("train", "test"))
    swapped = train.read_text(), test.read_text()
    test.write_text(swapped[0]), train.write_text(swapped[1])
    assert "was trained on 12 of the 12 test images" in refusal(evaluate.main, *words)


# ---- places of models


def test_folders_of_one_base_name_have_places_of_their_own_and_a_link_has_that_of_its_target(tmp_path):
    for name in ("a/pets", "b/pets"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "pets").symlink_to(tmp_path / "a" / "pets")
    one, other, linked = (place_name("folder", tmp_path / name / "pets") for name in "abc")
    assert one != other and one == linked and re.fullmatch("folder_pets-[0-9a-f]{8}", one)
    assert place_name("imagenet_lt", tmp_path) == "imagenet_lt"


def test_a_model_under_an_old_name_is_found_where_it_is_of_this_very_data(folds, tmp_path):
    root, models = folds
    write_fold(root, 0)
    shutil.copytree(root / "data", tmp_path / "data")
    words = of_list(tmp_path, "--cur_stage", "stage1")
    place = tmp_path / "ckpt" / "list_data" / "resnet8_stage1.pth"
    place.parent.mkdir(parents=True)
    shutil.copy(models[1], place)
    assert "no stage1 checkpoint at" in refusal(evaluate.main, *words)
    shutil.copy(models[0], place)
    assert f"checkpoint {place} " in call(evaluate.main, *words)


# ---- images that were replaced under their names


def train_files(root: Path) -> types.FileSet:
    return build_data("list", root, train_list="train.txt", test_list="test.txt").train


def facts_of(images: types.FileSet) -> dict:
    return {"train_digest": images.digest(), "train_files": images.contents}


def replaced(path: Path, kind: str) -> None:
    """Other bytes under the name of an image, by the time of the old ones but where the kind says it."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content) + b"x" * (kind == "longer"))
    if kind != "same size, own time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


KINDS = ("longer", "same size", "same size, own time")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_replaced_under_its_name_is_seen_wherever_it_stands_and_a_copy_is_none(tmp_path, kind):
    list_tree(tmp_path / "data")
    before = facts_of(train_files(tmp_path / "data"))
    for image in (0, 10, 20):  # of 21
        shutil.copytree(tmp_path / "data", copy := tmp_path / "copy", copy_function=shutil.copyfile)
        changed, looked = compared(before, train_files(copy))
        assert changed is None and looked.endswith("their times of change are others, as those of a copy are")
        images = train_files(copy)
        replaced(copy / images.paths[image], kind)
        changed, looked = compared(before, images)
        assert changed.startswith("files were replaced under their names") and "21 of 21 files" in looked
        shutil.rmtree(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_the_sample_size_and_time_are_seen_and_with_full_every_byte(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(types, "SAMPLED", 7)
    list_tree(tmp_path / "data")
    looked_at = train_files(tmp_path / "data").sampled.tolist()
    assert looked_at == [0, 3, 6, 9, 12, 15, 18]
    full = [load(tmp_path / "data", whole) for whole in (False, True)]
    before = [facts_of(one) for one in full]
    replaced(tmp_path / "data" / full[0].paths[1], kind)
    now = [load(tmp_path / "data", whole) for whole in (False, True)]
    changed, looked = compared(before[0], now[0])
    assert (changed is not None) == (kind == "longer") and "bytes of 7 of 21 files" in looked
    assert ("their times of change are others" in looked) == (kind == "same size, own time")
    changed, looked = compared(before[1], now[1])
    assert changed.startswith("files were replaced") and looked == "by all names and all bytes"
    assert compared(before[1], now[0])[1] == looked_at_less(before[1], now[0])


def load(root: Path, full: bool) -> types.FileSet:
    words = ["--dataset", "list", "--data_dir", str(root), *LISTS, "--data_digest", "full"]
    words = words if full else words[:-2]
    return load_data(resolve("main_stage1.py", parse("main_stage1.py", words))).train


def looked_at_less(before: dict, images: types.FileSet) -> str:
    """What is said where one of the two knows a sample alone."""
    sampled = {name: value for name, value in before["train_files"].items() if name != "all"}
    return compared(before | {"train_files": sampled}, images)[1]


def test_a_resume_over_replaced_images_is_refused_and_over_the_same_bytes_goes_on_with_a_note(tmp_path):
    list_tree(tmp_path / "data")
    words = of_list(tmp_path, *STAGE1[2:], "--epochs", "3")
    stopped_at_step(tmp_path, 4, lambda: call(main_stage1.main, *words))
    again = ("--resume", run_folder(tmp_path, "stage1", "list_data"), *LISTS)
    image = tmp_path / "data" / "photos" / "bee" / "train001.jpg"
    content = image.read_bytes()
    image.write_bytes(content + b"x")
    message = refusal(main_stage1.main, *again)
    assert "was trained on other images: files were replaced under their names" in message
    image.write_bytes(content)
    text = call(main_stage1.main, *again)
    assert "note: the training images were compared with those of the run by all names and sizes" in text


def test_stage_2_notes_images_that_were_replaced_since_stage_1_and_selects_on_no_validation(tmp_path):
    list_tree(tmp_path / "data")
    words = of_list(tmp_path, "--val_list", "val.txt")
    call(main_stage1.main, *words, *STAGE1)
    assert "the backbone was trained on" not in call(main_stage2.main, *words, *STAGE2, "--select", "val")
    replaced(tmp_path / "data" / "photos" / "bee" / "train001.jpg", "same size")
    text = call(main_stage2.main, *words, *STAGE2, "--overwrite")
    assert "files were replaced under their names" in text
    assert "note: the backbone was trained on other images" in text
    words += [*STAGE2, "--overwrite", "--select", "val"]
    assert "--select val refused" in refusal(main_stage2.main, *words)


def test_an_extraction_that_goes_on_makes_the_features_of_replaced_images_again(tmp_path):
    list_tree(tmp_path / "data")
    words = of_list(tmp_path)
    call(main_stage1.main, *words, *STAGE1)
    bad, other = (tmp_path / "data" / "photos" / name for name in ("cat/train002.jpg", "ant/test000.jpg"))
    content = bad.read_bytes()
    bad.write_bytes(b"")
    words += [*STAGE2, "--overwrite", "--save_features"]
    assert "train002.jpg" in refusal(main_stage2.main, *words, tmp_path / "cut")
    assert any((tmp_path / "cut.parts" / "test.done").read_bytes())  # the test images' are there
    bad.write_bytes(content)
    shutil.copyfile(tmp_path / "data" / "photos" / "cat" / "test000.jpg", other)
    for name in ("cut", "fresh"):
        call(main_stage2.main, *words, tmp_path / name)
    cut, fresh = (read_pack(tmp_path / name) for name in ("cut", "fresh"))
    assert torch.equal(cut.test, fresh.test) and torch.equal(cut.train, fresh.train)


# ---- models that are replaced


def kept(place: Path) -> list[Path]:
    return sorted(place.parent.glob(f"{place.stem}.*.pth"))


def test_a_model_of_more_epochs_is_replaced_on_the_users_word_and_kept(tmp_path):
    """Without that word it is refused: tests/bad_inputs/runs.py has those rows."""
    run_stage1(tmp_path, "--epochs", "2", "--seed", "0")
    place = tmp_path / "ckpt" / "digits_lt" / "IR=50" / "resnet8_stage1.pth"
    first = place.read_bytes()
    words = ("--dataset", "digits_lt", *places(tmp_path), "--seed", "1")
    text = call(main_stage1.main, *words, "--epochs", "1", "--overwrite")
    assert f"left at {place}, in place of an older one, kept as {kept(place)[0]}" in text
    assert kept(place)[0].read_bytes() == first != place.read_bytes()
    second = place.read_bytes()
    text = call(main_stage1.main, *words, "--epochs", "2")  # of as many: a word, and it is kept
    assert [path.read_bytes() for path in kept(place)] == [first, second] and "kept as" in text
    place.write_bytes(b"spoilt")
    call(main_stage1.main, *words, "--epochs", "1")
    assert [path.read_bytes() for path in kept(place)] == [first, second, b"spoilt"]


def test_heads_on_a_pack_are_kept_whatever_their_method_and_asked_about_where_it_is_the_same(
    digits, tmp_path
):
    pack = save_pack(tmp_path, digits.stage1)
    words = ("--features", pack, *places(tmp_path / "heads"), "--seed", "0")
    for method in ("los", "ce", "ncm", "la"):
        epochs = ("--finetune_epoch", "2") if method in ("los", "ce") else ()
        call(main_stage2.main, *words, "--method", method, *epochs)
    place = tmp_path / "heads" / "ckpt" / "digits_lt" / "IR=50" / "resnet8_features_stage2.pth"
    methods = [checkpoint.read(path).facts["method"] for path in (*kept(place), place)]
    assert methods == ["los", "ce", "ncm", "la"]
    call(main_stage2.main, *words, "--method", "los", "--finetune_epoch", "2")
    message = refusal(main_stage2.main, *words, "--method", "los", "--finetune_epoch", "1")
    assert f"{place} holds a model of 2 epochs, this run has 1: give a --ckpt_dir of its own" in message


def test_a_finished_stage_1_that_is_resumed_once_more_is_the_same_model_for_its_stage_2(tmp_path):
    run_stage1(tmp_path, "--epochs", "2", "--seed", "0")
    place = tmp_path / "ckpt" / "digits_lt" / "IR=50" / "resnet8_stage1.pth"
    before = checkpoint.read(place)
    words = ("--finetune_epoch", "3", "--seed", "0")
    stopped_at_step(tmp_path, 6, lambda: run_stage2(tmp_path, *words))
    call(main_stage1.main, "--resume", run_folder(tmp_path, "stage1"), "--workers", "0", "--quiet")
    after = checkpoint.read(place)
    assert after.digest != before.digest and after.identity == before.identity and not kept(place)
    folder = run_folder(tmp_path, "stage2")
    assert "heads go on" in call(main_stage2.main, "--resume", folder)
    assert read_summary(folder)["stage1_digest"] == before.identity
    weights = {name: value + 1 for name, value in after.state.items()}
    for change in ({"model": weights}, {"seed": 7}, {"train_digest": "0" * 64}):
        checkpoint.save(tmp_path / "other.pth", after.facts | {"model": after.state} | change)
        assert checkpoint.read(tmp_path / "other.pth").identity != before.identity
