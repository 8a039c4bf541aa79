"""Compiled and mixed-precision passes: which batches take them, what the log says of them."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models import build_model
from tests.helpers import run_folder, run_stage1
from utils.engine.precision import Compiled, _seconds, slow_bf16, verdict
from utils.engine.scoring import CPU_ROWS, forward_views


@dataclass
class Precision:
    amp: str


def test_the_log_says_after_how_many_steps_compiling_has_paid_or_that_it_does_not():
    assert verdict(80.0, 2.5, 2.0, steps=10_000).endswith("it pays after 160 steps")
    assert verdict(80.0, 2.5, 2.0, 100).endswith("it pays after 160 steps, this run has 100: leave it out")
    assert verdict(80.0, 2.0, 2.0, 100).endswith("it does not pay here, leave it out")
    assert "80 s for the first step; a pass and back 2.000 s, 2.500 s without" in verdict(80.0, 2.5, 2.0, 100)


def test_only_full_batches_go_through_the_compiled_pass_and_the_second_training_batch_tells():
    model, heard = build_model("resnet8", 10), []
    compiled = Compiled(model, {4})
    compiled.fast = lambda x: compiled.plain(x) + 1  # tells the two ways apart
    compiled.tell, compiled.steps = heard.append, 5
    full, rest = torch.randn(4, 3, 32, 32), torch.randn(3, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(compiled(full), compiled.plain(full) + 1)
    torch.testing.assert_close(compiled(rest), compiled.plain(rest))
    model.train()
    compiled(rest)
    compiled(full)
    assert heard == []
    compiled(full)
    compiled(full)
    assert len(heard) == 1 and heard[0].startswith("--compile: ")


def test_timing_a_pass_leaves_no_trace_in_the_network_and_the_random_state():
    model = nn.ModuleDict({"drop": nn.Dropout(0.5), "net": build_model("resnet8", 10)}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    random = torch.get_rng_state()
    seconds = _seconds(model, lambda x: model["net"](model["drop"](x)), images)
    assert seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("amp", "has", "said"),
    [
        ("bf16", {}, "several times slower"),
        ("bf16", {"avx512_bf16": False}, "several times slower"),
        ("bf16", {"avx512_bf16": True}, None),
        ("bf16", {"bf16": True}, None),
        ("off", {}, None),
    ],
)
def test_bf16_on_a_cpu_without_instructions_for_it_is_noted(monkeypatch, amp, has, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    note = slow_bf16(Precision(amp), torch.device("cpu"))
    assert (note is None) if said is None else said in note
    assert slow_bf16(Precision(amp), torch.device("cuda")) is None


def test_the_note_on_bf16_stands_in_the_log(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    text = run_stage1(tmp_path, "--epochs", "1", "--amp", "bf16", "--seed", "0")
    assert "note: --amp bf16: this CPU has no instructions for it" in text
    assert "--amp bf16" in (run_folder(tmp_path, "stage1") / "log.txt").read_text()


@pytest.mark.parametrize("number", [1, CPU_ROWS // 2, CPU_ROWS + 3])
def test_an_image_and_its_mirror_image_go_through_together_with_the_same_result_as_one_by_one(number):
    model = build_model("resnet8", 10).eval().to(memory_format=torch.channels_last)
    images = torch.randn(number, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        both = forward_views(model.forward_features, images, mirror=True)
        alone = forward_views(model.forward_features, images, mirror=False)
        expected = torch.stack([model.forward_features(images), model.forward_features(images.flip(-1))])
    assert both.shape == (2, number, 64) and alone.shape == (1, number, 64)
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone[0], both[0], rtol=1e-5, atol=1e-6)
