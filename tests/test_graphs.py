"""Graphed training steps on the CPU, the capture replaced by plain calls: the bits of the steps without."""

import pytest
import torch
from torch import Tensor, nn

import main_stage1
from datasets import build_data
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import build_model
from tests.helpers import call, run_folder, run_stage1, stopped_at_step
from tests.plain_capture import PlainCapture
from utils.base.distributed import World
from utils.base.errors import UserError
from utils.base.seeding import epoch_order
from utils.engine import graphs
from utils.engine.graphs import MOST_GRAPHS, WARM_STEPS, CudaCapture, GraphedSteps
from utils.engine.loop import Progress, cosine_lr, sgd, train_epoch
from utils.engine.step import DivergedError, Part, TrainStep
from utils.run import checkpoint
from utils.settings.config import resolve

LOSS = build_loss("ce")
CPU = torch.device("cpu")
Batches = list[tuple[Tensor, Tensor]]


def learner(channels: int = 3) -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, in_channels=channels).to(memory_format=torch.channels_last).train()
    return model, sgd(model.parameters(), lr=9.0, momentum=0.9, weight_decay=5e-3, nesterov=False)


def graphed_steps(model: nn.Module, optimizer: torch.optim.SGD) -> GraphedSteps:
    return GraphedSteps(TrainStep(model, LOSS, optimizer), PlainCapture(), pytest.fail)


def plain_steps(model: nn.Module, optimizer: torch.optim.SGD) -> TrainStep:
    return TrainStep(model, LOSS, optimizer)


def digits(epochs: int) -> list[Batches]:
    """Epochs of four batches of 64 and one of 49."""
    data = build_data("digits_lt", imb_ratio=50)
    train = DeviceImages(data.train, data.views)
    return [list(train.augmented(epoch_order(3, e, len(train)), 64, 3, e)) for e in range(epochs)]


