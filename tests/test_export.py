"""Classifiers outside of the scripts: from Python, as files for a service, any head of a run of several."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import evaluate
import main_stage2
from models import build_model
from tests.bad_inputs.kitchen import CLASSES, SEEN, SMALL
from tests.file_trees import folder_tree
from tests.helpers import call, checkpoint_content, last_line, places, refusal, run_folder
from tests.stage2 import result_lines
from tests.test_own_features import digits_pack
from utils.base.errors import UserError
from utils.export import load_classifier
from utils.export.__main__ import main as export_main
from utils.run import checkpoint

METHODS = ("stage1", "la", "disalign")


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """A folder with images of three classes and the run folder `out` of several methods on them."""
    root = folder_tree(tmp_path_factory.mktemp("pets"), **SMALL)
    facts = SEEN | {"dataset": "folder", "imb_ratio": None, "num_class": 3, "tta": True}
    facts |= {"class_names": CLASSES, "class_counts": [5, 4, 3]}
    torch.manual_seed(0)
    checkpoint.save(root / "one.pth", checkpoint_content(build_model("resnet8", 3).state_dict(), **facts))
    argv = ("--dataset", "folder", "--data_dir", root, "--pretrained_pth", root / "one.pth", "--views", "0")
    argv += ("--method", ",".join((*METHODS[1:], "lws")), "--finetune_epoch", "2", "--finetune_lr", "0.1")
    call(main_stage2.main, *places(root), *argv, "--seed", "0", "--workers", "0", "--publish", "first")
    return root


def last_of(root: Path) -> Path:
    return next(root.rglob("last.pth"))


def pixels(path: Path) -> torch.Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", METHODS)
def test_a_classifier_from_python_says_what_evaluate_writes(pets, tmp_path, name):
    argv = ("--pretrained_pth", last_of(pets), "--head", name, "--workers", "0", "--predict", pets / "test")
    call(evaluate.main, *places(tmp_path), *argv, "--predictions", tmp_path / "p")
    rows = pd.read_csv(tmp_path / "p")
    model = load_classifier(last_of(pets), head=name)
    paths = [pets / "test" / image for image in rows["image"]]
    assert model.predict(paths) == rows["predicted_name"].tolist()
    shares = model.predict_proba(paths)
    assert shares.amax(dim=1).tolist() == pytest.approx(rows["confidence"].tolist(), abs=1e-6)
    opened = [Image.open(path) for path in paths]
    assert model.predict_proba(opened).sub(shares).abs().max() < 0.05  # another decoder of the JPEG files
    assert torch.equal(model.predict_proba(pixels(paths[0])), model.predict_proba(opened[:1]))
    assert model.predict(paths[0]) == model.predict(paths)[:1] and model.predict([]) == []


@pytest.mark.parametrize("select", ["last", "val"])
def test_any_head_of_a_run_gives_the_line_of_its_table_without_being_trained_again(digits, tmp_path, select):
    data = ("--dataset", "digits_lt", *places(tmp_path), "--pretrained_pth")
    argv = ("--method", "los,la,etf,label_aware", "--select", select, "--finetune_epoch", "2", "--seed", "0")
    lines = result_lines(call(main_stage2.main, *data, digits.stage1, *argv))
    last = run_folder(tmp_path, "stage2") / "last.pth"
    assert len(lines) == 4
    for line in lines:
        name = line.pop("method")
        assert result_lines(call(evaluate.main, *data, last, "--head", name)) == [line]


def test_a_head_of_a_run_on_a_pack_takes_the_features_as_they_come(tmp_path):
    pack = digits_pack(tmp_path, 5.0, 3.0)
    run = (*places(tmp_path), "--features", pack)
    lines = result_lines(call(main_stage2.main, *run, "--method", "los,lws,ncm", "--seed", "0"))
    for line in lines:
        name = line.pop("method")
        found = call(evaluate.main, *run, "--pretrained_pth", last_of(tmp_path), "--head", name)
        assert result_lines(found) == [line]
        model = load_classifier(last_of(tmp_path), head=name, features=pack)
        x, y = np.load(tmp_path / "test_x.npy"), np.load(tmp_path / "test_y.npy")
        hits = np.array(model.predict(x)).astype(int) == y
        assert f"{100 * hits.mean():.2f}" == line["overall"]
    with pytest.raises(UserError, match="features names the pack of its run"):
        load_classifier(last_of(tmp_path), head="ncm")
    stage2 = next(tmp_path.rglob("*_stage2.pth"))
    refused = refusal(export_main, "--stage2", stage2, "--out", tmp_path / "a.pt2")
    assert "is of a pack and holds no backbone for a .pt2" in refused


@pytest.mark.parametrize("name", ["stage1", "la", "lws"])
def test_plain_arrays_give_a_numpy_service_the_logits_of_the_network(pets, tmp_path, name):
    argv = ("--stage2", last_of(pets), "--head", name, "--out", tmp_path / "a.npz")
    assert last_line(call(export_main, *argv)).endswith("of the network's largest logit")
    model, kept = load_classifier(last_of(pets), head=name), np.load(tmp_path / "a.npz")
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    features = model.seen(images, model.network.forward_features).mean(dim=0).numpy()
    logits = features @ kept["weight"].T + kept["bias"]
    np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-5)
    assert kept["class_names"].tolist() == CLASSES


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_whole_network_is_a_program_that_needs_no_file_of_this_repository(pets, tmp_path, kind):
    out, names = tmp_path / f"a.{kind}", {"class_names.json": ""}
    if kind == "onnx":
        runtime, _ = pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    call(export_main, "--stage2", last_of(pets), "--head", "disalign", "--out", out)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    if kind == "pt2":
        found = torch.export.load(out, extra_files=names).module()(images)
    else:
        session = runtime.InferenceSession(out)
        [found] = session.run(None, {"images": images.numpy()})
        names["class_names.json"] = session.get_modelmeta().custom_metadata_map["class_names"]
    wanted = load_classifier(last_of(pets), head="disalign")(images)
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-4, atol=1e-5)
    assert json.loads(names["class_names.json"]) == CLASSES
