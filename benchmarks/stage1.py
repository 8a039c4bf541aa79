"""The whole step of stage 1, data to update, as main_stage1.py runs it, against plain loops.

Opponents: the plain loop (PIL, transforms v1, channels first), the best-known practice (transforms v2 on a
resident tensor, channels_last), and as a roof the bare forward and backward pass of the same network in our
layout over one ready batch. Checks first that the same batches from the same start give the same losses.
"""

import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import count, islice
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import baselines, common
from benchmarks.common import SEED, Bench, DiffersError
from benchmarks.table import Findings, Row, each, row
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import THIN_NETWORKS
from utils.base.seeding import epoch_order
from utils.engine import loop
from utils.engine.device import LAYOUT
from utils.engine.precision import speed_up
from utils.engine.step import TrainStep
from utils.settings.config import resolve
from utils.settings.parse import STAGE1

WORKER_CHOICES = (0, 1)
# of the check: at the preset's rate two layouts part within a few steps, as any two ways to round do
CHECK_LR = 1e-5
LOSS_TOLERANCE, WAY_TOLERANCE = 1e-4, 0.1  # of a loss near 5; of all weights, as a share of the way they went
SHARE_TARGET, COMPILED_TARGET, COMPILED = 0.85, 1.25, "resnet34"
TARGETS = {"resnet32": 1.25, "resnet34": 1.03}
VARIANTS = ("ours", "plain", "best known", "compiled")


class Size(NamedTuple):
    """Steps of a timing and of the check, images of a step."""

    steps: int
    checked: int
    batch_size: int


def size_of(bench: Bench, network: str) -> Size:
    if bench.quick:
        return Size(1, 2, 8)
    return Size(8, 5, 64) if network in THIN_NETWORKS else Size(2, 3, 64)


