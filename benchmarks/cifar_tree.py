"""CIFAR-100 as a folder of PNG files, to compare the way over files with the one in memory on the same pixels.

    python -m benchmarks.cifar_tree --data_dir data --to /tmp/cifar_png

Writes /tmp/cifar_png/{train,test}/CLASS/NUMBER.png, all 60,000 images; the names sort in the order of the
files of CIFAR-100, classes by label.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.io import write_png

from datasets.cifar_files import read_cifar
from utils.errors import exit_cleanly


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tree.

    Raises:
        UserError: CIFAR-100 is not there, see `read_cifar`.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args(argv)
    content = read_cifar("cifar100", given.data_dir)
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(*content[part], strict=True)):
            folder = given.to / part / f"{label:02}_{content['class_names'][label]}"
            folder.mkdir(parents=True, exist_ok=True)
            write_png(torch.from_numpy(image), str(folder / f"{number:05}.png"))
        print(f"{given.to / part}: {number + 1} images")


if __name__ == "__main__":
    exit_cleanly(main)
