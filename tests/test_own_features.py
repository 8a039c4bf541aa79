"""Features that a user brought: heads see them on one scale, what is published takes them as they come."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import evaluate
import main_stage2
from models import head_from_state
from tests.helpers import call, places, refusal
from tests.stage2 import result_lines, trained
from tests.test_pack_arrays import Arrays
from utils.features.frozen import pack_data, pack_representation
from utils.features.scale import LENGTH, Scale
from utils.features.source import find_source
from utils.heads.plan import plan_heads
from utils.packs.pack import Pack, read_pack, write_pack
from utils.report.head_report import head_content
from utils.settings.config import resolve
from utils.settings.methods import METHODS
from utils.settings.parse import STAGE2, parse

CPU = torch.device("cpu")


def digits_pack(root: Path, factor: float = 1.0, shift: float = 0.0) -> Path:
    """A pack of the digits' pixels, each of which is moved by a length of its own and multiplied."""
    usual = Arrays(root).arrays
    x, y = load_digits(return_X_y=True)
    rank = np.array([(y[:i] == label).sum() for i, label in enumerate(y)])
    own = shift * np.random.default_rng(0).normal(size=64)
    moved = {"train_x": usual["train_x"], "test_x": x[rank >= 100] / 16}
    moved = {name: (factor * (pixels + own)).astype(np.float32) for name, pixels in moved.items()}
    given = Arrays(root, **moved, test_y=y[rank >= 100])
    given.pack("--name", "mine")
    return given.out


