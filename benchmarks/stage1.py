"""The whole step of stage 1, data to update, as main_stage1.py runs it, against plain loops.

Opponents: the plain loop (PIL, transforms v1, channels first), and as a roof the bare forward and backward
pass of the same network in our layout over one ready batch. Checks first that the same batches from the same
start give the same losses.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import chain, count, islice, repeat

import torch
from torch import Tensor, nn

from benchmarks import baselines, common
from benchmarks.common import SEED, WORKER_CHOICES, Bench, DiffersError, Findings, each, row
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import THIN_NETWORKS
from utils.base.seeding import epoch_order
from utils.engine import loop
from utils.engine.device import LAYOUT
from utils.engine.precision import slow_bf16, speed_up
from utils.engine.step import TrainStep
from utils.settings.config import resolve
from utils.settings.parse import STAGE1

CPU = torch.device("cpu")
# at the preset's rate two layouts part within a few steps, as any two ways to round do; no step costs more
LR = 1e-5
LOSS_TOLERANCE, WAY_TOLERANCE = 1e-4, 0.1  # of a loss near 5; of all weights, as a share of the way they went
SHARE_TARGET, TARGETS = 0.85, {"resnet32": 1.25, "resnet34": 1.03}
VARIANTS = {"ours": "off", "plain": "off", "bare": "off", "bf16": "bf16"}  # with their precision
BF16_TARGET = 1.9


class Contest:
    """Every variant of one network at the same start, ready to be compared and timed."""

    def __init__(self, bench: Bench, network: str) -> None:
        # steps of a timing and of the check, images of a step
        self.steps, self.checked, self.batch_size = (8, 5, 64) if network in THIN_NETWORKS else (2, 3, 64)
        if bench.quick:
            self.steps, self.checked, self.batch_size = 1, 2, 8
        self.data, self.start, self.epochs = bench.data, bench.model(network), count(1)
        self.images, self.loss_fn = DeviceImages(self.data.train, self.data.views), build_loss("ce")
        self.models = {name: deepcopy(self.start) for name in VARIANTS}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, amp in VARIANTS.items():
            config = resolve(STAGE1, {"network": network, "device": "cpu", "seed": SEED, "amp": amp})
            model, settings = self.models[name], (LR, config.momentum)
            if name == "plain":
                self.optimizers[name] = torch.optim.SGD(model.parameters(), *settings, weight_decay=config.wd)
            else:
                speed_up(model.to(memory_format=LAYOUT), config, CPU)
                self.optimizers[name] = loop.sgd(model.parameters(), *settings, config.wd, config.nesterov)
        self.slow_bf16 = slow_bf16(resolve(STAGE1, {"device": "cpu", "amp": "bf16"}), CPU)

    def train(self, name: str, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss of a pass of one variant."""
        model, optimizer = self.models[name], self.optimizers[name]
        if name == "plain":
            return baselines.train(model, batches, self.loss_fn, optimizer)[0]
        model.train()
        step = TrainStep(model, self.loss_fn, optimizer)
        return loop.train_epoch(step, batches, loop.Progress(), LR)["train_loss"]

    def our_batches(self, epoch: int, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = epoch_order(SEED, epoch, len(self.images))[: steps * self.batch_size]
        return self.images.augmented(order, self.batch_size, SEED, epoch)

    def works(self) -> tuple[dict[str, Callable[[], object]], int]:
        """What is timed, by name; with how many worker processes the plain loop is at its faster."""
        train, views = self.data.train, self.data.views
        loaders = {
            n: chain.from_iterable(repeat(baselines.loader(train, views, self.batch_size, n, shuffle=True)))
            for n in WORKER_CHOICES
        }
        ready = next(iter(self.our_batches(0, 1)))

        def plain(workers: int) -> Callable[[], object]:
            return lambda: self.train("plain", islice(loaders[workers], self.steps))

        def ours(name: str) -> Callable[[], object]:
            return lambda: self.train(name, self.our_batches(next(self.epochs), self.steps))

        workers = common.fastest({workers: plain(workers) for workers in WORKER_CHOICES})
        works = {"ours": ours("ours"), "plain": plain(workers), "bare": lambda: self.run_bare(*ready)}
        return works | ({} if self.slow_bf16 else {"bf16": ours("bf16")}), workers

    def run_bare(self, inputs: Tensor, labels: Tensor) -> None:
        """Forward and backward alone."""
        model = self.models["bare"].train()
        for _ in range(self.steps):
            self.loss_fn(model(inputs), labels).backward()
            model.zero_grad(set_to_none=True)


def check_same(contest: Contest) -> tuple[float, float]:
    """Train both on the same batches from the same start.

    Returns the largest difference of their losses, and that of their weights as a share of the way they went.

    Raises:
        DiffersError: they train otherwise.
    """
    batches, models = list(contest.our_batches(0, contest.checked)), contest.models
    losses = [contest.train("plain", [(images.contiguous(), labels)]) for images, labels in batches]
    ours = [contest.train("ours", [batch]) for batch in batches]
    start, plain, end = map(weights, (contest.start, models["plain"], models["ours"]))
    loss = max(abs(a - b) for a, b in zip(ours, losses, strict=True))
    way = float((end - plain).norm() / (plain - start).norm())
    if not (loss < LOSS_TOLERANCE and way < WAY_TOLERANCE):
        found = f"{loss:.1e} in its losses, {way:.1e} of the way"
        raise DiffersError(f"it differs from the plain loop by {found}")
    return loss, way


def weights(model: nn.Module) -> Tensor:
    """All weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The rows of one network."""
    contest = Contest(bench, network)
    loss, way = check_same(contest)
    works, workers = contest.works()
    images = contest.steps * contest.batch_size
    seconds = {name: each(values, images) for name, values in common.alternate(works, turns).items()}
    opponents = {"plain": ("plain loop", TARGETS[network]), "bare": ("bare forward + backward", SHARE_TARGET)}
    rows = [
        row(f"stage-1 step, {network}", against, "images/s", seconds["ours"], seconds[name], target)
        for name, (against, target) in opponents.items()
    ]
    if "bf16" in seconds:
        what, target = f"stage-1 step, {network}, --amp bf16", BF16_TARGET if network == "resnet34" else None
        rows.append(row(what, "ours in float32", "images/s", seconds["bf16"], seconds["ours"], target))
    note = (
        f"stage 1, {network}: over {contest.checked} steps on the same batches (float32, rate {LR:g}) "
        f"losses differ by {loss:.1e} at most (tolerance {LOSS_TOLERANCE:g}), weights by {way:.1e} of the "
        f"way they went (tolerance {WAY_TOLERANCE:g}); {images} images a timing, the plain loop at its "
        f"faster with {workers} worker process(es)"
    )
    return Findings(rows, [note])
