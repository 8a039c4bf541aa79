"""Small sets of a user's own images: defaults by number and size, and one set of folders for all stages."""

import json
import os
import re
import shutil

import pytest
from PIL import Image

import evaluate
import main_stage1
import main_stage2
from tests.file_trees import folder_tree
from tests.helpers import call, last_line, places, refusal, run_folder
from tests.stage2 import read_table
from utils.settings.sizes import LARGE, STEPS, by_size


def photographs(root, number, size):
    """`number` names of one image of this size, in two class folders without train/."""
    for label in "ab":
        (root / label).mkdir(parents=True)
    Image.new("RGB", size).save(root / "a" / "0.png")
    for i in range(1, number):
        os.link(root / "a" / "0.png", root / "ab"[i % 2] / f"{i}.png")
    return {"dataset": "folder", "data_dir": root}


@pytest.mark.parametrize("number", [30, 400, 2100])
def test_a_small_set_gets_a_small_network_and_enough_steps_of_its_images(tmp_path, number):
    said = photographs(tmp_path / "set", number, (200, 150))
    words, chosen = by_size(said | {"test_fraction": 0.2, "val_fraction": 0.1})
    assert words.startswith(f"for {number:,} images with sides of 150 pixels")
    assert chosen["network"] == "resnet18" and chosen["image_size"] == 64
    trained = number * 0.8 * 0.9
    assert trained / chosen["batch_size"] >= STEPS or chosen["batch_size"] == 8
    assert trained / chosen["batch_size"] < 3 * STEPS and chosen["epochs"] >= 60
    listed = tmp_path / "all.txt"
    listed.write_text("".join(f"{'ab'[i % 2]}/{i}.png {i % 2}\n" for i in range(number)))
    of_list = by_size(said | {"dataset": "list", "train_list": listed})[1]
    assert of_list == by_size(said)[1]  # which the fractions only lessen


def test_icons_are_seen_whole_and_large_or_other_sets_keep_their_presets(tmp_path):
    icons = by_size(photographs(tmp_path / "icons", 40, (34, 30)))[1]
    assert (icons["network"], icons["stem"], icons["image_size"]) == ("resnet20", "small", 32)
    assert icons["augment"] == "pad_crop"
    (tmp_path / "long.txt").write_text("icons/a/0.png 0\n" * LARGE)
    long = {"dataset": "list", "data_dir": tmp_path, "train_list": tmp_path / "long.txt"}
    (tmp_path / "empty").mkdir()
    empty = {"dataset": "folder", "data_dir": tmp_path / "empty"}
    for said in (long, empty, {"dataset": "imagenet_lt"}, {"dataset": "folder", "data_dir": tmp_path / "no"}):
        assert by_size(said) == ("", {})


def test_folders_of_photographs_go_through_both_stages_and_evaluate_on_one_split(tmp_path):
    photos = shutil.copytree(folder_tree(tmp_path / "tree", counts=(30, 20, 10)) / "train", tmp_path / "own")
    words = ["--dataset", "folder", "--data_dir", photos, "--seed", "0", "--workers", "0", *places(tmp_path)]
    fractions = ["--test_fraction", "0.2", "--val_fraction", "0.1"]
    small = ["--network", "resnet8", "--image_size", "16", "--epochs", "2"]
    text = call(main_stage1.main, *words, *fractions, *small)
    split = "data folder_own: 43 training, 5 validation (heldout), 12 test images of 3 classes"
    assert split in text and "--shots" in text and "no validation images" not in text
    [line] = re.findall(
        r"^  for 60 images with sides of .* pixels, unless you say otherwise: (.*)$", text, re.M
    )
    assert "batch_size 8" in line and "network" not in line and "image_size" not in line
    text = call(main_stage2.main, *words, "--network", "resnet8", "--select", "val", "--finetune_epoch", "1")
    assert split in text and "batch_size 8" in text and "test_fraction 0.2" in text
    again = call(evaluate.main, *words[:4], *words[6:], "--network", "resnet8", "--cur_stage", "stage2")
    assert "12 test images" in again and last_line(again) == last_line(text)
    folders = [path.parent for path in tmp_path.rglob("config.json")]
    shots = {str(json.loads((path / "config.json").read_text())["config"]["shots"]) for path in folders}
    assert shots == {"None", "[9, 23]"}  # stage 1 finds them, the others inherit them
    judged = "Classes differ in test images: judge by the balanced accuracy, the mean over them"
    for select, by in (("last", "balanced"), ("val", "val_score")):
        several = ["--network", "resnet8", "--method", "stage1,ncm,la,crt,tau_norm", "--select", select]
        told = call(main_stage2.main, *words, *several, "--finetune_epoch", "2")
        table = read_table(run_folder(tmp_path, "stage2", "folder_own"))
        assert list(table[by][1:]) == sorted(table[by][1:], reverse=True)
        assert f"{judged}{', by which the rows are sorted' if select == 'last' else ''}.\n" in told
        assert re.search(r"^method .*overall +many +medium +few +balanced +to los$", told, re.M)
    (photos / "bee" / "005.jpg").unlink()  # of the training images
    message = refusal(main_stage2.main, *words, "--network", "resnet8")
    assert re.search(r"was trained on \d+ of the 12 test images of folder_own, figures on them", message)
    assert "the set of images has changed since (60 images then, 59 now), which moves the split" in message
    way_out = "--val_fraction 0.1 holds some out, for both stages"
    whole = [*words, "--test_fraction", "0.2", *small[:-1], "1", "--overwrite"]
    assert way_out in call(main_stage1.main, *whole)
