"""Small trees of real images in the true layouts of the data sets that are read from disk.

Every image is a crop of one of scikit-learn's two photographs, tinted by its class, so that a tiny network
can tell the classes apart. They are parts of the published sets: building those needs allow_partial=True.
Every builder gives `root` back.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets import FileSet, build_data
from datasets.listed.published import Published
from utils.base.errors import UserError

Entry = tuple[str, int]  # path relative to the root, label
Lists = dict[str, list[Entry]]

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041")
SCENES = ("airfield", "airplane_cabin", "arena-hockey", "bakery-shop", "canal-urban", "castle", "zen_garden")
PETS = ("ant", "bee", "cat")
KINGDOMS = ("Plantae", "Aves", "Insecta")
INAT_LISTS = {"train": "iNaturalist18_train.txt", "val": "iNaturalist18_val.txt"}
INAT_JSON = {"train": "train2018.json", "val": "val2018.json"}


# ---- images ----


def tinted_crop(label: int, number: int) -> Image.Image:
    """Crop `number` for class `label`: RGB, 40 to 80 pixels a side."""
    draws = np.random.default_rng([label, number])
    photo = _photos()[draws.integers(2)]
    height, width = draws.integers(40, 81, 2)
    top, left = draws.integers(0, photo.shape[0] - height), draws.integers(0, photo.shape[1] - width)
    crop = photo[top : top + height, left : left + width]
    # hues a golden angle apart: no two classes alike
    tint = 0.55 + 0.45 * np.cos(2 * np.pi * (0.381966 * label + np.array([0, 1 / 3, 2 / 3])))
    return Image.fromarray((crop * tint).astype(np.uint8))


@cache
def _photos() -> list[np.ndarray]:
    return load_sample_images().images


def write_images(root: Path, entries: Sequence[Entry], places: Sequence[str] | None = None) -> None:
    """One image for each entry, as its suffix says; at `places` below root where these are others."""
    for number, (name, label) in enumerate(entries):
        target = root / (places[number] if places else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        tinted_crop(label, number).save(target)


def write_list(path: Path, entries: Sequence[Entry]) -> None:
    """A split list: `path label` lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {label}\n" for name, label in entries))


# ---- ImageNet and Places ----


def imagenet_tree(root, counts=(12, 6, 3), test_per_class=4, val_per_class=2, flat_val=False, kaggle=False):
    """ImageNet and the lists of ImageNet-LT; up to 7 classes.

    `flat_val`: val/ without class folders. `kaggle`: images in ILSVRC/Data/CLS-LOC.
    """
    train_name, test_name = "train/{0}/{0}_{1}.JPEG", "val/{0}/ILSVRC2012_val_{1:08}.JPEG"
    parts = _listed(WNIDS, train_name, test_name, counts, test_per_class, val_per_class)
    for part, entries in parts.items():
        write_list(root / f"ImageNet_LT_{part}.txt", entries)
        places = [_flat(name) if flat_val else name for name, _ in entries]
        write_images(root / "ILSVRC/Data/CLS-LOC" if kaggle else root, entries, places)
    return root


def places_tree(root, counts=(12, 6, 3), test_per_class=4, val_per_class=2, layout="folders") -> Path:
    """Places365 and the lists of Places-LT; `layout`: folders, flat (only val/), 256, large (as shipped)."""
    train_name, test_name = "train/{0}/{1:08}.jpg", "val/{0}/Places365_val_{1:08}.jpg"
    parts = _listed(SCENES, train_name, test_name, counts, test_per_class, val_per_class)
    shift = {"folders": str, "flat": _flat}.get(layout, lambda name: _shipped(name, layout))
    for part, entries in parts.items():
        write_list(root / f"Places_LT_{part}.txt", entries)
        write_images(root, entries, [shift(name) for name, _ in entries])
    return root


def _listed(folders, train_name, test_name, counts, test, val) -> Lists:
    """Entries by part; validation images come out of the training images, as in the published lists."""
    parts: Lists = {"train": [], "val": [], "test": []}
    for label, count in enumerate(counts):
        name = folders[label]
        parts["train"] += [(train_name.format(name, 10 + i), label) for i in range(count)]
        parts["val"] += [(train_name.format(name, 5000 + i), label) for i in range(val)]
        parts["test"] += [(test_name.format(name, 100 * label + i + 1), label) for i in range(test)]
    return parts


def _flat(name: str) -> str:
    return f"val/{name.rpartition('/')[2]}" if name.startswith("val/") else name


def _shipped(name: str, size: str) -> str:
    part, folder, image = name.split("/")
    if part == "val":
        return f"val_{size}/{image}"
    return f"data_{size}/{folder[0]}/{folder.replace('-', '/')}/{image}"


