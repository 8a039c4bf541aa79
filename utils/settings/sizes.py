"""Defaults for a user's own images by how many and how large they are: small sets train small networks.

What is chosen follows from the files alone, never from a clock or from free memory, so every run of the same
images finds the same. No file is decoded; what cannot be read is left to the run to complain of.
"""

import math
import os
import warnings
from functools import cache
from pathlib import Path
from statistics import median

from datasets import OWN_DATASETS
from utils.base.files import open_regular

# what datasets.images.decode reads, without Pillow, which most runs have no need of (a test compares)
PHOTOGRAPHS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
)
LARGE = 20_000  # images from which on the presets hold as they are
STEPS = 20  # at least, an epoch
_TOTAL_STEPS = 2000  # of a training
_SAMPLED = 64
_MOST = 1 << 24  # bytes: a larger list is taken for a large set


def by_size(said: dict) -> tuple[str, dict]:
    """Where the values come from, in words, and the defaults for the images that settings name, if small."""
    if said.get("dataset") not in OWN_DATASETS or said.get("features") or said.get("imb_ratio"):
        return "", {}
    listed = said.get("train_list")
    found = _survey(Path(said.get("data_dir", "data")), Path(listed) if listed else None)
    if found is None:
        return "", {}
    images, side = found
    held_out = said.get("val_fraction") or 0.1 * (said.get("val_source") == "heldout")
    trained = images * (1 - (said.get("test_fraction") or 0)) * (1 - held_out)
    batch = 2 ** min(max(math.floor(math.log2(max(trained / STEPS, 1))), 3), 8)
    small = side <= 40  # icons and the like, which are seen whole
    size = max(16, 8 * round(side / 8)) if small else 64 if images < 5000 else 96
    chosen = {
        "network": "resnet20" if small else "resnet18",
        "stem": "small" if small else "imagenet",
        "image_size": size,
        "augment": "pad_crop" if small else "resized_crop",
        "batch_size": batch,
        "epochs": min(max(10 * round(_TOTAL_STEPS * batch / max(trained, 1) / 10), 60), 200),
        "lr": min(0.1, batch / (320 if small else 800)),
        "warmup_epochs": 0 if small else 2,
        "wd": 1e-3,
    }
    return f"for {images:,} images with sides of {side:.0f} pixels, unless you say otherwise", chosen


@cache
def _survey(data_dir: Path, train_list: Path | None) -> tuple[int, float] | None:
    """How many images there are, and the median of their shorter sides; None: many, or unknown."""
    paths = _listed(data_dir, train_list) if train_list else _below(data_dir)
    if not 0 < len(paths) < LARGE:
        return None
    stride = -(-len(paths) // _SAMPLED)
    sides = [side for path in sorted(paths)[::stride] if (side := _shorter_side(path))]
    return (len(paths), median(sides)) if sides else None


def _below(data_dir: Path) -> list[str]:
    """The images in train/, or where there is none in all folders; none where that is no small matter."""
    found: list[str] = []
    root = data_dir / "train"
    walk = os.walk(root if root.is_dir() else data_dir, followlinks=True)  # links may lead in a circle
    for number, (folder, _, names) in enumerate(walk):
        seen = (name for name in names if not name.startswith("."))
        found += (os.path.join(folder, name) for name in seen if name.lower().endswith(PHOTOGRAPHS))
        if number + len(found) >= LARGE:
            return []
    return found


def _listed(data_dir: Path, train_list: Path) -> list[str]:
    place = train_list if train_list.exists() else data_dir / train_list
    try:
        with open_regular(place) as handle:
            content = handle.read(_MOST)
    except Exception:  # the run says what is wrong
        return []
    rows = [] if len(content) == _MOST else [line.split() for line in content.splitlines()]
    return [os.path.join(data_dir, os.fsdecode(b" ".join(row[:-1]))) for row in rows if row]


def _shorter_side(path: str) -> int | None:
    from PIL import Image  # here: most runs need none

    try:
        with open_regular(path) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return min(Image.open(handle).size)
    except Exception:  # a broken file can raise nearly anything; the run says so
        return None