class Contest:
    """Every variant of one network at the same start, ready to be compared and timed."""

    def __init__(self, bench: Bench, network: str) -> None:
        self.bench, self.size = bench, size_of(bench, network)
        given = {"network": network, "device": "cpu", "seed": SEED}
        self.config = resolve(STAGE1, given)
        self.lr = loop.cosine_lr(self.config.lr, 0, self.config.epochs, self.config.warmup_epochs)
        self.images = DeviceImages(bench.data.train, bench.data.views)
        self.tensors = baselines.TensorImages(bench.data.train, bench.data.views)
        self.loss_fn, self.epochs = build_loss("ce"), count(1)
        compiling = bench.compile and network == COMPILED
        self.names = VARIANTS if compiling else VARIANTS[:-1]
        start = bench.model(network)
        self.models = {name: deepcopy(start) for name in self.names}
        for name in set(self.names) - {"plain"}:
            self.models[name].to(memory_format=LAYOUT)
        self.optimizers = {name: self._optimizer(name) for name in self.names}
        self.bare, self.start = deepcopy(start).to(memory_format=LAYOUT), start
        if compiling:
            compiled = resolve(STAGE1, given | {"compile": True})
            torch.compiler.config.force_disable_caches = True  # else what an earlier run compiled is taken
            speed_up(self.models["compiled"], compiled, torch.device("cpu"), self.size.batch_size)

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        config, parameters = self.config, self.models[name].parameters()
        if name in ("ours", "compiled"):
            return loop.sgd(parameters, self.lr, config.momentum, config.wd, config.nesterov)
        return torch.optim.SGD(parameters, self.lr, config.momentum, weight_decay=config.wd)

    def set_lr(self, lr: float) -> None:
        """The learning rate of every variant."""
        self.lr = lr
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = lr

    def train(self, name: str, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss of a pass of one variant."""
        model, optimizer = self.models[name], self.optimizers[name]
        if name in ("plain", "best known"):
            return baselines.train(model, batches, self.loss_fn, optimizer)[0]
        model.train()
        step = TrainStep(model, self.loss_fn, optimizer)
        return loop.train_epoch(step, batches, loop.Progress(), self.lr)["train_loss"]

    def our_batches(self, epoch: int, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = epoch_order(SEED, epoch, len(self.images))[: steps * self.size.batch_size]
        return self.images.augmented(order, self.size.batch_size, SEED, epoch)

    def works(self, loaders: dict[int, Iterable], workers: int) -> dict[str, Callable]:
        """What is timed, by name."""
        steps = self.size.steps
        resident = self.tensors.batches(self.size.batch_size)
        ready = next(iter(self.our_batches(0, 1)))
        works = {
            "ours": lambda: self.train("ours", self.our_batches(next(self.epochs), steps)),
            "plain": lambda: self.train("plain", islice(loaders[workers], steps)),
            "best known": lambda: self.train("best known", islice(resident, steps)),
            "bare": lambda: self.run_bare(*ready),
        }
        if "compiled" in self.names:
            works["compiled"] = lambda: self.train("compiled", self.our_batches(next(self.epochs), steps))
        return works

    def run_bare(self, inputs: Tensor, labels: Tensor) -> None:
        """Forward and backward alone."""
        self.bare.train()
        for _ in range(self.size.steps):
            self.loss_fn(self.bare(inputs), labels).backward()
            self.bare.zero_grad(set_to_none=True)

    def loaders(self) -> dict[int, Iterable[tuple[Tensor, Tensor]]]:
        """The plain loop's batches, by the number of worker processes."""
        data, batch_size = self.bench.data, self.size.batch_size
        return {
            workers: baselines.endless(baselines.train_loader(data.train, data.views, batch_size, workers))
            for workers in WORKER_CHOICES
        }


class Checked(NamedTuple):
    """Largest differences from the plain loop's losses and weights; seconds that compiling took, 0: none."""

    loss: float
    way: float
    compiling: float


def check_same(contest: Contest) -> Checked:
    """Train every variant on the same batches from the same start.

    Raises:
        DiffersError: a variant trains otherwise.
    """
    own_lr, batches = contest.lr, list(contest.our_batches(0, contest.size.checked))
    contest.set_lr(CHECK_LR)
    losses, seconds = {}, {}
    for name in contest.names:
        losses[name], seconds[name] = [], []
        for images, labels in batches:
            inputs = images.contiguous() if name == "plain" else images
            started = time.perf_counter()
            losses[name].append(contest.train(name, [(inputs, labels)]))
            seconds[name].append(time.perf_counter() - started)
    contest.set_lr(own_lr)
    start, plain = weights(contest.start), weights(contest.models["plain"])
    worst_loss, worst_way = 0.0, 0.0
    for name in contest.names:
        loss = max(abs(a - b) for a, b in zip(losses[name], losses["plain"], strict=True))
        way = float((weights(contest.models[name]) - plain).norm() / (plain - start).norm())
        if not (loss < LOSS_TOLERANCE and way < WAY_TOLERANCE):
            raise DiffersError(
                f"`{name}` differs from the plain loop by {loss:.1e} in its losses, {way:.1e} of the way"
            )
        worst_loss, worst_way = max(worst_loss, loss), max(worst_way, way)
    first_and_last = seconds.get("compiled", [0.0])
    return Checked(worst_loss, worst_way, first_and_last[0] - first_and_last[-1])


def weights(model: nn.Module) -> Tensor:
    """All weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The rows of one network."""
    contest = Contest(bench, network)
    checked = check_same(contest)
    loaders = contest.loaders()
    choices = {workers: contest.works(loaders, workers)["plain"] for workers in WORKER_CHOICES}
    workers = common.fastest(choices)
    images = contest.size.steps * contest.size.batch_size
    timed = common.alternate(contest.works(loaders, workers), turns, bench.tick)
    seconds = {name: each(values, images) for name, values in timed.items()}
    notes = [
        f"stage 1, {network}: over {contest.size.checked} steps on the same batches (float32, rate "
        f"{CHECK_LR:g}) losses differ by {checked.loss:.1e} at most (tolerance {LOSS_TOLERANCE:g}), "
        f"weights by {checked.way:.1e} of the way they went (tolerance {WAY_TOLERANCE:g}); {images} images a "
        f"timing, the plain loop at its faster with {workers} worker process(es)"
    ]
    if checked.compiling:
        notes.append(break_even(bench, network, seconds, checked.compiling))
    elif network == COMPILED:
        notes.append(f"stage 1, {network}: the row with --compile is left out (--quick or --no_compile)")
    return Findings(rows(network, seconds), notes)


def rows(network: str, seconds: dict[str, list[float]]) -> list[Row]:
    what = f"stage-1 step, {network}"
    target = TARGETS[network]
    found = [
        row(what, "plain loop", "images/s", seconds["ours"], seconds["plain"], target),
        row(what, "channels_last, v2 on tensors", "images/s", seconds["ours"], seconds["best known"]),
        row(what, "bare forward + backward", "images/s", seconds["ours"], seconds["bare"], SHARE_TARGET),
    ]
    if "compiled" in seconds:
        compiled = seconds["compiled"]
        name = f"{what}, --compile"
        found.append(row(name, "plain loop", "images/s", compiled, seconds["plain"], COMPILED_TARGET))
    return found


def break_even(bench: Bench, network: str, seconds: dict[str, list[float]], compiling: float) -> str:
    """After how many epochs compiling has paid, as a line."""
    saved = len(bench.data.train) * (median(seconds["ours"]) - median(seconds["compiled"]))
    pays = f"pays after {compiling / saved:.1f} epochs" if saved > 0 else "never pays here"
    return (
        f"stage 1, {network}: compiling a step took {compiling:.0f} s, left out of the ratio; it {pays}, "
        "evaluation left aside"
    )
