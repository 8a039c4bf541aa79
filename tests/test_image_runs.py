"""The scripts on images on disk: every data set on its true layout, a user's own images and networks."""

import copy
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

import evaluate
import main_stage1
import main_stage2
from datasets import build_data
from datasets.images.decode import read_image
from datasets.images.in_memory import DeviceImages
from datasets.images.on_disk import open_images
from datasets.types import ImageSet, ViewSpec
from tests.file_trees import folder_tree, imagenet_tree, inat_tree, list_tree, places_tree
from tests.helpers import (
    call,
    last_line,
    places,
    published,
    read_metrics,
    read_summary,
    refusal,
    run_folder,
    stopped_at_step,
)
from tests.odd_images import readable_files, write
from tests.stage2 import read_table
from utils.packs.pack import read_pack
from utils.run import checkpoint
from utils.run.network import try_network
from utils.settings.config import describe, resolve
from utils.settings.data import file_views, load_data
from utils.settings.parse import STAGE1, parse

COUNTS = (24, 12, 6)
SMALL = ["--image_size", "32", "--network", "resnet8", "--workers", "0"]
SHORT = {
    main_stage1.main: ["--epochs", "2", "--batch_size", "16", "--seed", "0"],
    main_stage2.main: ["--finetune_epoch", "2", "--batch_size", "16", "--seed", "0"],
}


def stage1(root: Path, *words: object) -> str:
    return call(main_stage1.main, *SHORT[main_stage1.main], *words, *places(root))


def stage2(root: Path, *words: object) -> str:
    return call(main_stage2.main, *SHORT[main_stage2.main], *words, *places(root))


def sequence(root: Path, *words: object) -> list[str]:
    """Stage 1, stage 2 and evaluate, one after another; what each printed."""
    scored = ["--cur_stage", "stage2", *words, *places(root)]
    return [stage1(root, *words), stage2(root, *words), call(evaluate.main, *scored)]


TREES = {
    "imagenet_lt": partial(imagenet_tree, flat_val=True),
    "inaturalist18": partial(inat_tree, layout="torchvision"),
    "places_lt": places_tree,
}


