"""Heads over the features of the released pack: a whole command against plain runs, and one head more.

`main_stage2.py --method all` against as many plain runs (benchmarks/plain_head.py), each a process of its
own. Of these a few are timed in every turn and stand for all: `ce` and `los` for what is trained, `stage1`
for what only scores; a linear layer is the least that any head computes. In the process, 20 epochs of one
further head against a plain loop over the same cached features.
"""

import os
import re
import subprocess
import sys
import tempfile
from copy import deepcopy
from itertools import count

import torch

from benchmarks import baselines, common
from benchmarks.common import ROOT, SEED, Bench, DiffersError
from benchmarks.table import Findings, Row, row
from losses import build_loss
from utils.base.seeding import epoch_order
from utils.engine.loop import cosine_lr
from utils.features.frozen import pack_representation
from utils.heads.head import HeadRun
from utils.heads.plan import plan_heads
from utils.heads.stack import start_heads
from utils.packs.pack import Pack, read_pack
from utils.run.checkpoint import RELEASED
from utils.settings.config import Config, resolve
from utils.settings.methods import METHODS
from utils.settings.parse import STAGE2

PACK = RELEASED / "cifar100_lt" / "IR=100" / "resnet32_features.safetensors"
EPOCHS, TARGET, POINTS, TOLERANCE = 20, 4.0, 0.3, 1e-3
TRAINED, SCORED = ("ce", "los"), "stage1"  # the plain runs that are timed
HEAD_TURNS = 9


def run(bench: Bench, network: str | None, turns: int) -> Findings:
    """The rows; the network is the pack's."""
    whole, note = whole_commands(bench, turns)
    further, second = further_head(1 if bench.quick else HEAD_TURNS)
    return Findings([whole, further], [note, second])


def whole_command(methods: str, *words: str) -> str:
    """Run main_stage2.py on the pack, from the start of Python to its end; what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main_stage2.py", "--features", str(PACK), "--method", methods]
        command += ["--budget", "equal", "--device", "cpu", "--out", folder, "--ckpt_dir", folder, *words]
        return output_of(command)


def plain_run(method: str, epochs: int, threads: int) -> str:
    """One plain run in a process of its own; what it printed."""
    command = [sys.executable, "-m", "benchmarks.plain_head", "--features", str(PACK), "--method", method]
    return output_of([*command, "--epochs", str(epochs), "--threads", str(threads)])


def output_of(command: list[str]) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def whole_commands(bench: Bench, turns: int) -> tuple[Row, str]:
    """The row of the whole command, and its check."""
    epochs, methods = (1, list(TRAINED)) if bench.quick else (EPOCHS, list(METHODS))
    heads = sum(METHODS[name].trained for name in methods)
    scoring = sum(not METHODS[name].trained for name in {SCORED, *methods})
    words = ["--seed", str(SEED), "--finetune_epoch", str(epochs)] if bench.quick else ["--seed", str(SEED)]
    named = ",".join(methods) if bench.quick else "all"
    choices = {n: lambda n=n: plain_run("ce", 2, n) for n in (1, torch.get_num_threads())}
    threads = 1 if bench.quick else common.fastest(choices, warm=False)
    said = {}

    def plain(method: str) -> None:
        said[method] = plain_run(method, epochs, threads)

    works = {name: lambda name=name: plain(name) for name in (*TRAINED, SCORED)}
    works["ours"] = lambda: said.update(ours=whole_command(named, *words))
    seconds = common.turns_of(works, turns, bench.tick)
    worst = check_same(said)
    plain_seconds = [
        heads * sum(trained) / len(TRAINED) + scoring * scored
        for *trained, scored in zip(*(seconds[name] for name in (*TRAINED, SCORED)), strict=True)
    ]
    what = f"main_stage2.py --method {named} --budget equal, {epochs} epochs, pack"
    against = f"{heads} + {scoring} plain runs"
    note = (
        f"pack: test accuracies of {' and '.join(TRAINED)} differ by {worst:.2f} points at most from "
        f"plain runs', which see other orders of batches (tolerance {POINTS:g}); plain = {heads} x mean of "
        f"{' and '.join(TRAINED)} + {scoring} x {SCORED}, each timed in every turn with {threads} thread(s), "
        "its faster"
    )
    return row(what, against, "s", seconds["ours"], plain_seconds, TARGET), note


def check_same(said: dict[str, str]) -> float:
    """The largest difference in points between test accuracies of plain runs and of ours.

    Raises:
        DiffersError: more than another order of batches makes.
    """
    ours = dict(re.findall(r"^test method=(\w+) .*?overall=([\d.]+)", said["ours"], flags=re.MULTILINE))
    plain = {name: re.findall(r"^accuracy=([\d.]+)", said[name], flags=re.MULTILINE) for name in TRAINED}
    differences = {name: abs(float(ours[name]) - float(plain[name][0])) for name in TRAINED}
    name = max(differences, key=differences.get)
    if differences[name] > POINTS:
        raise DiffersError(f"accuracy of {name}: {differences[name]:.2f} points from a plain run's")
    return differences[name]


def los_head(pack: Pack) -> tuple[HeadRun, Config]:
    given = {"features": PACK, "method": "los", "seed": SEED, "device": "cpu"}
    config = resolve(STAGE2, given, pack.known)
    plans = [plan for plan in plan_heads(config)[0] if plan.named]
    return start_heads(plans, pack_representation(pack, torch.device("cpu")), [], config)[0], config


def largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max())


def further_head(turns: int) -> tuple[Row, str]:
    """The row of one more los head against the best-known practice, and its check; one thread each."""
    pack = read_pack(PACK)
    head, config = los_head(pack)
    plain = deepcopy(head.head)
    features, labels, epochs = pack.train[0].float(), pack.train_labels, count()
    loss_fn = build_loss("los", label_smooth=config.label_smooth)
    optimizer = torch.optim.SGD(plain.parameters(), head.lr, config.momentum)
    start = plain.weight.detach().clone()

    def run_plain(epoch: int) -> None:
        optimizer.param_groups[0]["lr"] = cosine_lr(head.lr, epoch % EPOCHS, EPOCHS)
        order = epoch_order(SEED, epoch, len(labels))
        baselines.train_head(plain, features, labels, order, config.batch_size, loss_fn, optimizer)

    def run_ours(epoch: int) -> None:
        head.run_epoch(epoch % EPOCHS, [])

    with common.threads(1):
        run_plain(0)
        run_ours(0)
        difference = largest(plain.weight - head.head.weight) / largest(plain.weight - start)
        if head.failed or not difference < TOLERANCE:
            raise DiffersError(f"one more head differs by {difference:.1e} of the way from a plain loop's")
        works = {"ours": lambda: run_ours(next(epochs)), "plain": lambda: run_plain(next(epochs))}
        seconds = common.alternate(works, turns)
    found = row(
        "one further los head on the pack, 1 thread",
        "plain loop over cached features",
        "ms an epoch",
        seconds["ours"],
        seconds["plain"],
    )
    note = (
        f"pack: after an epoch in the same order one further head differs by {difference:.1e} of the way it "
        f"went (tolerance {TOLERANCE:g}); the plain loop keeps no loss, no accuracy and no check of either"
    )
    return found, note
