"""The published commands on the real CIFAR100-LT, with a small network and one epoch; released models."""

import re
from pathlib import Path

import pytest
import torch

import evaluate
import main_stage1
import main_stage2
from datasets import CHANNELS, build_data
from datasets.images.in_memory import DeviceImages
from models import build_model
from tests.helpers import call, last_line, places
from utils.metrics import shot_accuracy
from utils.packs.pack import read_pack
from utils.run import checkpoint
from utils.settings.config import resolve
from utils.settings.data import load_data
from utils.settings.parse import STAGE1, parse

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "checkpoints" / "released"


def test_both_stages_run_on_the_real_set_by_the_published_command_lines(tmp_path, cifar_dir):
    """With a tiny network, for an epoch of each stage."""
    small = ("--network", "tests.user_networks:tiny", "--no_tta", "--data_dir", cifar_dir)
    words = ("--imb_ratio", "100", *small, *places(tmp_path))
    one, two = ("--cur_stage", "stage1"), ("--cur_stage", "stage2")
    stage1 = call(main_stage1.main, *words, *one, "--epochs", "1", "--seed", "0")
    short = ("--finetune_epoch", "1", "--seed", "0", "--views", "0")
    stage2 = call(main_stage2.main, *words, *two, "--label_smooth", "0.98", *short)
    assert "10847 training, 1980 validation (unused), 10000 test images of 100 classes" in stage1
    assert "classes: many 35, medium 35, few 30" in stage1
    assert "steps an epoch: 170" in stage1 and " 500 trainable" in stage2


def released_lines() -> dict[str, str]:
    """checkpoint file -> the last line that evaluate.py prints for it, from the released folder's README."""
    text = (RELEASED / "README.md").read_text()
    pattern = r"^`([\w=/.-]+\.pth)`[^\n]*\n\n    (test overall[^\n]+)$"
    return dict(re.findall(pattern, text, flags=re.MULTILINE))


def test_the_released_folder_names_every_file_in_it():
    files = {str(path.relative_to(RELEASED)) for path in RELEASED.rglob("*.pth")}
    assert files == set(released_lines()) and files
    readme = (ROOT / "README.md").read_text()
    for name, line in released_lines().items():
        assert line in readme or not name.startswith("cifar100_lt/IR=100/")
    most = {"resnet32": 2 * 2**20, "resnet34": 45 * 10**6}  # bytes; those of ResNet-34 are in fp16
    assert all((RELEASED / name).stat().st_size < most[Path(name).name.partition("_")[0]] for name in files)


def figures(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line)}


def check_figures(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for group, value in expected.items():
        assert found[group] == pytest.approx(value, abs=0.1 if group == "few" else 0.05 + 1e-9), group


@pytest.mark.long  # a pass over the test images takes half a minute of a core
@pytest.mark.parametrize("file", released_lines())
def test_a_released_model_evaluates_to_its_line(file, cifar_dir, tmp_path):
    argv = ("--pretrained_pth", RELEASED / file, "--data_dir", cifar_dir, *places(tmp_path))
    found, expected = last_line(call(evaluate.main, *argv)), released_lines()[file]
    check_figures(figures(found), figures(expected))
    assert found.split("selected_on")[1] == expected.split("selected_on")[1]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_released_model_gives_the_packs_features_of_test_images_and_its_line_on_them(stage, cifar_dir):
    folder = "cifar100_lt/IR=100"
    pack = read_pack(RELEASED / folder / "resnet32_features.safetensors")
    data = build_data("cifar100_lt", cifar_dir, 100, val_source="none")
    model = build_model("resnet32", 100).eval()
    model.load_state_dict(checkpoint.read(RELEASED / folder / f"resnet32_{stage}.pth").state)
    with torch.inference_mode():
        images, _ = next(DeviceImages(data.test, data.views).batches(200))
        for view, seen in enumerate((images, images.flip(3))):
            ours, theirs = model.forward_features(seen), pack.test[view, :200].float()
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01)
        logits = model.fc(pack.test.float()).mean(dim=0)
    expected = figures(released_lines()[f"{folder}/resnet32_{stage}.pth"])
    found = shot_accuracy(logits, data.test.labels, data.class_counts)
    check_figures({group: 100 * getattr(found, group) for group in expected}, expected)


def test_a_released_stage_2_model_has_the_backbone_of_its_stage_1():
    for file in RELEASED.rglob("*_stage2*.pth"):
        stage2 = checkpoint.read(file)
        stage1 = checkpoint.read(file.with_name(f"{stage2.facts['network']}_stage1.pth"))
        assert stage2.facts["stage1_digest"] == stage1.digest
        same = {name for name in stage1.state if torch.equal(stage1.state[name], stage2.state[name])}
        assert set(stage1.state) - same == {"fc.weight", "fc.bias"}


def test_weights_from_elsewhere_can_have_cifar_images_normalised_as_they_were_trained(cifar_dir):
    words = ["--data_dir", str(cifar_dir), "--normalise", "imagenet"]
    views = load_data(resolve(STAGE1, parse(STAGE1, words))).views
    assert (views.mean, views.std) == CHANNELS["imagenet"] and views.padding == 4