def random_images() -> Batches:
    """Four batches of 8 and one of 3, of the shape of CIFAR's."""
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        images = torch.randn(size, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
        return images, torch.randint(0, 10, (size,), generator=generator)

    return [batch(size) for size in (8, 8, 8, 8, 3)]


def run(epochs: list[Batches], graphed: bool, channels: int = 3) -> tuple:
    model, optimizer = learner(channels)
    take = (graphed_steps if graphed else plain_steps)(model, optimizer)
    rows = [
        train_epoch(take, batches, Progress(), cosine_lr(0.1, e, len(epochs)))
        for e, batches in enumerate(epochs)
    ]
    return rows, model.state_dict(), optimizer.state_dict(), take


def assert_same_bits(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_graphed_epochs_end_with_the_bits_of_plain_ones():
    epochs = digits(4)
    rows, state, momenta, _ = run(epochs, graphed=False, channels=1)
    graphed_rows, graphed_state, graphed_momenta, take = run(epochs, graphed=True, channels=1)
    assert graphed_rows == rows
    assert_same_bits(graphed_state, state)
    for i, kept in momenta["state"].items():
        assert_same_bits(graphed_momenta["state"][i], kept)
    assert graphed_momenta["param_groups"] == momenta["param_groups"]  # the rate too: a number
    # each of the two shapes: three steps aside, every later one a replay of its only capture
    counts = take._capture
    assert (counts.asides, counts.captures, counts.replays) == (6, 2, 4 * 5 - 6)


def test_a_third_shape_runs_without_a_graph():
    batches = [(x[:n], y[:n]) for (x, y), n in zip(random_images()[:4], (8, 6, 4, 4), strict=True)]
    _, _, _, take = run([batches] * (WARM_STEPS + 2), graphed=True)
    assert len(take._shapes) == MOST_GRAPHS == 2
    assert take._capture.captures == 2 and take._capture.replays == 2 * 2
    _, state, _, _ = run([batches] * (WARM_STEPS + 2), graphed=False)
    assert_same_bits(take._step.model.state_dict(), state)


def test_batches_of_one_shape_of_which_other_rows_count_have_graphs_of_their_own():
    parts = [Part(8), Part(5, 0.5)]
    batches, ends = random_images()[:2], []
    for graphed in (False, True):
        model, optimizer = learner()
        take = (graphed_steps if graphed else plain_steps)(model, optimizer)
        for _ in range(WARM_STEPS + 2):
            train_epoch(take, batches, Progress(), 0.1, parts)
        ends.append(model.state_dict())
    assert take._capture.captures == 2
    assert_same_bits(*ends)


class Watched(torch.optim.SGD):
    """Keeps the learning rates that its steps see."""

    def step(self, closure=None):
        self.rates = [*getattr(self, "rates", []), *(group["lr"] for group in self.param_groups)]
        return super().step(closure)


def test_all_groups_read_one_rate_that_stays_where_it_is():
    model, _ = learner()
    groups = [{"params": model.fc.parameters()}, {"params": model.layer1.parameters()}]
    optimizer = Watched(groups, lr=0.1, fused=True)
    take = graphed_steps(model, optimizer)
    for lr in (0.1, 0.05):
        train_epoch(take, random_images(), Progress(), lr)
        assert float(optimizer.rates[-1]) == pytest.approx(lr)
    assert len(optimizer.rates) == 20 and all(rate is take._rate for rate in optimizer.rates)


def test_a_loss_that_is_not_finite_ends_a_graphed_epoch():
    batches = random_images()
    batches[1][0][0] = float("nan")
    with pytest.raises(DivergedError, match="the loss is not finite"):
        run([batches], graphed=True)


# ---- no look at the device ----


class RateOnDevice(torch.optim.SGD):
    """Reads the learning rate where it lies, as the fused update does, which takes no `meta` tensors."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@pytest.mark.parametrize("graphed", [False, True])
def test_an_epoch_on_an_accelerator_reads_no_value_before_its_end(graphed):
    """Tensors on `meta` have no values: whatever asks for one raises."""
    model, _ = learner()
    model.to("meta")
    optimizer = RateOnDevice(model.parameters(), lr=0.1)
    batches = [(x.to("meta"), y.to("meta")) for x, y in random_images() * 5]
    done, progress = [], Progress()
    step = (graphed_steps if graphed else plain_steps)(model, optimizer)
    with pytest.raises(RuntimeError, match="meta") as caught:
        train_epoch(step, batches, progress, 0.1, after_step=lambda: done.append(progress.step))
    assert done == list(range(1, 26)) and caught.traceback[-2].name == "figures"


# ---- the script ----


def digest(root) -> str:
    source = checkpoint.read(run_folder(root, "stage1") / "last.pth")
    assert all(isinstance(group["lr"], float) for group in source.facts["optimizer"]["param_groups"])
    return checkpoint.content_digest(source.state)


@pytest.mark.parametrize("device_is_gone", [False, True])
def test_a_graphed_run_stopped_within_an_epoch_resumes_to_the_bits_of_a_run_without_graphs(
    tmp_path, monkeypatch, device_is_gone
):
    """On a device that has no graphs it goes on without them."""
    line = ("--epochs", "3", "--seed", "0", "--device", "cpu")
    run_stage1(tmp_path / "plain", *line)
    with monkeypatch.context() as patched:  # --cuda_graphs on the CPU, its capture replaced
        patched.setattr(graphs, "CudaCapture", PlainCapture)
        patched.setattr(graphs, "wanted", lambda config, *_: config.cuda_graphs)
        stopped_at_step(tmp_path, 7, lambda: run_stage1(tmp_path, *line, "--cuda_graphs"))
        if device_is_gone:
            patched.undo()
        text = call(main_stage1.main, "--resume", run_folder(tmp_path, "stage1"))
    assert "at step 2 of epoch 2" in text and "cuda_graphs" in text
    assert digest(tmp_path) == digest(tmp_path / "plain")


@pytest.mark.parametrize(("size", "said"), [(2, "does not go with 2 processes"), (1, "needs a CUDA device")])
def test_graphs_are_refused_where_they_cannot_be(size, said):
    config = resolve("main_stage1.py", {"dataset": "digits_lt", "cuda_graphs": True})
    with pytest.raises(UserError, match=f"^--cuda_graphs {said}"):
        graphs.wanted(config, CPU, World(0, size))
    assert not graphs.wanted(resolve("main_stage1.py", {"dataset": "digits_lt"}), CPU, World(0, size))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which can record")
def test_steps_that_cannot_be_recorded_run_one_by_one_and_a_line_of_each_shape_says_so(monkeypatch):
    monkeypatch.setattr(PlainCapture, "capture", CudaCapture.capture)  # torch refuses it without a device
    epochs, notes, ends = digits(3), [], []
    for graphed in (False, True):
        model, optimizer = learner(channels=1)
        step = TrainStep(model, LOSS, optimizer)
        take = GraphedSteps(step, PlainCapture(), notes.append) if graphed else step
        ends.append(
            [train_epoch(take, batches, Progress(), 0.05) for batches in epochs] + [model.state_dict()]
        )
    assert ends[0][:-1] == ends[1][:-1]
    assert_same_bits(ends[0][-1], ends[1][-1])
    assert len(notes) == 1  # the last batch of an epoch has had no more than its first steps
    assert notes[0].startswith("--cuda_graphs: a training step could not be recorded (")
    assert notes[0].endswith("): steps like it run one by one")
