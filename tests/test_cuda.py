"""What only a CUDA device can show of stage 1; skipped where there is none."""

import warnings
from collections.abc import Iterable, Iterator

import pytest
import torch

from datasets import ImageSet
from datasets.cifar_lt import VIEWS
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import build_model
from tests.helpers import read_metrics, run_folder, run_stage1
from utils.base.seeding import epoch_order
from utils.engine.device import LAYOUT
from utils.engine.graphs import WARM_STEPS, CudaCapture, GraphedSteps
from utils.engine.loop import Progress, sgd, train_epoch
from utils.engine.precision import speed_up
from utils.engine.step import TrainStep
from utils.settings.config import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda")
EPOCHS = WARM_STEPS + 3  # in the last ones the odd batch of an epoch is replayed too
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@pytest.fixture(scope="module")
def train() -> DeviceImages:
    """276 images of CIFAR's shape that can be learned: an epoch of four batches of 64 and one of 20."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(276) % 10
    images = torch.randint(0, 120, (276, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images += (13 * labels).to(torch.uint8)[:, None, None, None]
    return DeviceImages(ImageSet(images, labels), VIEWS, DEVICE)


def raising_on_a_wait(batches: Iterable) -> Iterator:
    """Between the first batch and the end of the last step, waiting for the device raises."""
    for batch in batches:
        yield batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def learn(train: DeviceImages, graphed: bool, amp: str = "off", watch_last: bool = False) -> tuple:
    """Rows of EPOCHS epochs, and the weights at their end."""
    torch.manual_seed(0)
    model = build_model("resnet32", 10).to(DEVICE, memory_format=LAYOUT).train()
    speed_up(model, resolve("main_stage1.py", {"dataset": "cifar10_lt", "amp": amp}), DEVICE)
    optimizer = sgd(model.parameters(), lr=9.0, momentum=0.9, weight_decay=1e-3, nesterov=False)
    rows, step = [], TrainStep(model, build_loss("ce"), optimizer)
    step = GraphedSteps(step, CudaCapture(), pytest.fail) if graphed else step
    for epoch in range(EPOCHS):
        batches = train.augmented(epoch_order(0, epoch, len(train)), 64, 0, epoch)
        if watch_last and epoch == EPOCHS - 1:
            batches = raising_on_a_wait(batches)
        rows.append(train_epoch(step, batches, Progress(), 0.01 / (epoch + 1)))
    return rows, model.state_dict()


def test_graphed_steps_equal_plain_ones_within_rounding(train, monkeypatch):
    """Within RELATIVE and ABSOLUTE: a graph reads its rate in float32, a plain step in float64."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    rows, state = learn(train, graphed=False)
    graphed_rows, graphed_state = learn(train, graphed=True)
    for ours, theirs in zip(graphed_rows, rows, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=RELATIVE)
    for name, value in state.items():
        torch.testing.assert_close(graphed_state[name], value, rtol=RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("graphed", [False, True])
def test_nothing_waits_for_the_device_within_an_epoch(train, graphed):
    try:
        learn(train, graphed, watch_last=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphed", [False, True])
def test_an_epoch_trains_in_bf16_with_all_images_on_the_device(train, graphed):
    rows, state = learn(train, graphed, amp="bf16")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(value.isfinite().all() for value in state.values())
    assert all(value.device.type == "cuda" for value in (train.labels, *state.values()))


def test_the_script_trains_with_graphs_and_scores_at_the_end(tmp_path):
    run_stage1(tmp_path, "--device", "cuda", "--cuda_graphs", "--epochs", "6", "--seed", "0")
    run_stage1(tmp_path / "plain", "--device", "cuda", "--eval_every", "6", "--epochs", "6", "--seed", "0")
    ours, theirs = (read_metrics(run_folder(root, "stage1")) for root in (tmp_path, tmp_path / "plain"))
    assert ours["train_loss"].iloc[-1] == pytest.approx(theirs["train_loss"].iloc[-1], rel=0.05)
