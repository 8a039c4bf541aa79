"""mixup has its law, its loss is the papers' formula, and its draws are those of (seed, epoch, part)."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import main_stage1
from losses import build_loss
from models import build_model
from tests.helpers import call, read_metrics, refusal, run_folder, run_stage1, stopped_at_step
from tests.plain_capture import PlainCapture
from utils.base.distributed import World
from utils.engine.graphs import GraphedSteps
from utils.engine.mixup import Mixup
from utils.engine.step import Part, Steps, TrainStep
from utils.run import checkpoint

CPU, CLASSES, SIZE = torch.device("cpu"), 7, 8
SHORT = ("--epochs", "3", "--seed", "0", "--mixup", "0.2")
Batch = tuple[Tensor, Tensor]


def mixup_of(steps: Steps, alpha: float = 0.5, seed: int = 0) -> Mixup:
    return Mixup(alpha, seed, steps, CLASSES, CPU)


def part_batches(steps: Steps) -> list[Batch]:
    """What a process gets of one epoch: random images, and labels that tell them apart within a part."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(steps.images, 3, SIZE, SIZE, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    own = steps.own(torch.arange(steps.images)).split(steps.part_size)
    return [(images[index], index % CLASSES) for index in own]


def stored(root: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(run_folder(root, "stage1") / "last.pth")


def digest(root: Path) -> str:
    return checkpoint.content_digest(stored(root).state)


# ---- the law ----


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_lambda_has_the_beta_distribution_of_alpha(alpha):
    mixup = mixup_of(Steps(8, 8), alpha)
    shares = [mixup.draw(epoch, number, 8)[0] for epoch in range(40) for number in range(50)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert stats.kstest(shares, stats.beta(2 * alpha, 2 * alpha).cdf).pvalue < 1e-6


def test_partners_are_a_permutation_every_one_equally_likely_and_not_tied_to_lambda():
    mixup, rows = mixup_of(Steps(6, 6), alpha=1.0), 6
    shares, partners = zip(*(mixup.draw(0, number, rows) for number in range(3000)), strict=True)
    drawn = torch.stack(partners)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(rows).expand_as(drawn))
    for place in drawn.T:
        assert stats.chisquare(torch.bincount(place, minlength=rows)).pvalue > 1e-4
    assert stats.spearmanr(shares, drawn[:, 0]).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-300, 1e6])
def test_an_extreme_alpha_gives_shares_still(alpha):
    shares = [mixup_of(Steps(8, 8), alpha).draw(0, number, 8)[0] for number in range(100)]
    assert all(0 <= share <= 1 for share in shares)
    assert abs(sum(shares) / 100 - 0.5) < 0.2


def test_images_and_labels_are_mixed_with_the_same_partner_in_the_same_shares():
    steps = Steps(20, 8)
    mixup, batches = mixup_of(steps), part_batches(steps)
    for number, ((images, labels), (inputs, truth)) in enumerate(
        zip(batches, mixup(batches, epoch=2), strict=True)
    ):
        share, partner = mixup.draw(2, number, len(labels))
        partner = partner[: len(labels)]
        for i, other in enumerate(partner.tolist()):
            torch.testing.assert_close(inputs[i], share * images[i] + (1 - share) * images[other])
            wanted = torch.zeros(CLASSES)
            wanted[labels[i]] += share
            wanted[labels[other]] += 1 - share
            torch.testing.assert_close(truth[i], wanted)
        assert inputs.is_contiguous(memory_format=torch.channels_last)


# ---- the loss ----


def by_hand(logits: Tensor, labels: Tensor, partner: Tensor, share: float) -> Tensor:
    """Zhang et al.: the mixture of two cross-entropies, summed over the images."""
    pair = (F.cross_entropy(logits, target, reduction="sum") for target in (labels, labels[partner]))
    return share * next(pair) + (1 - share) * next(pair)


def still() -> nn.Module:
    """A network that normalises by no batch."""
    torch.manual_seed(0)
    return build_model("resnet8", CLASSES).eval()