@pytest.mark.parametrize("dataset", TREES)
def test_a_published_data_set_trains_and_evaluates_on_its_true_layout(tmp_path, dataset):
    TREES[dataset](tmp_path / "data", counts=COUNTS, test_per_class=4)
    words = ["--dataset", dataset, "--data_dir", tmp_path / "data"]
    first, second, found = sequence(tmp_path, *words, *SMALL, "--allow_partial")
    assert "42 training" in first and "12 test images of 3 classes" in first
    assert f"note: not the published {dataset}" in first
    assert "0.66287" not in second and "logit gap 1.11 at its optimum" in second
    assert "(views x images: " in second and "train 2 x 42, plain 1 x 42" in second
    assert last_line(second) == last_line(found)
    if dataset != "inaturalist18":
        assert "validation (own)" in first and re.search(r"^epoch .*, val [\d.]+ \(", first, re.M)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with class sub-folders of images, and both stages trained on it."""
    root = tmp_path_factory.mktemp("own")
    folder_tree(root / "pets", counts=COUNTS, test_per_class=5)
    sequence(root, "--dataset", "folder", "--data_dir", root / "pets", *SMALL)
    return root


def of_own(own: Path, *words: object) -> list[object]:
    return ["--dataset", "folder", "--data_dir", own / "pets", *SMALL, *words]


def model_of(root: Path, stage: str = "stage2") -> Path:
    return published(root, "folder_pets", f"resnet8_{stage}.pth")


def test_own_images_keep_their_class_names_and_stage_2_moves_no_bit_of_the_backbone(own):
    one, two = (checkpoint.read(model_of(own, stage)) for stage in ("stage1", "stage2"))
    assert one.facts["class_names"] == ["ant", "bee", "cat"] and one.facts["class_counts"] == list(COUNTS)
    assert (one.facts["image_size"], one.facts["augment"], one.facts["num_class"]) == (32, "resized_crop", 3)
    assert all(torch.equal(one.state[n], two.state[n]) for n in one.state if not n.startswith("fc."))
    assert not torch.equal(one.state["fc.weight"], two.state["fc.weight"])
    assert not list(own.rglob("*.bin"))  # the features are gone with the run


def test_predictions_are_a_row_an_image_the_same_for_the_test_set_and_a_folder_without_labels(own, tmp_path):
    words = of_own(own, "--cur_stage", "stage2", "--predictions", tmp_path / "known.csv")
    text = call(evaluate.main, *words, *places(own))
    rows = pd.read_csv(tmp_path / "known.csv")
    assert len(rows) == 15 and rows["image"].is_unique
    assert all((own / "pets" / name).is_file() for name in rows["image"])
    assert list(rows["label_name"]) == [name for name in ("ant", "bee", "cat") for _ in range(5)]
    accuracy = 100 * (rows["label"] == rows["predicted"]).mean()
    assert f"overall={accuracy:.2f} " in last_line(text)
    assert rows["confidence"].between(100 / 3, 100).all()
    words = ["--predict", own / "pets" / "test", "--predictions", tmp_path / "p.csv", "--workers", "0"]
    text = call(evaluate.main, "--pretrained_pth", model_of(own), *words, "--out", tmp_path / "out")
    assert last_line(text) == f"predicted images=15 file={tmp_path / 'p.csv'}"
    found = pd.read_csv(tmp_path / "p.csv")
    assert list("test/" + found["image"]) == list(rows["image"])
    for column in ("predicted", "predicted_name", "confidence"):
        assert list(found[column]) == list(rows[column])


def test_images_without_a_finite_prediction_have_no_name_and_are_counted_in_a_warning(own, tmp_path, capsys):
    model = checkpoint.read(model_of(own, "stage1"))
    weights = model.state | {"fc.weight": torch.full_like(model.state["fc.weight"], 3e38)}
    checkpoint.save(tmp_path / "huge.pth", model.facts | {"model": weights})
    words = ["--pretrained_pth", tmp_path / "huge.pth", "--predictions", tmp_path / "p.csv", "--quiet"]
    scored = ["--cur_stage", "stage1", *places(tmp_path)]
    unlabelled = ["--predict", own / "pets" / "test", "--workers", "0", "--out", tmp_path]
    for line in (of_own(own, *words, *scored), [*words, *unlabelled]):
        call(evaluate.main, *line)
        said = "warning: 15 image(s) have no prediction, their logits are not finite: they count as wrong"
        assert capsys.readouterr().err.startswith(said)
        rows = pd.read_csv(tmp_path / "p.csv")
        assert set(rows["predicted"]) == {-1} and rows[["predicted_name", "confidence"]].isna().all(axis=None)
    text = (run_folder(tmp_path, "evaluate_stage1", "folder_pets") / "summary.json").read_text()
    test = json.loads(text, parse_constant=pytest.fail)["test"]
    assert test["without_prediction"] == 15 and test["overall"] == test["balanced"] == 0
    assert test["calibration_error"] is None


def test_a_network_of_images_in_memory_predicts_files_of_any_size(own, tmp_path):
    words = ["--predict", own / "pets" / "test", "--predictions", tmp_path / "p.csv", "--workers", "0"]
    words += ["--network", "resnet32", "--imb_ratio", "100", "--cur_stage", "stage2", "--out", tmp_path]
    text = call(evaluate.main, *words)
    assert last_line(text).startswith("predicted images=15")
    assert pd.read_csv(tmp_path / "p.csv")["predicted"].between(0, 99).all()


def test_saved_features_serve_a_later_stage_2_with_the_same_result(own, tmp_path):
    pack = tmp_path / "pets.safetensors"
    methods = ["--method", "ce,los,ncm,los_step,crt", "--finetune_epoch", "3", "--seed", "0"]
    words = of_own(own, *methods, "--save_features", pack, "--pretrained_pth", model_of(own, "stage1"))
    texts = [call(main_stage2.main, *words, *places(tmp_path / "first"))]
    name = read_pack(pack).facts["dataset"]
    assert re.fullmatch("folder_pets-[0-9a-f]{8}", name) and not list(tmp_path.rglob("*.bin"))
    texts.append(call(main_stage2.main, "--features", pack, *methods, *places(tmp_path / "again")))
    lines = [[line for line in text.splitlines() if line.startswith("test method")] for text in texts]
    assert lines[0] == lines[1] and len(lines[0]) == 5
    first, again = (
        read_table(run_folder(tmp_path / root, "stage2", data)).drop(columns="seconds")
        for root, data in (("first", "folder_pets"), ("again", name))
    )
    pd.testing.assert_frame_equal(first, again)


def test_an_extraction_that_was_cut_off_is_gone_on_with(own, tmp_path):
    pack = tmp_path / "pets.safetensors"
    words = of_own(own, "--cur_stage", "stage2", "--save_features", pack, *places(tmp_path))
    words += ["--pretrained_pth", model_of(own, "stage1"), "--seed", "0"]
    bad = own / "pets" / "train" / "cat" / "003.jpg"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    try:
        assert "003.jpg" in refusal(main_stage2.main, *words)
    finally:
        bad.write_bytes(content)
    parts = tmp_path / "pets.safetensors.parts"
    assert any((parts / "test.done").read_bytes())  # what came before is there
    call(main_stage2.main, *words)
    assert not parts.exists() and read_pack(pack).train.shape[:2] == (2, sum(COUNTS))


def test_balanced_lists_with_a_validation_part_are_made_long_tailed_and_select_on_it(tmp_path):
    list_tree(tmp_path / "data", counts=(20, 20, 20), test_per_class=4, val_per_class=3)
    lists = [word for part in ("train", "val", "test") for word in (f"--{part}_list", f"{part}.txt")]
    words = ["--dataset", "list", "--data_dir", tmp_path / "data", *lists, *SMALL, "--select", "val"]
    words += ["--imb_ratio", "4"]
    texts = [script(tmp_path, *words) for script in (stage1, stage2)]
    assert all(last_line(text).endswith("selected_on=val") for text in texts)
    assert all("35 training, 9 validation (own), 12 test images" in text for text in texts)
    assert published(tmp_path, "list_data", "IR=4/resnet8_stage1.pth").is_file()


def test_the_limits_of_the_shot_groups_can_be_set(own, tmp_path):
    text = stage1(tmp_path, *of_own(own, "--shots", "10,20"))
    assert "classes: many 1, medium 1, few 1" in text
    folder = run_folder(tmp_path, "stage1", "folder_pets")
    rows, summary = pd.read_csv(folder / "per_class.csv"), read_summary(folder)
    assert list(rows["group"]) == ["many", "medium", "few"]
    assert [100 * summary["test"][name] for name in ("many", "medium", "few")] == list(rows["accuracy"])
    text = stage2(tmp_path, *of_own(own, "--method", "ce,los"))
    assert "classes: many 1, medium 1, few 1" in text  # the checkpoint's


def test_small_images_take_the_way_of_cifar_with_the_same_bits(tmp_path):
    """The same pixels as PNG files and in memory: the same training views, to the last bit."""
    folder_tree(tmp_path / "data", counts=COUNTS, test_per_class=4, suffix=".png")
    line = "--dataset folder --image_size 64 --augment pad_crop --normalise cifar"
    views = file_views(resolve(STAGE1, parse(STAGE1, line.split())))
    data = build_data("folder", tmp_path / "data", views=views, val_source="none")
    files = [read_image(str(data.train.root / data.train.paths[i])) for i in range(len(data.train))]
    pixels = torch.stack([functional.resize(image, [64, 64], antialias=True) for image in files])
    memory = DeviceImages(
        ImageSet(pixels, data.train.labels), ViewSpec(views.mean, views.std, views.padding, mirror=True)
    )
    order = torch.randperm(len(memory), generator=torch.Generator().manual_seed(1))
    ours = open_images(data.train, views, torch.device("cpu"))
    pairs = zip(ours.augmented(order, 16, 0, 3), memory.augmented(order, 16, 0, 3), strict=True)
    assert all(torch.equal(one, other) for a, b in pairs for one, other in zip(a, b, strict=True))


def test_images_of_every_odd_kind_train_and_are_predicted(tmp_path):
    """Grey, CMYK, palette, alpha, 16 bits, EXIF-rotated, progressive, ...: whatever Pillow reads as RGB."""
    for label, part in enumerate(("train", "train", "test")):
        for k, name in enumerate(("ant", "bee")):
            for kind, content in readable_files(index=3 * label + k).items():
                write(tmp_path / "data", f"{part}/{name}/{label}_{kind}", content)
    words = ["--dataset", "folder", "--data_dir", tmp_path / "data", *SMALL]
    texts = sequence(tmp_path, *words)
    kinds = len(readable_files())
    assert kinds >= 25 and f"{4 * kinds} training" in texts[0] and "passed over" not in texts[0]
    assert last_line(texts[1]) == last_line(texts[2])


def test_files_that_are_no_images_are_counted_and_named_and_predicted_with_a_reason(own, tmp_path):
    pets = shutil.copytree(own / "pets", tmp_path / "pets")
    for name in ("train/ant/IMG_1.HEIC", "train/bee/notes", "test/ant/b.heic", "test/ant/Thumbs.db"):
        (pets / name).write_bytes(b"something else")
    words = ("--dataset", "folder", "--data_dir", pets, "--epochs", "1", *SMALL, *places(tmp_path))
    text = call(main_stage1.main, *words)
    for first in ("train/ant/IMG_1.HEIC", "test/ant/Thumbs.db"):
        assert f"2 file(s) passed over, '{first}' first: by its name it is none of JPEG" in text
    table = tmp_path / "p.csv"
    words = ("--pretrained_pth", model_of(own), "--predict", pets / "test", "--predictions", table)
    text = call(evaluate.main, *words, "--out", tmp_path / "out", "--workers", "0")
    assert "2 file(s) passed over" in text and "15 predictions left" in text
    found = pd.read_csv(table, dtype={"predicted": "Int64"})
    assert len(found) == 17 and found["reason"].notna().sum() == 2
    assert list(found["image"][15:]) == ["ant/Thumbs.db", "ant/b.heic"]
    assert found.loc[15:, ["predicted", "predicted_name", "confidence"]].isna().all(axis=None)
    assert found["reason"][15].startswith("not read: by its name it is none of JPEG")
    assert ",," in table.read_text().splitlines()[-1]


def test_a_broken_image_is_a_row_with_its_reason_and_ends_no_prediction_of_others(own, tmp_path, capsys):
    pets, table = shutil.copytree(own / "pets" / "test", tmp_path / "pets"), tmp_path / "p.csv"
    words = ("--pretrained_pth", model_of(own), "--predictions", table, "--out", tmp_path, "--quiet")
    call(evaluate.main, *words, "--predict", pets)
    whole, spoilt = pd.read_csv(table), [0, 7]
    for name in whole["image"][spoilt]:
        (pets / name).write_bytes((pets / name).read_bytes()[:-40])
    for workers in (0, 2):
        text = call(evaluate.main, *words, "--predict", pets, "--workers", workers)
        assert last_line(text) == f"predicted images=13 file={table}"
        found = pd.read_csv(table, dtype={"predicted": "Int64"})
        assert found["predicted_name"].isna().tolist() == [i in spoilt for i in range(15)]
        left = found.drop(spoilt).drop(columns="reason").astype({"predicted": "int64"})
        pd.testing.assert_frame_equal(left, whole.drop(spoilt).drop(columns="reason"), atol=1e-5)
        assert found["reason"][7].startswith(f"not read: {pets / whole['image'][7]} is cut off")
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: 2 image(s) could not be read") and whole["image"][0] in line
    single = pets / whole["image"][7]
    assert refusal(evaluate.main, *words, "--predict", single).startswith(f"no image of {single} can be read")


@pytest.mark.parametrize("kind", ["photographs", "list", "list of validation images"])
def test_own_images_without_labelled_test_images_are_selected_reported_and_predicted(tmp_path, kind):
    data, held = tmp_path / "data", ["--val_fraction", "0.2"]
    if kind == "photographs":
        shutil.copytree(folder_tree(tmp_path / "tree", counts=COUNTS) / "train", data)
        words = ["--dataset", "folder", "--data_dir", data]
    else:
        list_tree(data, counts=COUNTS, val_per_class=3)
        words = ["--dataset", "list", "--data_dir", data, "--train_list", "train.txt"]
        held = ["--val_list", "val.txt"] if "val" in kind else held
        words += held if "val" in kind else []
    pack = tmp_path / "my.pack"
    texts = [stage1(tmp_path, *words, *held, *SMALL, "--select", "val")]
    texts += [stage2(tmp_path, *words, *SMALL, "--select", "val", "--save_features", pack)]
    for text in texts:
        assert re.match(r"val overall=[\d.]+ .* selected_on=val$", last_line(text))
        assert ", 0 test images of 3 classes" in text and " validation images  accuracy" in text
        assert "note: no test images with labels: all figures are of the validation images" in text
    made = read_pack(pack)
    assert made.test is None and len(made.val_labels) == (9 if "val" in kind else 8)
    scored = ["--cur_stage", "stage2", *words, *SMALL, *places(tmp_path)]
    said = "has no train/: expected" if kind == "photographs" else "no test images with labels"
    assert said in refusal(evaluate.main, *scored)
    new = folder_tree(tmp_path / "new", test_per_class=4) / "test"
    assert "predicted images=12 " in last_line(call(evaluate.main, *scored, "--predict", new))
    if kind == "photographs":  # the split moves, and images that trained the backbone would be reported
        for image in list(data.glob("*/*"))[::2]:
            shutil.copy(image, image.with_name(f"0{image.name}"))
        message = refusal(main_stage2.main, *scored, "--select", "last")
        assert re.search(r"was trained on \d+ of the \d+ validation images .* which moves the split", message)


def test_a_test_part_that_stage_1_had_is_not_forgotten_in_stage_2(tmp_path):
    list_tree(tmp_path / "data", counts=COUNTS, val_per_class=3)
    words = ["--dataset", "list", "--data_dir", tmp_path / "data", "--train_list", "train.txt"]
    words += ["--val_list", "val.txt"]
    stage1(tmp_path, *words, "--test_list", "test.txt", *SMALL)
    message = refusal(main_stage2.main, "--cur_stage", "stage2", *words, *SMALL, *places(tmp_path))
    assert re.search(r"had \d+ test images, list_data has none: name them again \(--test_list", message)


def test_the_trial_of_a_network_leaves_statistics_modes_and_random_state_as_they_were(own):
    config = resolve(STAGE1, {"dataset": "folder", "data_dir": own / "pets"})
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
    model[1].eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    try_network(model, config, load_data(config), rows=2)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and not model[1].training


# ---- networks

TINY = """from torch import nn


