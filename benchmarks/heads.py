"""Many heads over one representation: whole commands on the released pack, and what a further head costs.

    python -m benchmarks.heads [--data_dir data] [--repeats 3]

About four minutes on two idle cores. Whole commands, as a user runs them: every method for 20 epochs on the
pack of ResNet-32 (target: under 60 s), and with three seeds (under 150 s). In the process: a feature pass of
ResNet-32 over a fresh view against an epoch of every head (all of them with fresh views: at most 1.5 times
the time of los alone), and 20 epochs of one head against a stage 2 that runs the backbone again for it
(the same feature pass every epoch, no gradients: under 1/200).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks import common
from benchmarks.pack import EPOCHS, PACK, whole_command
from datasets.images.in_memory import DeviceImages
from utils.features.frozen import pack_representation
from utils.features.views import TrainFeatures
from utils.heads.plan import plan_heads
from utils.heads.stack import start_heads, threads_for
from utils.packs.pack import read_pack
from utils.settings.config import resolve
from utils.settings.parse import STAGE2

NETWORK = "resnet32"


def command_seconds(*words: str) -> float:
    """Seconds of a main_stage2.py with every method."""
    started = time.perf_counter()
    whole_command("all", *words)
    return time.perf_counter() - started


def head_seconds(repeats: int) -> dict[str, float]:
    """Median seconds of an epoch of each trained method on the pack."""
    pack = read_pack(PACK)
    given = {"features": PACK, "method": "all", "budget": "equal", "seed": 0, "device": "cpu"}
    config = resolve(STAGE2, given, pack.known)
    plans = [plan for plan in plan_heads(config)[0] if plan.method.trained]
    frozen = pack_representation(pack, torch.device("cpu"))
    heads = start_heads(plans, frozen, [], config)
    seconds = {head.plan.method.name: [] for head in heads}
    with threads_for(frozen):
        for epoch in range(repeats + 1):  # the first one warms up
            for head in heads:
                before = head.seconds
                head.run_epoch(epoch, [])
                seconds[head.plan.method.name].append(head.seconds - before)
    return {name: median(values[1:]) for name, values in seconds.items()}


def pass_seconds(data_dir: Path, repeats: int) -> tuple[float, str]:
    """Median seconds of the feature pass over one fresh view of the training set, and words for the data."""
    data, what = common.load_cifar100_lt(data_dir)
    model = common.fresh_model(NETWORK, data.train, data.views)
    model.to(memory_format=torch.channels_last).requires_grad_(False)
    training = TrainFeatures(model, DeviceImages(data.train, data.views), 0, None)
    seconds = common.alternate({"pass": _next_view(training)}, repeats)
    return median(seconds["pass"]), what


def _next_view(training: TrainFeatures) -> object:
    epochs = iter(range(1_000_000))
    return lambda: training.of_epoch(next(epochs))


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--repeats", type=common.positive, default=3, help="timings of each")
    args = parser.parse_args(argv)
    one, three = command_seconds("--seed", "0"), command_seconds("--seeds", "0,1,2")
    backbone, what = pass_seconds(args.data_dir, args.repeats)
    heads = head_seconds(args.repeats)
    every, los = sum(heads.values()), heads["los"]
    lines = [
        "| | measured | target |",
        "| --- | --- | --- |",
        f"| every method, {EPOCHS} epochs each, on the pack: whole command | {one:.0f} s | under 60 s |",
        f"| the same with three seeds | {three:.0f} s | under 150 s |",
        f"| fresh views, an epoch: every method / los alone | {(backbone + every) / (backbone + los):.2f} "
        "| at most 1.5 |",
        f"| one more los head / a stage 2 that runs the backbone for it | 1/{(backbone + los) / los:.0f} "
        "| under 1/200 |",
        f"| an epoch: feature pass, {len(heads)} heads, los | {backbone:.1f}, {every:.2f}, {los:.3f} s | |",
    ]
    slowest = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in sorted(heads.items()))
    common.publish(
        [f"## Heads over one representation, {NETWORK}, {what}", "\n".join(lines), f"ms an epoch: {slowest}"],
        args.out,
    )


if __name__ == "__main__":
    main()
