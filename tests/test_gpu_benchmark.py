"""benchmarks.gpu without a GPU: its line there, and its parts on the CPU with tiny sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from datasets import build_data
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import build_model
from tests.plain_capture import PlainCapture
from utils.settings.config import resolve

ROOT, CPU = Path(__file__).resolve().parent.parent, torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    says = f"error: benchmarks.gpu needs a CUDA device, torch {torch.__version__} sees none here\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says)


def test_the_figures_follow_from_the_times():
    epochs = gpu.Epochs(seconds=[0.5, 0.4, 0.9], images=10_000, roof=1e15)
    assert epochs.rate == 20_000
    assert epochs.share == pytest.approx(20_000 * 6.95e9 / 1e15)
    assert epochs.whole_run(200, scoring=0.7) == pytest.approx(100.7)
    cells = gpu.row("TF32", "graphs", epochs, 200, 0.7, 55_000.4).strip("| ").split(" | ")
    assert cells == ["TF32", "graphs", "20000", "0.400 / 0.500 / 0.900", "13.9 %", "101", "55000"]


def test_the_work_of_an_image_is_as_torch_counts_it():
    model, (images, labels) = build_model("resnet34", 100).to("meta"), (torch.empty(2, 3, 32, 32), [1, 2])
    with FlopCounterMode(display=False) as counter:
        build_loss("ce")(model(images.to("meta")), torch.tensor(labels, device="meta")).backward()
    assert counter.get_total_flops() / 2e9 == pytest.approx(gpu.GFLOP_AN_IMAGE, abs=0.005)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("graphed", [False, True])
def test_epochs_and_feature_passes_are_timed(amp, graphed):
    data = build_data("digits_lt", imb_ratio=50)
    train = DeviceImages(data.train, data.views)
    config = resolve("main_stage1.py", {"dataset": "digits_lt", "amp": amp, "seed": 0})
    capture = PlainCapture() if graphed else None
    model, epochs = gpu.measure(train, config, 1e12, 2, capture, channels=1)
    assert len(epochs.seconds) == 2 and epochs.rate > 0 and epochs.images == 305
    assert not graphed or (capture.captures == 2 and capture.replays == 6 * 5 - 2 * 3)
    assert gpu.feature_rate(model, train, 2) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_roof_is_a_rate_and_leaves_the_precision_of_products_as_it_was(dtype):
    before = torch.backends.cuda.matmul.fp32_precision
    assert gpu.gemm_roof(CPU, dtype, side=64) > 0
    assert torch.backends.cuda.matmul.fp32_precision == before
    with gpu.tf32_products():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
