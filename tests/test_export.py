"""Classifiers outside of the scripts: from Python, as files for a service, any head of a run of several."""

import json
import re
import runpy
from dataclasses import replace
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
from tests.helpers import call, checkpoint_content, last_line, places, run_folder
from tests.stage2 import result_lines
from tests.test_own_features import digits_pack
from utils.base.errors import UserError
from utils.export import load_classifier
from utils.export.__main__ import main as export_main
from utils.packs.pack import read_pack, write_pack
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
    assert (100 * shares.amax(dim=1)).tolist() == pytest.approx(rows["confidence"].tolist(), abs=1e-4)
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
    made, narrow = read_pack(pack), tmp_path / "narrow"
    cut = {name: getattr(made, name)[..., :32].clone() for name in ("train", "test", "fc_weight")}
    write_pack(narrow, replace(made, **cut))
    for head in ("ncm", "los"):
        with pytest.raises(UserError, match=r"is a classifier for other features than those of .*narrow"):
            load_classifier(last_of(tmp_path), head=head, features=narrow)
    with pytest.raises(UserError, match="--num_class 77"):
        load_classifier(next(tmp_path.rglob("*_stage2.pth")), num_class=77)
    with pytest.raises(UserError, match=r"image_size has no use: .* is a classifier of features"):
        load_classifier(next(tmp_path.rglob("*_stage2.pth")), image_size=64)
    for rows in (x[:, :3], x[0], "cat.jpg", [None]):
        with pytest.raises(UserError, match=r"features must be .*\[N, 64\]"):
            model.predict(rows)


def test_logits_and_the_three_first_classes_of_a_test_set_are_left_for_ones_own_plots(pets, tmp_path):
    out, data = (tmp_path / "p.csv", tmp_path / "l.npz"), ("--dataset", "folder", "--data_dir", pets)
    argv = ("--pretrained_pth", last_of(pets), "--head", "la", "--predictions", out[0], "--logits", out[1])
    line = last_line(call(evaluate.main, *places(tmp_path), *data, *argv, "--workers", "0"))
    rows, kept, model = pd.read_csv(out[0]), np.load(out[1]), load_classifier(last_of(pets), head="la")
    wanted = 100 * model.predict_proba([pets / image for image in rows["image"]]).numpy()
    order = np.argsort(-wanted, axis=1, kind="stable")
    for rank, word in enumerate(("predicted", "second", "third")):
        assert rows[f"{word}_name"].tolist() == [CLASSES[k] for k in order[:, rank]]
        shares = rows[f"{word}_confidence" if rank else "confidence"]
        assert shares.to_numpy() == pytest.approx(np.take_along_axis(wanted, order, 1)[:, rank], abs=1e-4)
    assert kept["labels"].tolist() == rows["label"].tolist() and kept["class_names"].tolist() == CLASSES
    assert f"overall={100 * (kept['logits'].argmax(1) == kept['labels']).mean():.2f}" in line
    weight, bias = model.network.fc.folded()
    again = kept["features"] @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(again, kept["logits"], rtol=1e-4, atol=1e-5)


def test_one_image_and_rows_of_further_features_are_predicted(pets, tmp_path):
    [image], out = list((pets / "test" / "cat").glob("000*")), tmp_path / "p.csv"
    argv = ("--pretrained_pth", last_of(pets), "--predict", image, "--predictions", out, "--workers", "0")
    assert last_line(call(evaluate.main, *places(tmp_path), *argv)) == f"predicted images=1 file={out}"
    rows = pd.read_csv(out)
    assert rows["image"].tolist() == [image.name]
    assert rows["predicted_name"].tolist() == load_classifier(last_of(pets)).predict(image)
    run = (*places(tmp_path), "--features", digits_pack(tmp_path))
    call(main_stage2.main, *run, "--method", "ncm")
    argv = (*run, "--cur_stage", "stage2", "--predict", tmp_path / "test_x.npy", "--predictions", out)
    call(evaluate.main, *argv)
    line = last_line(call(evaluate.main, *run, "--cur_stage", "stage2"))
    hits = pd.read_csv(out)["predicted"].to_numpy() == np.load(tmp_path / "test_y.npy")
    assert f"overall={100 * hits.mean():.2f}" in line


@pytest.mark.parametrize("name", ["stage1", "la", "lws"])
def test_plain_arrays_give_a_numpy_service_the_logits_of_the_network(pets, tmp_path, name):
    argv = ("--stage2", last_of(pets), "--head", name, "--out", tmp_path / "a.npz")
    assert re.search("within .e-.. of the network's largest logit", last_line(call(export_main, *argv)))
    model, kept = load_classifier(last_of(pets), head=name), np.load(tmp_path / "a.npz")
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    features = model.seen(images, model.network.forward_features).mean(dim=0).numpy()
    logits = features @ kept["weight"].T + kept["bias"]
    np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-5)
    assert kept["class_names"].tolist() == CLASSES


@pytest.mark.parametrize(("head", "says"), [(None, "head la tau=1, one of 4 "), ("lws", "head lws ")])
def test_which_head_of_several_was_taken_is_said_by_export_and_by_evaluate(pets, tmp_path, head, says):
    words = ("--head", head) if head else ()
    text = call(export_main, "--stage2", last_of(pets), "--out", tmp_path / "a.npz", *words)
    assert f"note: {says}" in text and ("--head NAME takes another" in text) == (head is None)
    argv = ("--dataset", "folder", "--data_dir", pets, "--pretrained_pth", last_of(pets), "--workers", "0")
    assert f"; {says}" in call(evaluate.main, *places(tmp_path), *argv, *words)


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


def test_there_is_nothing_to_install_and_the_one_file_to_copy_is_named():
    root = Path(__file__).parents[1]
    with pytest.raises(SystemExit, match="this is a repository of scripts") as caught:
        runpy.run_path(str(root / "setup.py"))
    assert (root / re.search(r"[\w/]+label_over_smooth.py", str(caught.value))[0]).is_file()


def test_words_that_say_nothing_of_a_classifier_and_pixels_of_another_form_are_refused(pets):
    with pytest.raises(UserError, match="predictions is no word of a classifier, known: augment, "):
        load_classifier(last_of(pets), predictions="p.csv")
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), [1, 2], [None], [{}]):
        with pytest.raises(
            UserError, match=r"an image (must be a path, a PIL image or uint8|cannot be read)"
        ):
            load_classifier(last_of(pets)).predict(images)
    with pytest.raises(UserError, match=r"^nope\.jpg does not exist: check its name, and the folder"):
        load_classifier(last_of(pets)).predict(["nope.jpg"])
