"""Make the folders that --dataset folder takes: of a set that is held in memory, or of one folder a class.

    python -m datasets.to_folder --dataset digits_lt --to my_images
    python -m datasets.to_folder --dataset cifar100_lt --imb_ratio 1 --to cifar_images
    python -m datasets.to_folder --from photos --to my_images --test_fraction 0.2 --val_fraction 0.1

Of a set in memory it writes train/CLASS/NUMBER.png and test/CLASS/NUMBER.png, the long-tailed training set of
the ratio; names sort as the images lie in memory, class by class. Photographs are copied under their names,
to train/, val/ and test/ as the two fractions would part them in a run.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datasets import DATASETS, FILE_DATASETS, FileSet, LongTailedData, build_data
from datasets.fetch import scratch_folder
from utils.base.errors import UserError, exit_cleanly, reason, say
from utils.settings.parse import Parser
from utils.settings.presets import preset_for

_SHARES = {"test_fraction": 0.2, "val_fraction": 0.1}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tree."""
    summary = __doc__.splitlines()[0]
    parser = Parser(prog="python -m datasets.to_folder", description=summary, allow_abbrev=False)
    in_memory = [name for name in DATASETS if name not in FILE_DATASETS]
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", choices=in_memory)
    source.add_argument("--from", dest="photographs", type=Path, help="a folder with one for each class")
    for part, share in _SHARES.items():
        parser.add_argument(f"--{part}", type=float, help=f"with --from [{share}]")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder with the CIFAR files")
    parser.add_argument("--imb_ratio", type=float, help="1: the balanced set (default: the data set's usual)")
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    given = parser.parse_args(argv)
    if os.path.lexists(given.to):
        raise UserError(f"{given.to} exists already: name a folder to be made")
    said = {name: value for name, value in vars(given).items() if value is not None}
    if idle := said.keys() & (_SHARES if given.dataset else {"imb_ratio"}):
        raise UserError(f"--{min(idle)} has no use with {'--dataset' if given.dataset else '--from'}")
    if given.photographs:
        if given.photographs.resolve() in given.to.resolve().parents:
            raise UserError(f"--to {given.to} lies among the images of --from: name another place")
        there = {part: (given.photographs / part).is_dir() for part in ("train", "val", "test")}
        if there.pop("train") and any(there.values()):
            ready = "has its parts already: --data_dir takes it as it is"
            raise UserError(f"{given.photographs} {ready}")
        shares = {name: said.get(name, share) for name, share in _SHARES.items()}
        data = build_data("folder", given.photographs, val_source="heldout", **shares)
    else:
        ratio = preset_for(given.dataset)["imb_ratio"] if given.imb_ratio is None else given.imb_ratio
        data = build_data(given.dataset, given.data_dir, ratio, val_source="none")
    try:
        with scratch_folder(given.to.parent) as scratch:
            write_tree(data, scratch / "tree")
            os.replace(scratch / "tree", given.to)  # whole, or not at all
    except OSError as error:
        where = error.filename or given.to  # an image that is not there is no fault of the target
        raise UserError(f"{given.to} cannot be made: {where}: {reason(error)}") from error
    for part, images in data.parts.items():
        say(f"{given.to / part}: {len(images)} images of {data.num_classes} classes")


def write_tree(data: LongTailedData, target: Path) -> None:
    """The images of every part as class folders below `target`. Raises: OSError."""
    digits = len(str(data.num_classes - 1))
    for part, images in data.parts.items():
        on_disk = isinstance(images, FileSet)
        for number, label in enumerate(images.labels.tolist()):
            name = data.class_names[label]
            ranked = f"{label:0{digits}}" + f"_{name}" * (name != str(label))
            made = f"{ranked}/{number:0{max(5, len(str(len(images))))}}.png"
            place = target / part / (images.paths[number].removeprefix("train/") if on_disk else made)
            place.parent.mkdir(parents=True, exist_ok=True)
            if on_disk:
                shutil.copy2(images.path(number), place)
                continue
            pixels = images.images[number]
            pixels = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(place)


if __name__ == "__main__":
    exit_cleanly(main)