def published_lists(published: Published) -> Lists:
    """Entries of the published totals, class by class; no image is there."""
    classes, (train, val, test) = published.num_classes, published.images.values()
    sizes = np.full(classes, published.least)
    sizes[0] = published.most
    share, rest = divmod(train - sizes.sum(), classes - 2)
    sizes[1:-1] += share
    sizes[1 : 1 + rest] += 1
    every = {
        "train": sizes,
        "val": np.full(classes, val // classes),
        "test": np.full(classes, test // classes),
    }
    return {
        part: [(f"{part}/c{k:04}/{i}.jpg", k) for k, size in enumerate(counts) for i in range(size)]
        for part, counts in every.items()
    }


# ---- iNaturalist ----


def inat_tree(root, counts=(12, 6, 3), test_per_class=4, kind="json", layout="official", lists=None) -> Path:
    """iNaturalist 2018 with its annotations (json), text lists (txt) or both, in `root` or `lists`.

    `layout`: official (train_val2018/), content (what is in that), torchvision (2018/).
    """
    parts = inat_lists(counts, test_per_class)
    first = {"official": "train_val2018/", "content": "", "torchvision": "2018/"}[layout]
    for part, entries in parts.items():
        if kind != "json":
            write_list((lists or root) / INAT_LISTS[part], entries)
        if kind != "txt":
            write_annotations((lists or root) / INAT_JSON[part], entries)
        places = [first + name.removeprefix("train_val2018/") for name, _ in entries]
        write_images(root, entries, places)
    return root


def inat_lists(counts: Sequence[int], test_per_class: int) -> Lists:
    """Entries of train and val in mixed order, as the official annotations have them."""
    parts: Lists = {}
    for part, sizes in (("train", counts), ("val", [test_per_class] * len(counts))):
        images = [(label, i) for label, size in enumerate(sizes) for i in range(size)]
        names = [(hashlib.md5(f"{part} {label} {i}".encode()).hexdigest(), label) for label, i in images]
        folder = "train_val2018/{}/{}/{}.jpg".format
        parts[part] = [(folder(KINGDOMS[label % 3], label, name), label) for name, label in sorted(names)]
    return parts


def write_annotations(path: Path, entries: Sequence[Entry], **replaced: object) -> None:
    """Official annotations: ids as the file has them, annotations in the order of the images."""
    content = annotations(entries) | replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def annotations(entries: Sequence[Entry]) -> dict:
    """The content of an official file; the category ids are the labels."""
    photo = {"license": 3, "rights_holder": "Ana Muñoz", "height": 60, "width": 80}
    labels = sorted({label for _, label in entries})
    return {
        "info": {"description": "as iNaturalist 2018", "year": 2018, "version": "1.0"},
        "images": [{"id": 9 + i, "file_name": name} | photo for i, (name, _) in enumerate(entries)],
        "licenses": [{"id": 3, "name": "Attribution-NonCommercial License", "url": "http://example.org/by"}],
        "annotations": [
            {"id": 9 + i, "image_id": 9 + i, "category_id": label} for i, (_, label) in enumerate(entries)
        ],
        "categories": [
            {"id": label, "name": f"Species {label}", "supercategory": KINGDOMS[label % 3]}
            for label in labels
        ],
    }


# ---- a user's own images ----


def folder_tree(root, classes=PETS, counts=(12, 6, 3), test_per_class=4, val_per_class=0, suffix=".jpg"):
    """Class folders under train/ and test/, under val/ too where val_per_class is not 0."""
    parts = _own_parts("{part}/{name}/{i:03}" + suffix, classes, counts, test_per_class, val_per_class)
    for entries in parts.values():
        write_images(root, entries)
    return root


def list_tree(root, classes=PETS, counts=(12, 6, 3), test_per_class=4, val_per_class=2) -> Path:
    """Images in one folder a class, with train.txt, val.txt and test.txt beside them."""
    parts = _own_parts("photos/{name}/{part}{i:03}.jpg", classes, counts, test_per_class, val_per_class)
    for part, entries in parts.items():
        write_list(root / f"{part}.txt", entries)
        write_images(root, entries)
    return root


def _own_parts(pattern: str, classes: Sequence[str], counts: Sequence[int], test: int, val: int) -> Lists:
    sizes = {"train": counts, "val": [val] * len(counts), "test": [test] * len(counts)}
    return {
        part: [
            (pattern.format(part=part, name=classes[label], i=i), label)
            for label, size in enumerate(per_class)
            for i in range(size)
        ]
        for part, per_class in sizes.items()
        if any(per_class)
    }


# ---- what was built ----


def entries(images: FileSet) -> list[Entry]:
    """Paths and labels, in order."""
    return [(images.paths[i], int(label)) for i, label in enumerate(images.labels)]


# ---- bad input ----


def refused(name: str, root: Path, **options: object) -> str:
    """The one line with which `build_data` refuses the data set."""
    with pytest.raises(UserError) as caught:
        build_data(name, root, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def problems_of(name: str, root: Path, **options: object) -> list[str]:
    """Everything wrong with the data set, as `datasets.check` asks for it: building goes on."""
    found: list[str] = []
    build_data(name, root, report=found.append, **options)
    return found


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a list, all of it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
