"""Checkpoint files: atomic, digested, safe to read, ours and foreign, and errors that name what is wrong."""

import numpy as np
import pytest
import safetensors.torch
import torch

from models import build_model
from tests.helpers import checkpoint_content, last_line, run_evaluate, run_stage1
from utils.base.errors import UserError
from utils.run import checkpoint


def test_only_tensors_and_plain_data_can_be_saved(tmp_path):
    with pytest.raises(TypeError, match="plain data, not a PosixPath"):
        checkpoint.save(tmp_path / "x.pth", {"path": tmp_path})


def test_the_digest_does_not_depend_on_key_order_but_on_every_value():
    digest = checkpoint.content_digest
    tensor = torch.tensor([1.0, 2.0])
    assert digest({"a": 1, "b": tensor}) == digest({"b": tensor, "a": 1})
    others = [{"a": 2, "b": tensor}, {"a": 1, "b": tensor + 1}, {"a": 1, "b": tensor.double()}, {"a": 1}]
    assert len({digest(other) for other in [*others, {"a": 1, "b": tensor}, {"a": 1, "c": tensor}]}) == 6


ODD = {"a": torch.tensor([0.0, float("nan"), 1.0]), "n": torch.tensor(3), "h": torch.ones(2, 3, 4, 5)}
ALTERED = {
    "the sign of a zero": {"model": ODD | {"a": torch.tensor([-0.0, float("nan"), 1.0])}},
    "which NaN": {"model": ODD | {"a": torch.tensor([0, 0x7FC00001, 0x3F800000]).int().view(torch.float32)}},
    "another kind of number": {"model": ODD | {"n": torch.tensor(3).int()}},
    "another shape": {"model": ODD | {"h": torch.ones(2, 3, 5, 4)}},
    "no tensor": {"model": ODD | {"n": 3}},
    "a tensor less": {"model": {"a": ODD["a"], "n": ODD["n"]}},
    "true for 1": {"list": [True, float("nan")]},
    "a longer list": {"list": [1, float("nan"), 2]},
    "the digest": {"digest": "0" * 64},
}


def test_odd_values_and_layouts_are_no_damage(tmp_path):
    swapped = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    model = ODD | {"h": swapped, "p": torch.nn.Parameter(torch.ones(3).half()), "b": torch.tensor([True])}
    with torch.inference_mode():
        model["i"] = torch.ones(2, dtype=torch.bfloat16)
    digest = checkpoint.save(tmp_path / "x.pth", checkpoint_content(model, list=[1, float("nan")]))
    assert checkpoint.read(tmp_path / "x.pth").digest == digest


@pytest.mark.parametrize("what", ALTERED)
def test_a_file_with_one_thing_other_than_was_meant_does_not_take_the_old_ones_place(
    tmp_path, monkeypatch, what
):
    path, content = tmp_path / "x.pth", checkpoint_content(ODD, list=[1, float("nan")])
    digest, whole = checkpoint.save(path, content), torch.save
    monkeypatch.setattr(torch, "save", lambda value, handle: whole(value | ALTERED[what], handle))
    with pytest.raises(UserError, match=r"x\.pth does not read back as it was written"):
        checkpoint.save(path, content)
    assert checkpoint.read(path).digest == digest and len(list(tmp_path.iterdir())) == 1


def behind(prefix: str, state: dict, but: str = "-") -> dict:
    """The weights under names with a prefix, all but those that begin with `but`."""
    return {name if name.startswith(but) else f"{prefix}{name}": value for name, value in state.items()}


def split(state: dict) -> tuple[dict, dict]:
    """Backbone and classifier."""
    last = {name: value for name, value in state.items() if name.startswith("fc.")}
    return {name: value for name, value in state.items() if name not in last}, last


def mmpretrain(state: dict) -> dict:
    backbone, last = split(state)
    return {"meta": {"CLASSES": ["a"]}, "state_dict": behind("backbone.", backbone) | behind("head.", last)}


def mislas(state: dict) -> dict:
    backbone, last = (behind("module.", part) for part in split(state))
    return {"epoch": 2, "state_dict_model": backbone, "state_dict_classifier": last, "best": torch.ones(())}


def of_a_class_of_its_own(state: dict) -> dict:
    """A classifier saved by itself, whose names have nothing before them."""
    backbone, last = split(state)
    return {"encoder": backbone, "classifier": {name[3:]: value for name, value in last.items()}}


FOREIGN = {
    "bare": lambda state: state,
    "a prefix of one's own": lambda state: behind("student.", state),
    "compiled in parallel": lambda state: behind("_orig_mod.module.", state),
    "an encoder": lambda state: behind("encoder.", state, but="fc."),
    "a part in parallel": lambda state: behind("module.", state, but="layer1"),
    "renamed in parallel": lambda state: behind(
        "module.", {n.replace("fc.", "last."): v for n, v in state.items()}
    ),
    "averaged": lambda state: {"n_averaged": torch.tensor(5)} | behind("module.", state),
    "model_state": lambda state: {"model_state": state, "epoch": 1},
    "Lightning": lambda state: {"state_dict": behind("model.", state), "hyper_parameters": {"lr": 0.1}},
    "mmpretrain": mmpretrain,
    "MiSLAS": mislas,
    "a classifier by itself": of_a_class_of_its_own,
    "another key": lambda state: {"my_net": state, "epoch": 1},
    "with NumPy scalars": lambda state: {"state_dict": state, "acc": np.float64(0.4), "epoch": np.int64(3)},
    "with counts": lambda state: {"state_dict": state, "class_counts": torch.ones(10)},
}


