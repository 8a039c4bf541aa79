"""The cost table of docs/large_sets.md: operations and bytes are counted, durations are estimated.

`python -m benchmarks.studies.scale` puts it there.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import ROOT
from datasets.listed.published import IMAGENET_LT, INATURALIST18, PLACES_LT
from models import build_model
from utils.base.errors import exit_cleanly
from utils.base.pages import put
from utils.settings.parse import Parser
from utils.settings.presets import preset_for

COMMAND, PAGE = "python -m benchmarks.studies.scale", ROOT / "docs" / "large_sets.md"
PIXELS, WIDTH = 224, 2048
# images/s of ResNet-50 in training: as published for one RTX 3090 (timm, 224 px, AMP, channels last), doubled
# for an H100. The factor is our assumption: memory bandwidth, which bounds this network, is 3.6 times as high
H100_TRAIN = 2 * 1218
# images/s of ResNet-50 measured on two cores of an AMD EPYC, batch 32, fp32, channels last
CPU_TRAIN, CPU_FORWARD = 4.85, 14.9
DECODED = 677  # images/s a core: 1 / 1478 µs (docs/speed.md)
STEP_H100, STEP_CPU = 2e-3, 0.274  # seconds of a head's step, at 8142 classes: assumed; measured
# with the networks that a set's preset or the field takes
SETS = ((IMAGENET_LT, "resnet50"), (IMAGENET_LT, "resnext50_32x4d"))
SETS += ((INATURALIST18, "resnet50"), (PLACES_LT, "resnet152"))


def forward_flops(network: str, num_classes: int) -> float:
    """Operations of one image, a multiplication and an addition counted as two."""
    with torch.device("meta"):
        model = build_model(network, num_classes, stem="imagenet").eval()
        image = torch.empty(1, 3, PIXELS, PIXELS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops()


def duration(seconds: float) -> str:
    """Two figures and a unit: estimates deserve no more."""
    size, unit = (3600, "h") if seconds >= 3600 else (60, "min") if seconds >= 60 else (1, "s")
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def rows() -> list[str]:
    """Lines of a Markdown table."""
    base = forward_flops("resnet50", 1000)
    header = "data set, network | stage | operations | bytes on disk | cores to feed one H100 | 1 H100"
    lines = [f"| {header} | 8 H100 | two CPU cores |", "|---" * 8 + "|"]
    for one, network in SETS:
        preset, train = preset_for(one.name), one.images["train"]
        validation, scored = one.images.get("val", 0), sum(one.images.values()) - train
        flops = forward_flops(network, preset["num_class"])
        slower = flops / base
        epochs, views = preset["epochs"], preset["views"] + 1
        trained, seen = epochs * train, epochs * validation + scored
        total = (3 * trained + seen) * flops
        gpu = (trained + seen / 3) * slower / H100_TRAIN
        cpu = trained * slower / CPU_TRAIN + seen * slower / CPU_FORWARD
        cores = H100_TRAIN / slower / DECODED
        lines.append(
            f"| {one.name}, {network} | 1, {epochs} epochs | {total / 1e15:,.0f} PFLOP | – | "
            f"{cores:.1f} | {duration(gpu)} | {duration(gpu / 8)} | {duration(cpu)} |"
        )
        images = views * train + scored
        gpu, cpu = (images * slower / rate for rate in (3 * H100_TRAIN, CPU_FORWARD))
        lines.append(
            f"| | 2, features ({views} passes) | {images * flops / 1e15:,.1f} PFLOP | "
            f"{images * WIDTH * 2 / 1e9:.2f} GB | {3 * cores:.1f} | {duration(gpu)} | "
            f"{duration(gpu / 8)} | {duration(cpu)} |"
        )
        steps = preset["finetune_epoch"] * -(-train // preset["batch_size"])
        head = 4 * preset["batch_size"] * WIDTH * preset["num_class"]
        relative = head / (4 * 512 * WIDTH * 8142)
        lines.append(
            f"| | 2, one head ({steps:,} steps) | {steps * head / 1e12:,.0f} TFLOP | "
            f"{4 * WIDTH * preset['num_class'] / 1e6:.0f} MB | – | {duration(steps * STEP_H100)} | – | "
            f"{duration(steps * STEP_CPU * relative)} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    Parser(prog=COMMAND, description=__doc__.splitlines()[0]).parse_args(argv)
    put(PAGE, "costs", COMMAND, "\n".join(rows()) + "\n")


if __name__ == "__main__":
    exit_cleanly(main)
