"""From images to a pack by a frozen encoder, and on to stage 2."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model_weights
from torchvision.transforms import v2

import evaluate
import main_stage2
from datasets import CHANNELS, build_data, to_folder
from datasets.images.decode import read_image
from models import build_model, torchvision_names
from tests.file_trees import folder_tree
from tests.forking import forked
from tests.helpers import call, places, refusal
from tests.stage2 import result_lines
from utils.features.__main__ import main as features_main
from utils.features.encode import published_views
from utils.features.scale import Scale
from utils.packs.pack import Pack, read_pack, write_pack
from utils.settings.checks import check_given
from utils.settings.table import STAGE2

ENCODERS = '''
import os

import torch
from torch import nn


class Clip(nn.Module):
    """As CLIP's image tower: unit length, and no classifier."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3 * 16, 8)
        with torch.no_grad():
            self.proj.weight.copy_(torch.randn(8, 48, generator=torch.Generator().manual_seed(0)))
            self.proj.bias.zero_()

    def forward(self, x):
        features = self.proj(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return features / features.norm(dim=1, keepdim=True)


class Both(Clip):
    """As timm's: logits when it is called, features by another name."""

    def forward_features(self, x):
        return super().forward(x)

    def forward(self, x):
        return torch.zeros(len(x), 3)


class Tokens(Clip):
    """As a vision transformer of a library: pooled when it is called, not pooled by the other name."""

    def forward_features(self, x):
        return super().forward(x)[:, None].expand(-1, 4, -1)

    def forward(self, x):
        return self.forward_features(x).mean(1)


def wrapped(): return nn.Sequential(Tokens())


class Odd(Clip):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def pair(): return Odd(lambda x: (x, x))
def maps(): return Odd(lambda x: x[..., None, None])
def nothing(): return Odd(lambda x: x * float("nan"))
def rows(): return Odd(lambda x: torch.cat([x, x]))
def counts(): return Odd(lambda x: x.long())
def strict(): return nn.Sequential(nn.Flatten(), nn.Linear(7, 7))
def fails(): raise RuntimeError("no weights")
def text(): return "an encoder"


CALLS = []


class Stops(Clip):
    """Ends the run at its fifth call, where it is asked to: then the training images are looked at."""

    def forward(self, x):
        CALLS.append(len(x))
        if len(CALLS) == 5 and os.path.exists("stop"):
            raise KeyboardInterrupt
        return super().forward(x)
'''
SIZE = ("--image_size", 32, "--workers", 0, "--device", "cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder of images, and beside it encoders of theirs."""
    (tmp_path / "own_encoders.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder_tree(tmp_path / "images", val_per_class=2)
    sys.modules.pop("own_encoders", None)


def words(folder: Path, network: str, *more: object) -> tuple:
    return ("encode", "--network", network, "--dataset", "folder", "--data_dir", folder, *SIZE, *more)


def encoded(folder: Path, network: str, *more: object) -> tuple[Pack, str]:
    text = call(features_main, *words(folder, network, "--out", "pack", *more))
    assert not Path("pack.parts").exists()
    return read_pack(Path("pack")), text


def views(folder: Path, part: str, mean: str = "imagenet", mirror: bool = False) -> torch.Tensor:
    """The images of a part as torchvision's own transforms make them, [N, 3, 32, 32]."""
    steps = [v2.Resize(37), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    see = v2.Compose([*steps, v2.Normalize(*CHANNELS[mean])])
    found = getattr(build_data("folder", folder), part)
    images = torch.stack([see(read_image(found.path(i))) for i in range(len(found))])
    return images.flip(-1) if mirror else images


def random_network(name: str = "resnet18") -> nn.Module:
    """With statistics that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@torch.no_grad()
def test_the_features_of_a_torchvision_network_are_what_its_classifier_was_given(folder, kind):
    model = random_network()
    save = torch.save if kind == "pth" else save_file
    save(model.state_dict(), f"weights.{kind}")
    pack, text = encoded(folder, "resnet18", "--weights", f"weights.{kind}", "--tta")
    model.fc = nn.Identity()
    for part in ("train", "val", "test"):
        found = getattr(pack, part)
        torch.testing.assert_close(found[0], model(views(folder, part)), rtol=1e-5, atol=1e-5)
        assert len(found) == (1 if part == "train" else 2), part
    torch.testing.assert_close(pack.test[1], model(views(folder, "test", mirror=True)), rtol=1e-5, atol=1e-5)
    assert pack.facts["class_names"] == ["ant", "bee", "cat"] and pack.facts["class_counts"] == [12, 6, 3]
    assert pack.facts["preset"] == "features" and pack.facts["image_size"] == 32 and pack.facts["tta"]
    assert pack.facts["val_source"] == "own" and pack.facts["val_clean"]
    assert f"started from weights.{kind}" in text and "logistic regression on 21 training features" in text


def test_stage_2_runs_on_the_pack_of_an_encoder_of_the_users_own(folder, tmp_path):
    pack, text = encoded(folder, "own_encoders:Clip", "--normalise", "clip", "--imb_ratio", 2)
    counts = build_data("folder", folder, imb_ratio=2).class_counts
    assert pack.facts["class_counts"] == counts == [7, 4, 3] and pack.facts["imb_ratio"] == 2
    assert pack.train.shape == (1, 14, 8) and pack.test.shape == (1, 12, 8)
    assert pack.train.norm(dim=-1).numpy() == pytest.approx(1, abs=1e-5)
    assert text.splitlines()[-1].startswith("pack pack: 14 training (1 view(s)), 12 test, 6 validation")
    run = (*places(tmp_path), "--features", "pack", "--seed", 0)
    told = call(main_stage2.main, *run, "--method", "los,ncm,stage1", "--finetune_epoch", 2)
    assert [line["method"] for line in result_lines(told)] == ["ncm", "stage1", "los"]
    assert "features of your own: standardised for training" in told
    logits = pack.test[0] @ pack.fc_weight.T + pack.fc_bias
    assert 100 * (logits.argmax(dim=1) == pack.test_labels).double().mean() == pytest.approx(
        float(result_lines(told)[1]["overall"]), abs=0.01
    )


def test_a_module_is_asked_for_its_forward_features_where_it_has_them(folder):
    found = [encoded(folder, f"own_encoders:{name}")[0].test for name in ("Clip", "Both", "wrapped")]
    assert torch.equal(*found[:2])
    torch.testing.assert_close(found[0], found[2])


@torch.no_grad()
def test_images_in_memory_are_enlarged_as_they_go_and_grey_ones_get_three_channels(folder):
    model, digits = random_network(), build_data("digits_lt", imb_ratio=50, val_source="unused")
    torch.save(model.state_dict(), "weights.pth")
    argv = ("--network", "resnet18", "--weights", "weights.pth", "--dataset", "digits_lt", "--imb_ratio", 50)
    call(features_main, "encode", *argv, *SIZE[:2], *SIZE[4:], "--out", "pack", "--pack_dtype", "fp16")
    model.fc, pack = nn.Identity(), read_pack(Path("pack"))
    see = v2.Compose([v2.Resize([32, 32]), v2.ToDtype(torch.float32, scale=True)])
    images = see(digits.test.images[:70]).expand(-1, 3, -1, -1)
    expected = model(v2.functional.normalize(images, *CHANNELS["imagenet"]))
    torch.testing.assert_close(pack.test[0, :70].float(), expected, rtol=2e-3, atol=2e-3)
    assert pack.test.shape == (1, 500, 512) and pack.test.dtype == torch.float16
    assert pack.facts["dataset"] == "digits_lt" and pack.facts["imb_ratio"] == 50
    assert len(pack.val_labels) == len(digits.val) and Scale.of(pack.train[0]).factor.any()


def test_images_are_predicted_as_those_in_memory_were_looked_at_when_the_encoder_saw_them(folder, tmp_path):
    torch.save(random_network().state_dict(), "weights.pth")
    argv = ("--network", "resnet18", "--weights", "weights.pth", "--dataset", "digits_lt", "--tta")
    call(features_main, "encode", *argv, *SIZE[:2], *SIZE[4:], "--out", "pack")
    call(to_folder.main, "--dataset", "digits_lt", "--to", "digits")
    words, tables = [*places(tmp_path), "--features", "pack", "--cur_stage", "stage1"], []
    for more in ((), ("--predict", "digits/test", "--encoder", "weights.pth", "--workers", 0)):
        call(evaluate.main, *words, *more, "--predictions", "p.csv")
        table = pd.read_csv("p.csv", dtype={"image": str})
        number = table["image"].str.extract(r"(\d+)(?:\.png)?$", expand=False).astype(int)
        tables.append(table.set_index(number).sort_index()[["predicted", "confidence"]])
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


@pytest.mark.parametrize(("network", "named"), [("resnet8", "weights.pth"), ("own_encoders:Clip",) * 2])
def test_images_without_labels_are_predicted_behind_the_encoder_that_made_them(
    folder, tmp_path, network, named
):
    torch.save(build_model("resnet8", 3).state_dict(), "weights.pth")
    weights = ("--weights", named) if named == "weights.pth" else ()
    encoded(folder, network, *weights, "--tta", "--interpolation", "bicubic")
    run, images = places(tmp_path), ("--predict", folder / "test", "--workers", 0)
    call(main_stage2.main, *run, "--features", "pack", "--seed", 0, "--method", "ncm")  # not affine
    classifier = next((tmp_path / "ckpt").glob("**/*_stage2.pth"))
    one, two = ((*run, "--features", "pack", "--cur_stage", stage) for stage in ("stage1", "stage2"))
    alone, seen = (*run, "--pretrained_pth", classifier, *images), []
    for words in (one, (*one, *images), two, (*two, *images), alone):
        encoder = ("--encoder", named) if "--predict" in words else ()
        call(evaluate.main, *words, *encoder, "--predictions", "p.csv")
        seen.append(pd.read_csv("p.csv")[["predicted", "predicted_name", "confidence"]])
    last = next(tmp_path.rglob("last.pth"))
    words = (*run, "--pretrained_pth", last, *images, "--encoder", named, "--head", "ncm")
    assert "beside --head give the pack of its run by --features" in refusal(evaluate.main, *words)
    for known, found in ((0, 1), (2, 3), (2, 4)):
        pd.testing.assert_frame_equal(seen[known], seen[found], atol=1e-5)
    assert not seen[0].equals(seen[2])
    shutil.copytree(folder / "test", "new")
    Path("new/ant/000.jpg").write_bytes(b"no image")
    words = ("--predict", "new", "--encoder", named, "--workers", 0, "--predictions", "p.csv")
    assert "predicted images=11 " in call(evaluate.main, *two, *words)
    assert list(pd.read_csv("p.csv")["reason"].notna()) == [True] + [False] * 11


@pytest.mark.parametrize(
    ("name", "encoder", "message"),
    [
        ("pack", "other.pth", "--encoder other.pth has other weights (.*) than made the features"),
        ("pack", "missing.pth", "--encoder: missing.pth does not exist"),
        ("arrays", "weights.pth", "arrays does not say which encoder .* --features PACK --predict X.npy"),
        ("own", "weights.pth", "own is of own_encoders:Clip, say --encoder own_encoders:Clip"),
        ("pack", None, "has no use beside it: name its --encoder, .* --predict X.npy"),
        ("weights.pth", "weights.pth", "is no classifier of features, it has its network"),
    ],
)
def test_predicting_behind_another_encoder_is_refused_in_a_line(folder, tmp_path, name, encoder, message):
    for file in ("weights.pth", "other.pth"):
        torch.save(build_model("resnet8", 3).state_dict(), file)
    network = "own_encoders:Clip" if name == "own" else "resnet8"
    pack, _ = encoded(folder, network, *(() if name == "own" else ("--weights", "weights.pth")))
    facts = {key: value for key, value in pack.facts.items() if key != "encoder_digest" or name != "arrays"}
    write_pack(Path(name), replace(pack, facts=facts)) if name != "pack" and "pth" not in name else None
    source = ("--pretrained_pth" if "pth" in name else "--features", name)
    argv = (*places(tmp_path), *source, "--cur_stage", "stage1", "--predict", folder / "test")
    assert re.search(message, refusal(evaluate.main, *argv, *(("--encoder", encoder) if encoder else ())))


@torch.no_grad()
def test_a_torchvision_network_sees_images_as_its_published_weights_want_them(folder):
    folder_tree(folder.with_name("few"), counts=(2, 2, 2), test_per_class=1)
    weights, model = torchvision.models.MobileNet_V2_Weights, random_network("mobilenet_v2")
    torch.save(model.state_dict(), "mine.pth")
    argv = ("encode", "--network", "mobilenet_v2", "--dataset", "folder", "--data_dir", "few", *SIZE[2:])
    text = call(features_main, *argv, "--weights", "mine.pth", "--out", "pack")
    assert "images: shorter side to 232, centre of 224 pixels, bilinear, channels of mean 0.485" in text
    assert "torchvision's MobileNet_V2_Weights.IMAGENET1K_V2" in text
    see, images = weights.DEFAULT.transforms(), build_data("folder", "few").test
    pack, model.classifier = read_pack(Path("pack")), nn.Identity()
    expected = model(torch.stack([see(read_image(images.path(i))) for i in range(len(images))]))
    torch.testing.assert_close(pack.test[0], expected, rtol=1e-4, atol=1e-5)
    assert pack.facts["resize"] == 232 and pack.facts["normalise"] == "imagenet"


def test_all_published_weights_of_torchvision_are_looked_at_in_ways_that_arguments_can_say():
    """SWAG's vision transformers want 384 pixels, EfficientNetV2-L other channels, many bicubic resizing."""
    for name in torchvision_names():
        views, whose = published_views(name, Path("weights.pth"), "imagenet")
        check_given(STAGE2, {"dataset": "folder"} | views)
        assert not whose or f"torchvision's {get_model_weights(name).DEFAULT}" in whose
    assert published_views("vit_b_16", Path("vit_b_16_swag-9ac1b537.pth"), "imagenet")[0]["image_size"] == 384
    old, new = (published_views("resnet50", Path(f"resnet50-{h}.pth"), "imagenet") for h in ("0676ba61", "1"))
    assert old[0]["resize"] == 256 and new[0]["resize"] == 232
    assert published_views("efficientnet_v2_l", Path("w"), "imagenet")[0]["normalise"] == "half"
    assert published_views("resnet50", Path("w"), "small") == ({}, "")
    assert published_views("my:own", None, "imagenet") == ({}, "")


def test_half_precision_gives_nearly_the_same_features(folder):
    whole, half = (encoded(folder, "own_encoders:Clip", "--amp", amp)[0].test for amp in ("off", "bf16"))
    assert not torch.equal(whole, half)
    torch.testing.assert_close(whole, half, rtol=0, atol=0.02)


def test_an_encoding_that_was_cut_off_goes_on_with_what_it_lacks(folder):
    whole, _ = encoded(folder, "own_encoders:Stops")
    calls = sys.modules["own_encoders"].CALLS
    assert calls == [1, 2, 6, 12, 21], "two trials, then validation, test and training images"
    Path("stop").touch()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        encoded(folder, "own_encoders:Stops")
    calls.clear()
    again, _ = encoded(folder, "own_encoders:Stops")
    assert calls == [1, 2, 21] and again.digest == whole.digest


def test_two_processes_make_the_pack_that_one_makes(folder, tmp_path):
    torch.save(build_model("resnet8", 3).state_dict(), tmp_path / "weights.pth")
    line = words(folder, "resnet8", "--weights", tmp_path / "weights.pth", "--device", "cpu", "--out")
    call(features_main, *line, tmp_path / "one")
    code, out, err = forked(["-m", "utils.features", *line, tmp_path / "two"], processes=2)
    assert code == 0 and out.count("started from") == 1, err
    one, two = (read_pack(tmp_path / name) for name in ("one", "two"))
    for name in ("train", "val", "test", "train_labels"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not list(tmp_path.glob("*.parts"))


def test_features_that_are_not_finite_are_refused_before_a_pack_is_made(folder):
    message = refusal(features_main, *words(folder, "own_encoders:nothing", "--out", "pack"))
    assert message == "the backbone's output of images 0 to 5 holds values that are not finite"
    assert not Path("pack").exists()


@pytest.mark.parametrize(
    ("network", "more", "message"),
    [
        ("own_encoders:pair", (), "gives a tuple for an image, not float [1, D]"),
        ("own_encoders:maps", (), "gives float32 [1, 8, 1, 1] for an image, not float [1, D]: pool or pick"),
        ("own_encoders:rows", (), "gives float32 [2, 8] for an image"),
        ("own_encoders:counts", (), "gives int64 [1, 8] for an image"),
        ("own_encoders:strict", (), "takes no images of 32 x 32 pixels (mat1 and mat2"),
        ("own_encoders:fails", (), "--network: network own_encoders:fails fails: RuntimeError: no weights"),
        ("own_encoders:text", (), "gives a str, not a torch.nn.Module"),
        ("own_encoders:Clip", ("--weights", "other.pth"), "leave --weights out"),
        ("own_encoders:Clip", ("--method", "los"), "encode has no use for --method"),
        ("own_encoders:Clip", ("--augment", "plain"), "encode has no use for --augment"),
        ("own_encoders:Clip", ("--resize", 16), "--resize 16 is below --image_size 32"),
        ("own_encoders:Clip", ("--amp", "fp16"), "--amp fp16 needs a CUDA device"),
        ("own_encoders:Clip", ("--data_dir", "images/train"), "images/train has no train/"),
        ("own_encoders:Clip", ("--out", "images/train/pack"), "images/train/pack lies among the images"),
        ("resnet18", (), "--network resnet18 needs --weights FILE"),
        ("resnet18", ("--weights", "other.pth"), "--weights: other.pth is not a resnet18: "),
        ("resnet18", ("--weights", "missing.pth"), "--weights: missing.pth does not exist"),
        ("resnet81", ("--weights", "other.pth"), "unknown network 'resnet81'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_a_line_and_nothing_is_left(folder, network, more, message):
    if "other.pth" in more:
        torch.save(torchvision.models.resnet34(num_classes=3).state_dict(), "other.pth")
    found = refusal(features_main, *words(folder, network, "--out", "pack", *more))
    assert message in found
    assert not list(Path().glob("**/pack*"))


def test_weights_whose_images_cannot_be_prepared_here_leave_the_usual_preparation():
    file = Path("vgg16_features-amdegroot-88682ab5.pth")  # for pixels up to 255
    assert published_views("vgg16", file, "imagenet") == ({}, "")
    views, whose = published_views("vgg16", Path("vgg16-397923af.pth"), "imagenet")
    assert views["normalise"] == "imagenet" and "IMAGENET1K_V1" in whose
