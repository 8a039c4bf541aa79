"""Compiled and mixed-precision passes: which batches take them, what the log says of bf16."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import build_model
from tests.helpers import run_folder, run_stage1
from utils.engine.precision import slow_bf16, speed_up
from utils.engine.scoring import CPU_ROWS, forward_views
from utils.engine.wide_convolutions import WideConv2d, widen
from utils.settings.config import resolve

CPU = torch.device("cpu")


def test_only_full_batches_go_through_the_compiled_pass(monkeypatch):
    model = build_model("resnet8", 10).eval()
    plain = model.forward_features
    monkeypatch.setattr(torch, "compile", lambda forward, **_: lambda x: forward(x) + 1)  # tells them apart
    speed_up(model, resolve("main_stage1.py", {"dataset": "digits_lt", "compile": True}), CPU, batch_size=4)
    for rows, extra in ((4, 1), (3, 0), (CPU_ROWS, 1)):
        images = torch.randn(rows, 3, 32, 32)
        torch.testing.assert_close(model.forward_features(images), plain(images) + extra)


def test_a_network_with_another_way_to_its_logits_takes_the_fast_pass_too():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(x))

    model, x = Own(), torch.randn(5, 4)
    before = model(x)
    speed_up(model, resolve("main_stage1.py", {"dataset": "digits_lt", "amp": "bf16"}), CPU)
    assert torch.equal(model(x), model.fc(model.forward_features(x))) and model(x).dtype == torch.float32
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("amp", "has", "said"),
    [
        ("bf16", {"avx512_bf16": False}, "several times slower"),
        ("bf16", {"avx512_bf16": True}, None),
        ("bf16", {"bf16": True}, None),
        ("off", {}, None),
    ],
)
def test_bf16_on_a_cpu_without_instructions_for_it_is_noted(monkeypatch, amp, has, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    config = SimpleNamespace(amp=amp)
    note = slow_bf16(config, CPU)
    assert (note is None) if said is None else said in note
    assert slow_bf16(config, torch.device("cuda")) is None


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


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 8), (2, 5)])
def test_wide_convolutions_have_the_gradients_of_plain_ones_in_bf16(stride, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(256, 320, 3, stride=stride, padding=1, bias=False).to(memory_format=torch.channels_last)
    wide = deepcopy(nn.Sequential(plain))
    widen(wide)
    assert type(wide[0]) is WideConv2d and list(wide.state_dict()) == ["0.weight"]
    gradients = []
    for conv in (plain, wide[0]):
        x = torch.randn(6, 256, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x.contiguous(memory_format=torch.channels_last))
        (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append((out.detach(), x.grad, conv.weight.grad))
    for theirs, ours in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype
        largest = float(theirs.abs().max())
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02 * largest)


def test_only_wide_plain_convolutions_are_widened_and_without_autocast_they_are_as_before():
    model = build_model("resnet18", 10).to(memory_format=torch.channels_last).train()
    x = torch.randn(4, 3, 32, 32)
    before = model(x)
    widen(model)
    wide = [name for name, module in model.named_modules() if isinstance(module, WideConv2d)]
    assert wide and all(name.startswith(("layer3", "layer4")) and "downsample" not in name for name in wide)
    assert "layer3.0.conv1" not in wide  # it takes in 128 channels
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize(("amp", "has", "widened"), [("bf16", True, 7), ("bf16", False, 0), ("off", True, 0)])
def test_convolutions_are_widened_for_bf16_on_a_cpu_with_matrix_units_alone(monkeypatch, amp, has, widened):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has}, raising=False)
    model = build_model("resnet18", 10)
    speed_up(model, resolve("main_stage1.py", {"dataset": "cifar10_lt", "amp": amp}), CPU)
    assert sum(isinstance(module, WideConv2d) for module in model.modules()) == widened