def accuracies(root: Path, *change: float) -> dict[str, float]:
    """Method -> accuracy on test, in percent, of a run of all methods."""
    pack, argv = digits_pack(root, *change), ("--method", "all", "--seed", "0")
    text = call(main_stage2.main, *places(root), "--features", pack, *argv)
    assert "features of your own: standardised for training" in text
    return {line["method"]: float(line["overall"]) for line in result_lines(text)}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> dict[str, float]:
    return accuracies(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("change", [(100, 0), (0.01, 3)])
def test_no_method_depends_on_the_scale_or_the_origin_of_the_features(tmp_path, usual, change):
    found = accuracies(tmp_path, *change)
    assert found.keys() == usual.keys() and len(found) == len(METHODS)
    assert found == pytest.approx(usual, abs=0.3)


def own_and_plan(path: Path, *argv: str) -> tuple:
    given = parse(STAGE2, ["--features", str(path), "--seed", "0", *argv])
    return read_pack(path), resolve(STAGE2, given, find_source(STAGE2, given, "stage1").known)


def published(content: dict) -> nn.Module:
    """The head that a reader makes of what is published."""
    state, kind = content["model"], content["head"]
    if kind["kind"] != "linear":
        assert not state, "who loads the network alone would take another classifier for it"
        return head_from_state(kind["kind"], content["head_state"], **kind["options"])
    fc = nn.Linear(state["fc.weight"].shape[1], len(state["fc.weight"]))
    fc.load_state_dict({name.removeprefix("fc."): value for name, value in state.items()})
    return fc


@torch.no_grad()
def test_what_is_published_of_every_method_takes_the_features_as_they_come(tmp_path):
    pack, config = own_and_plan(digits_pack(tmp_path, 5.0, 3.0), "--method", "all", "--finetune_epoch", "1")
    frozen, raw = pack_representation(pack, CPU), nn.ModuleDict({"fc": nn.Linear(64, 10)})
    heads = trained(config, frozen)
    assert {head.plan.method.name for head in heads} == METHODS.keys()
    for head in heads:
        seen, found = head.head(frozen.part("test")[0]), published(head_content(raw, head))(pack.test[0])
        torch.testing.assert_close(found, seen, rtol=1e-3, atol=1e-3)
        assert (found.argmax(dim=1) == seen.argmax(dim=1)).double().mean() > 0.999


@pytest.mark.parametrize("name", ["los", "ncm", "disalign"])
def test_evaluate_repeats_the_line_of_stage_2_on_raw_features(tmp_path, name):
    pack = digits_pack(tmp_path, 0.01, 1.0)
    run = (*places(tmp_path), "--features", pack)
    budget = ("--finetune_epoch", "2") if METHODS[name].trained else ()
    line = call(main_stage2.main, *run, "--method", name, "--seed", "0", *budget).splitlines()[-1]
    assert call(evaluate.main, *run, "--cur_stage", "stage2").splitlines()[-1] == line


def test_the_end_of_a_run_names_the_methods_that_make_things_worse(tmp_path):
    run = (*places(tmp_path), "--features", digits_pack(tmp_path), "--method", "los,ncm,la", "--seed", "0")
    for rate, names in (("1e-4", []), ("3", ["los"])):
        call(main_stage2.main, *run, "--finetune_lr", rate, "--out", tmp_path / rate)
        log = next((tmp_path / rate).rglob("log.txt")).read_text()
        told = re.findall(
            r"warning: below stage1 \([\d.]+\) and ncm \([\d.]+\) in balanced accuracy on test: (.*)", log
        )
        assert [re.sub(r" \([\d.]+\)", "", line) for line in told] == names


def test_standardised_features_have_one_length_and_the_same_stage_1():
    draws = torch.randn(1, 50, 6, generator=torch.Generator().manual_seed(0))
    pack = read_pack_of(draws * torch.tensor([1e-3, 1, 50, 2, 1, 1]) + 7)
    pack.train[..., 5] = pack.test[..., 5] = 0.1  # a constant
    frozen = pack_representation(pack, CPU)
    train = frozen.train.plain()
    assert train.mean(dim=0).abs().max() < 5e-3  # float32 holds 7 to 2e-7 of a deviation of 1e-3
    assert train.square().sum(dim=1).mean().sqrt() == pytest.approx(LENGTH, rel=1e-4)
    assert train.square().mean(dim=0)[:5].std() < 1e-3 and (train[:, 5] == 0).all()
    expected = nn.functional.linear(pack.test[0], pack.fc_weight, pack.fc_bias)
    torch.testing.assert_close(frozen.fc(frozen.part("test")[0]), expected, rtol=1e-3, atol=1e-3)


def read_pack_of(train: Tensor) -> Pack:
    """A pack of the user's own with these features [1, N, D] of two classes, for training and test."""
    labels, width, draw = torch.arange(train.shape[1]) % 2, train.shape[2], torch.Generator().manual_seed(1)
    facts = {"dataset": "mine", "imb_ratio": None, "network": "features", "preset": "features"}
    facts |= {"num_class": 2, "class_counts": torch.bincount(labels).tolist(), "class_names": ["a", "b"]}
    facts |= {"val_source": "none", "val_clean": False, "train_views": "plain", "stage1_digest": None}
    weight, bias = torch.randn(2, width, generator=draw), torch.randn(2, generator=draw)
    return Pack(train, labels, train.clone(), labels, None, None, weight, bias, facts)


def test_features_that_are_all_alike_are_refused_in_a_line(tmp_path):
    write_pack(tmp_path / "pack", read_pack_of(torch.full((1, 8, 3), 0.1)))
    message = refusal(main_stage2.main, *places(tmp_path), "--features", tmp_path / "pack")
    assert message == "all training features are alike: there is nothing to learn from them"


def test_an_older_pack_of_arrays_is_the_users_own_and_one_of_a_network_of_ours_is_not():
    own = read_pack_of(torch.randn(1, 8, 3))
    older = replace(own, facts={key: value for key, value in own.facts.items() if key != "preset"})
    ours = replace(older, facts=older.facts | {"stage1_digest": "0" * 64, "dataset": "cifar100_lt"})
    assert isinstance(pack_representation(own, CPU).scale, Scale)
    assert isinstance(pack_representation(older, CPU).scale, Scale)
    assert pack_representation(ours, CPU).scale is None
    assert torch.equal(pack_representation(ours, CPU).train.plain(), ours.train[0])
    assert "at their own scale" in pack_data(ours).notes[1]


@pytest.mark.parametrize(("counts", "path"), [((6, 2), 0.069), ((4, 4), 0.01)])
def test_the_usual_path_of_los_goes_with_the_imbalance_and_a_path_given_wins(tmp_path, counts, path):
    """(1 - 6/8)² log 3, and as good as nothing where classes are balanced."""
    pack = read_pack_of(torch.randn(1, 8, 3))
    labels = torch.tensor([0, 1]).repeat_interleave(torch.tensor(counts))
    facts = pack.facts | {"class_counts": list(counts)}
    write_pack(tmp_path / "pack", replace(pack, train_labels=labels, facts=facts))
    for words, expected in (((), path), (("--path", "3"), 3.0)):
        _, config = own_and_plan(tmp_path / "pack", "--method", "los,ce,los_step", *words)
        paths = {plan.method.name: plan.options.get("path") for plan in plan_heads(config)[0]}
        assert paths == {"stage1": None, "los": expected, "ce": expected, "los_step": expected}


def test_settings_for_the_networks_of_a_source_are_replaced_on_features_of_ones_own(tmp_path):
    write_pack(tmp_path / "pack", read_pack_of(torch.randn(1, 8, 3)))
    settings = {}
    for words in ((), ("--finetune_wd", "0.3", "--batch_size", "128")):
        _, config = own_and_plan(tmp_path / "pack", "--method", "wb,bsce", *words)
        settings[words] = {plan.method.name: plan for plan in plan_heads(config)[0]}
    ours, given = settings.values()
    assert (ours["wb"].wd, ours["wb"].kinds["wd"], ours["wb"].kinds["lr"]) == (0.01, "ours", "second-hand")
    assert (ours["bsce"].lr, ours["bsce"].kinds["lr"]) == (0.4 * 64 / 512, "ours")
    assert (given["wb"].wd, given["wb"].kinds["wd"], given["bsce"].lr) == (0.3, "given", 0.4 * 128 / 512)


def test_no_method_ruins_features_whose_variance_lies_in_few_directions(tmp_path):
    """`wb` with the weight decay of its source has 79 % here, and stage 1 has 97."""
    draw, classes, spread = np.random.default_rng(0), 30, 1 / np.arange(1, 65)
    centres, arrays = draw.normal(size=(classes, 64)) * spread, {}
    parts = {"train": [int(1000 * 50 ** (-k / 29)) for k in range(classes)], "test": [20] * classes}
    for part, counts in parts.items():
        labels = np.repeat(np.arange(classes), counts)
        x = 3 + centres[labels] + 1.6 * draw.normal(size=(len(labels), 64)) * spread
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        arrays |= {f"{part}_x": x.astype(np.float32), f"{part}_y": labels}
    given = Arrays(tmp_path, **arrays)
    given.pack("--name", "mine")
    methods = ("--method", "stage1,la,bsce,wb,los", "--seed", "0")
    text = call(main_stage2.main, *places(tmp_path), "--features", given.out, *methods)
    found = {line["method"]: float(line["overall"]) for line in result_lines(text)}
    assert min(found.values()) > found["stage1"] - 0.5 > 90, found
