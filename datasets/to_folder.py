"""A data set that is held in memory as a folder of PNG files: an example of --dataset folder, and its check.

    python -m datasets.to_folder --dataset digits_lt --to my_images
    python -m datasets.to_folder --dataset cifar100_lt --imb_ratio 1 --to cifar_images

Writes train/CLASS/NUMBER.png and test/CLASS/NUMBER.png, the long-tailed training set of the ratio. Names sort
as the images lie in memory, class by class.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datasets import DATASETS, FILE_DATASETS, LongTailedData, build_data
from datasets.fetch import scratch_folder
from utils.base.errors import UserError, exit_cleanly, say
from utils.settings.parse import Parser
from utils.settings.presets import preset_for


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tree."""
    summary = __doc__.splitlines()[0]
    parser = Parser(prog="python -m datasets.to_folder", description=summary, allow_abbrev=False)
    in_memory = [name for name in DATASETS if name not in FILE_DATASETS]
    parser.add_argument("--dataset", choices=in_memory, required=True)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder with the CIFAR files")
    parser.add_argument("--imb_ratio", type=float, help="1: the balanced set (default: the data set's usual)")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    given = parser.parse_args(argv)
    if os.path.lexists(given.to):
        raise UserError(f"{given.to} exists already: name a folder to be made")
    ratio = preset_for(given.dataset)["imb_ratio"] if given.imb_ratio is None else given.imb_ratio
    data = build_data(given.dataset, given.data_dir, ratio, val_source="none")
    try:
        with scratch_folder(given.to.parent) as scratch:
            write_tree(data, scratch / "tree")
            os.replace(scratch / "tree", given.to)  # whole, or not at all
    except OSError as error:
        raise UserError(f"{given.to} cannot be written: {error.strerror or error}") from error
    for part, images in (("train", data.train), ("test", data.test)):
        say(f"{given.to / part}: {len(images)} images of {data.num_classes} classes")


def write_tree(data: LongTailedData, target: Path) -> None:
    """The images of a set in memory as class folders below `target`. Raises: OSError."""
    digits = len(str(data.num_classes - 1))
    for part, images in (("train", data.train), ("test", data.test)):
        for number, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            name = data.class_names[label]
            ranked = name if name == str(label) else f"{label:0{digits}}_{name}"
            folder = target / part / ranked
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(folder / f"{number:05}.png")


if __name__ == "__main__":
    exit_cleanly(main)