@pytest.mark.parametrize("shape", FOREIGN)
def test_foreign_weights_are_read_whatever_wraps_them(tmp_path, digits, shape):
    state = checkpoint.read(digits.stage2).state
    torch.save(FOREIGN[shape](dict(state)), tmp_path / "theirs.pth")
    model = build_model("resnet8", 10, in_channels=1)
    checkpoint.load_weights(model, checkpoint.read(tmp_path / "theirs.pth"), "resnet8")
    assert checkpoint.content_digest(model.state_dict()) == checkpoint.content_digest(state)


def test_foreign_weights_evaluate_to_the_same_figures_and_the_log_says_what_is_assumed(tmp_path, digits):
    torch.save(mislas(checkpoint.read(digits.stage2).state), tmp_path / "theirs.pth")
    text = run_evaluate(tmp_path, "--pretrained_pth", tmp_path / "theirs.pth")
    assert "foreign weights" in text and "assumed: trained on channels of mean 0.3 and deviation 0.37" in text
    ours = last_line(digits.stage2_text).rsplit(" ", 1)[0]
    assert last_line(text) == f"{ours} selected_on=unknown"


def test_safetensors_are_read_as_weights(tmp_path, digits):
    state = checkpoint.read(digits.stage2).state
    whole = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(behind("module.", whole), tmp_path / "x.safetensors")
    model = build_model("resnet8", 10, in_channels=1)
    checkpoint.load_weights(model, checkpoint.read(tmp_path / "x.safetensors"), "resnet8")
    assert checkpoint.content_digest(model.state_dict()) == checkpoint.content_digest(state)


def test_safetensors_are_no_pickle_whatever_the_length_of_their_header(tmp_path):
    weights = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
    for note in range(640):  # the header comes padded to a multiple of eight
        content = safetensors.torch.save(weights, {"note": "x" * note})
        if content.startswith(b"\x80\x02"):
            break
    assert content.startswith(b"\x80\x02"), "as a pickle of protocol 2 does"
    (tmp_path / "x.safetensors").write_bytes(content)
    assert checkpoint.read(tmp_path / "x.safetensors").state.keys() == weights.keys()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu])
def test_numbers_of_eight_bits_are_refused_in_a_line(tmp_path, dtype):
    model = build_model("resnet8", 10, in_channels=1)
    state = model.state_dict() | {"fc.weight": model.fc.weight.detach().to(dtype)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"float8|F8"):
        checkpoint.load_weights(model, checkpoint.read(tmp_path / "x.safetensors"), "resnet8")


def test_of_several_sets_of_weights_the_log_says_which_was_taken(tmp_path, digits):
    state = dict(checkpoint.read(digits.stage2).state)
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model_ema": other, "model": state, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    text = run_evaluate(tmp_path, "--pretrained_pth", tmp_path / "x.pth")
    assert "its weights are those under 'model', left out: 'model_ema'" in text
    assert last_line(text).split()[1] == last_line(digits.stage2_text).split()[1]


def test_a_classifier_without_bias_gets_zeros_and_the_log_says_so(tmp_path, digits):
    state = dict(checkpoint.read(digits.stage2).state)
    torch.save({name: value for name, value in state.items() if name != "fc.bias"}, tmp_path / "without.pth")
    torch.save(state | {"fc.bias": torch.zeros(10)}, tmp_path / "zeros.pth")
    without, zeros = (
        run_evaluate(tmp_path, "--pretrained_pth", tmp_path / f"{name}.pth") for name in ("without", "zeros")
    )
    assert "its classifier has no bias, zeros are taken" in without and "no bias" not in zeros
    assert last_line(without) == last_line(zeros)


def test_stage_1_starts_from_the_backbone_of_a_cosine_classifier(tmp_path, digits):
    backbone, last = split(checkpoint.read(digits.stage2).state)
    torch.save(backbone | {"linear.weight": last["fc.weight"].T.contiguous()}, tmp_path / "x.pth")
    text = run_stage1(tmp_path, "--epochs", "1", "--pretrained", tmp_path / "x.pth")
    assert f"started from {tmp_path}/x.pth" in text and "assumed: trained on channels of mean 0.3" in text


def test_a_released_checkpoint_is_taken_where_the_user_has_none_and_is_named(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(checkpoint, "RELEASED", digits.root / "ckpt")
    text = run_evaluate(tmp_path, "--cur_stage", "stage2")
    assert f"checkpoint {digits.stage2}" in text and "sha256" in text
    assert last_line(text) == last_line(digits.stage2_text)