class Kept(torch.optim.SGD):
    """Keeps the gradients of its last step."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.mark.parametrize(("size", "accum"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("images", [8, 3, 1])
def test_the_parts_of_a_step_together_have_the_gradient_of_the_mean_over_all_its_images(images, size, accum):
    """Of 3 and 1 there are parts of few images and of none, filled up with some that do not count."""
    model = still()
    found, losses, rows = [0.0] * len(list(model.parameters())), [], 0
    for rank in range(size):
        steps = Steps(images, 8, accum, World(rank, size))
        mixup, batches = mixup_of(steps), part_batches(steps)
        optimizer = Kept(model.parameters(), lr=0.1)
        step = TrainStep(model, build_loss("ce"), optimizer)
        together = zip(batches, mixup(batches, 1), steps.parts(), strict=True)
        for number, ((_, labels), (inputs, truth), part) in enumerate(together):
            loss, hits = step(inputs, truth, part)
            share, partner = mixup.draw(1, number, part.rows)
            logits, true, partner = (v[: part.rows] for v in (model(inputs), labels, partner))
            losses.append(by_hand(logits, true, partner, share))
            torch.testing.assert_close(loss, losses[-1].detach(), rtol=1e-5, atol=1e-5)
            assert hits == (logits.argmax(dim=1) == (true if share > 0.5 else true[partner])).sum()
            rows += part.rows
        found = [before + own / size for before, own in zip(found, optimizer.seen, strict=True)]
    assert rows == images
    wanted = torch.autograd.grad(sum(losses) / images, list(model.parameters()))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


# ---- the draws ----

HOST = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "_unique2")


class NoHost(TorchDispatchMode):
    """Raises where an operation hands a value of the device to the host; counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in HOST, f"{name} waits for the device"
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_steps_epochs_processes_and_seeds_draw_apart_and_the_same_place_draws_the_same():
    steps = [Steps(32, 32, 1, World(rank, 2)) for rank in (0, 1)]
    drawn = {
        (seed, rank, epoch, number): mixup_of(steps[rank], seed=seed).draw(epoch, number, 16)
        for seed, rank, epoch, number in product((0, 1), (0, 1), (0, 1), (0, 1, 2))
    }
    assert len({share for share, _ in drawn.values()}) == len(drawn) == 24
    assert len({tuple(partner.tolist()) for _, partner in drawn.values()}) == 24
    share, partner = mixup_of(steps[1], seed=1).draw(1, 2, 16)
    assert share == drawn[1, 1, 1, 2][0] and torch.equal(partner, drawn[1, 1, 1, 2][1])


def test_mixed_steps_hand_nothing_to_the_host_and_replay_to_the_same_bits():
    steps, ends = Steps(37, 8), []
    for graphed in (False, True):
        model = still().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        step = TrainStep(model, build_loss("ce"), optimizer, look=False)  # on a CPU a plain step looks
        take = GraphedSteps(step, PlainCapture(), pytest.fail) if graphed else step
        batches = part_batches(steps)
        with NoHost() as watch:
            for epoch in range(5):
                for inputs, truth in mixup_of(steps)(batches, epoch):
                    take(inputs, truth, Part())
        assert watch.seen > 25 * 50
        with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHost():
            TrainStep(model, build_loss("ce"), optimizer)(inputs, truth, Part())  # this one looks
        ends.append(model.state_dict())
    assert take._capture.captures == 2 and take._capture.replays == 25 - 6
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---- the script ----


def test_alpha_0_gives_the_bits_of_a_run_without_the_option_and_another_alpha_others(tmp_path):
    line = ("--epochs", "2", "--seed", "0")
    for name, words in (("without", ()), ("0", ("--mixup", "0")), ("0.2", ("--mixup", "0.2"))):
        run_stage1(tmp_path / name, *line, *words)
    assert digest(tmp_path / "0") == digest(tmp_path / "without")
    assert digest(tmp_path / "0.2") != digest(tmp_path / "without")
    assert stored(tmp_path / "0.2").facts["args"]["mixup"] == 0.2


@pytest.mark.parametrize(("step", "more"), [(5, ()), (9, ("--accum", "4"))])
def test_a_run_stopped_at_any_step_of_an_epoch_ends_with_the_bits_of_the_unbroken_one(tmp_path, step, more):
    run_stage1(tmp_path / "whole", *SHORT, *more)
    stopped_at_step(tmp_path, step, lambda: run_stage1(tmp_path, *SHORT, *more))
    folder = run_folder(tmp_path, "stage1")
    assert f"resumed {folder}" in call(main_stage1.main, "--resume", folder)
    assert digest(tmp_path) == digest(tmp_path / "whole")
    assert read_metrics(folder).equals(read_metrics(run_folder(tmp_path / "whole", "stage1")))


def test_a_run_of_code_that_did_not_know_mixup_goes_on_without_it_and_refuses_it(tmp_path):
    line = SHORT[:4]
    run_stage1(tmp_path / "whole", *line)
    stopped_at_step(tmp_path, 7, lambda: run_stage1(tmp_path, *line))
    folder = run_folder(tmp_path, "stage1")
    source = stored(tmp_path)
    older = {name: value for name, value in source.facts["args"].items() if name != "mixup"}
    checkpoint.save(folder / "last.pth", source.facts | {"model": source.state, "args": older})
    record = json.loads((folder / "config.json").read_text())
    del record["config"]["mixup"]
    (folder / "config.json").write_text(json.dumps(record))
    message = refusal(main_stage1.main, "--resume", folder, "--mixup", "0.2")
    assert message.startswith("--mixup 0.2, the run to resume has --mixup 0.0")
    text = run_stage1(tmp_path, *line, "--resume", "auto")
    assert f"resumed {folder}" in text
    assert digest(tmp_path) == digest(tmp_path / "whole")