def tiny(num_classes):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize("network", ["mobilenet_v3_small", "my_nets:tiny"])
def test_a_network_of_torchvision_or_of_the_users_own_trains_by_its_name(own, tmp_path, monkeypatch, network):
    (tmp_path / "my_nets.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    _, text, found = sequence(tmp_path, *of_own(own, "--network", network))
    assert published(tmp_path, "folder_pets", f"{network.replace(':', '_')}_stage2.pth").is_file()
    assert last_line(found) == last_line(text)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_network_with_dropout_resumes_to_the_same_bits(own, tmp_path, stage):
    words, run = of_own(own, "--network", "tests.user_networks:tiny"), stage1
    if stage == "stage2":
        stage1(tmp_path, *words)
        [start] = (tmp_path / "ckpt").glob("*/*_stage1.pth")
        words, run = [*words, "--pretrained_pth", start, "--bn_mode", "train"], stage2
    folders = []
    for name in ("whole", "stopped"):
        act = partial(run, tmp_path / name, *words)
        act() if name == "whole" else stopped_at_step(tmp_path / name, 4, act)  # the first of epoch 2
        folders.append(run_folder(tmp_path / name, stage, "folder_pets"))
    main = main_stage1.main if stage == "stage1" else main_stage2.main
    call(main, *words, *places(tmp_path / "stopped"), "--resume", folders[1])
    whole, stopped = (checkpoint.read(folder / "last.pth").state for folder in folders)
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("default")  # torch's own, of the compiler
def test_a_compiled_network_trains_as_the_plain_one_does(own, tmp_path, monkeypatch):
    (tmp_path / "compiled_nets.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    losses = []
    for name, words in (("plain", []), ("compiled", ["--compile"])):
        stage1(tmp_path / name, *of_own(own, *words, "--network", "compiled_nets:tiny"))
        table = read_metrics(run_folder(tmp_path / name, "stage1", "folder_pets"))
        losses.append(table["train_loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_stage_1_starts_from_weights_of_another_data_set(own, tmp_path):
    start = model_of(own, "stage1")
    folder_tree(tmp_path / "data", classes=("x", "y"), counts=(8, 4), test_per_class=2)
    words = ["--dataset", "folder", "--data_dir", tmp_path / "data", *SMALL, "--seed", "0"]
    words += ["--epochs", "1", "--lr", "1e-12", "--batch_size", "8", *places(tmp_path)]
    text = call(main_stage1.main, *words, "--pretrained", start)
    assert f"started from {start}" in text and "all but the classifier" in text
    found = checkpoint.read(published(tmp_path, "folder_data", "resnet8_stage1.pth")).state
    for name, value in checkpoint.read(start).state.items():
        if "weight" in name and not name.startswith("fc."):
            torch.testing.assert_close(found[name], value)
    assert found["fc.weight"].shape == (2, 64)
    words[words.index("resnet8")] = "resnet20"
    assert "--pretrained" in refusal(main_stage1.main, *words, "--pretrained", start)


def test_the_stem_is_the_users_choice_and_the_checkpoints_memory(own, tmp_path):
    words = of_own(own, "--network", "resnet10")
    stage1(tmp_path, *words, "--stem", "imagenet")
    source = checkpoint.read(published(tmp_path, "folder_pets", "resnet10_stage1.pth"))
    assert source.state["conv1.weight"].shape == (64, 3, 7, 7)
    text = call(evaluate.main, *words, "--cur_stage", "stage1", *places(tmp_path))
    assert re.search('checkpoint: .*stem "imagenet"', text)


def test_a_presets_learning_rate_goes_with_the_batch_size_and_a_given_one_does_not(own):
    def described(*words: str) -> str:
        given = parse(STAGE1, list(map(str, of_own(own, "--batch_size", "32", *words))))
        return "\n".join(describe(resolve(STAGE1, given)))

    assert "unless you say otherwise, times batch size / 8: lr 0.04" in described()
    assert "times batch size" not in described("--lr", "0.05")
