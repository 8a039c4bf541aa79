"""The cost table of docs/large_sets.md: operations and bytes are counted, durations are estimated.

python -m benchmarks.studies.scale            prints the table
python -m benchmarks.studies.scale --write    puts it into docs/large_sets.md
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import ROOT
from models import build_model
from utils.base.pages import put
from utils.settings.presets import preset_for

PAGE = ROOT / "docs" / "large_sets.md"
PIXELS, WIDTH = 224, 2048
# images/s of ResNet-50 in training: as published for one RTX 3090 (timm, 224 px, AMP, channels last), doubled
# for an H100. The factor is our assumption: memory bandwidth, which bounds this network, is 3.6 times as high
H100_TRAIN = 2 * 1218
# images/s of ResNet-50 measured on two cores of an AMD EPYC, batch 32, fp32, channels last
CPU_TRAIN, CPU_FORWARD = 4.85, 14.9
DECODED = 677  # images/s a core: 1 / 1478 µs (docs/speed.md)
STEP_H100, STEP_CPU = (
    2e-3,
    0.274,
)  # seconds of a head's step, at 8142 classes: assumed; measured


class Set(NamedTuple):
    """Images of a data set, and the networks that its preset or the field takes."""

    name: str
    train: int
    scored: int  # validation and test images
    validation: int
    networks: tuple[str, ...]


SETS = (
    Set("imagenet_lt", 115_846, 70_000, 20_000, ("resnet50", "resnext50_32x4d")),
    Set("inaturalist18", 437_513, 24_426, 0, ("resnet50",)),
    Set("places_lt", 62_500, 43_800, 7_300, ("resnet152",)),
)


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
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s")
    )
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def rows() -> list[str]:
    """Lines of a Markdown table."""
    base = forward_flops("resnet50", 1000)
    header = (
        "data set, network | stage | operations | bytes on disk | cores to feed one H100 | 1 H100 | 8 H100"
    )
    lines = [f"| {header} | two CPU cores |", "|---" * 8 + "|"]
    for one in SETS:
        preset = preset_for(one.name)
        for network in one.networks:
            flops = forward_flops(network, preset["num_class"])
            slower = flops / base
            epochs, views = preset["epochs"], preset["views"] + 1
            trained, seen = epochs * one.train, epochs * one.validation + one.scored
            total = (3 * trained + seen) * flops
            gpu = (trained + seen / 3) * slower / H100_TRAIN
            cpu = trained * slower / CPU_TRAIN + seen * slower / CPU_FORWARD
            cores = H100_TRAIN / slower / DECODED
            lines.append(
                f"| {one.name}, {network} | 1, {epochs} epochs | {total / 1e15:,.0f} PFLOP | – | "
                f"{cores:.1f} | {duration(gpu)} | {duration(gpu / 8)} | {duration(cpu)} |"
            )
            images = views * one.train + one.scored
            gpu, cpu = (images * slower / rate for rate in (3 * H100_TRAIN, CPU_FORWARD))
            lines.append(
                f"| | 2, features ({views} passes) | {images * flops / 1e15:,.1f} PFLOP | "
                f"{images * WIDTH * 2 / 1e9:.2f} GB | {3 * cores:.1f} | {duration(gpu)} | "
                f"{duration(gpu / 8)} | {duration(cpu)} |"
            )
            steps = preset["finetune_epoch"] * -(-one.train // preset["batch_size"])
            head = 4 * preset["batch_size"] * WIDTH * preset["num_class"]
            relative = head / (4 * 512 * WIDTH * 8142)
            lines.append(
                f"| | 2, one head ({steps:,} steps) | {steps * head / 1e12:,.0f} TFLOP | "
                f"{4 * WIDTH * preset['num_class'] / 1e6:.0f} MB | – | {duration(steps * STEP_H100)} | – | "
                f"{duration(steps * STEP_CPU * relative)} |"
            )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/large_sets.md")
    table = "\n".join(rows()) + "\n"
    if parser.parse_args(argv).write:
        put(PAGE, "costs", "python -m benchmarks.studies.scale --write", table)
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
