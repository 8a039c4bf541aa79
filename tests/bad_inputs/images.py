"""Images: CIFAR's pickles, class folders, image files."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.attacks import cifar_attacks
from tests.bad_inputs import Kitchen, Make, Row
from tests.bad_inputs.checkpoints import NO_FILE, Call
from tests.cifar_folders import CIFAR10, CIFAR100, ROW, python2_pickle, small_part, write_small
from tests.odd_images import broken_files, jpeg
from utils.settings.table import CHECK, EVALUATE, STAGE1, STAGE2

# ---- CIFAR

GOOD = small_part(CIFAR100)
LABELS = GOOD["fine_labels"]


def cifar(layout: object = CIFAR100, **replaced: object) -> Make:
    """A folder of small sound files, some of them replaced; None: left out."""
    return lambda root, kitchen: write_small(root, layout, **replaced)


def train(content: object) -> Make:
    """A folder with this content, pickled unless it is bytes, as the file train."""
    return cifar(train=content if isinstance(content, bytes) else pickle.dumps(content, 2))


def hostile(root: Path, kitchen: Kitchen) -> None:
    train({**GOOD, "extra": Call(root / "marker")})(root, kitchen)


def piped(root: Path, kitchen: Kitchen) -> None:
    os.mkfifo(write_small(root, test=None) / "test")


def labelled(labels: object) -> dict:
    return {**GOOD, "fine_labels": labels}


def pixels(*shape: int, dtype: type = np.uint8) -> dict:
    return {**GOOD, "data": np.ones(shape, dtype=dtype)}


BROKEN, WHOLE = "is not an intact CIFAR file", python2_pickle(GOOD)
NO_KEY = "lacks 'data' or 'fine_labels': is it a file of another CIFAR"
LENGTH, LABEL = ": 20 images, but 'fine_labels'", ": labels must be whole numbers from 0 to 99"
ROWS_OF = ": 'data' must be uint8 rows of 3072 values, found "
CIFAR_TRAIN = {  # what the file train holds, what the line says of it
    "a list": ([1, 2, 3], "is not a CIFAR file: it holds a list instead of a dictionary"),
    "empty": (b"", BROKEN),
    "cut": (WHOLE[: len(WHOLE) // 2], BROKEN),
    "a line break in the message": (b"\x80\x02K\x01Q.", BROKEN),
    "no data": ({"fine_labels": LABELS}, NO_KEY),
    "no labels": ({"data": GOOD["data"]}, NO_KEY),
    "CIFAR-10": (small_part(CIFAR10), NO_KEY),
    "a list as data": ({**GOOD, "data": GOOD["data"].tolist()}, ROWS_OF + "list"),
    "signed pixels": (pixels(20, ROW, dtype=np.int8), ROWS_OF + "int8"),
    "short rows": (pixels(20, ROW - 1), ROWS_OF + r"uint8 \(20, 3071\)"),
    "images, not rows": (pixels(20, 3, 32, 32), ROWS_OF),
    "one long row": (pixels(20 * ROW), ROWS_OF),
    "a single pixel": (pixels(), ROWS_OF),
    "one label too few": (labelled(LABELS[:-1]), LENGTH),
    "one label too many": (labelled([*LABELS, 0]), LENGTH),
    "labels as one number": (labelled(3), LENGTH),
    "labels as an array": (labelled(np.array(LABELS)), LENGTH),
}
ATTACKS = {
    "an array of objects made of raw bytes": "an array of O8, which no CIFAR file needs",
    "records of a gigabyte": "an array of V1000000000, which no CIFAR file needs",
    "hex nested 24 times": "another codec than latin-1, which no CIFAR file needs",
    "punycode": "another codec than latin-1, which no CIFAR file needs",
    "a key that takes for ever to hash": "a key is long, or a tuple",
}
NAMES = [["a"] * 99, "a" * 100, [f"n{i}" for i in range(99)] + [None]]


def _cifar() -> list[Row]:
    words, ten = "--dataset cifar100_lt --data_dir {root}", "--dataset cifar10_lt --data_dir {root}"
    folder, asks, makes = "cifar-100-python", f"{BROKEN} .*asks for .*system", "datasets.to_folder"
    every = {kind: (content, f"/train ?{says}") for kind, (content, says) in CIFAR_TRAIN.items()}
    for attack, says in ATTACKS.items():
        every[attack] = (cifar_attacks()[f"{attack}, as pixels"], f"{BROKEN} .*{says}")
    for label in (100, -1, True, "3", 3.0):
        every[f"label {label!r}"] = (labelled([*LABELS[:-1], label]), LABEL)
    rows = [
        Row(f"cifar: {kind}", CHECK, words, says, train(content)) for kind, (content, says) in every.items()
    ]
    for number, names in enumerate(NAMES):
        says = "meta: 'fine_label_names' must be a list of 100 names"
        rows.append(Row(f"cifar names {number}", CHECK, words, says, cifar(meta={"fine_label_names": names})))
    for part in ("train", "test", "meta"):
        lacks = f"{folder} lacks {part}: complete it"
        broken = cifar(**{part: b"\x80\x02}q"})
        rows.append(Row(f"cifar without {part}", STAGE1, words, lacks, cifar(**{part: None})))
        rows.append(Row(f"cifar, broken {part}", STAGE1, words, f"{folder}/{part} {BROKEN}", broken))
    lost, others = cifar(CIFAR10, data_batch_2=None), {**small_part(CIFAR10), "labels": [10] * 20}
    beyond = "data_batch_3: labels must be whole numbers from 0 to 9"
    return [
        *rows,
        Row("cifar, a pipe as test", STAGE1, words, f"{folder} lacks test: complete it", piped),
        Row("cifar, stage 1: hostile", STAGE1, words, asks, hostile),
        Row("cifar, check: hostile", CHECK, words, asks, hostile),
        Row("cifar, to_folder: hostile", makes, words + " --to {root}/new", asks, hostile, program=True),
        Row("cifar: too few images", STAGE1, words, "class 0 has 1 train images instead of 500", cifar()),
        Row("cifar10 without a batch", STAGE1, ten, "lacks data_batch_2: complete", lost),
        Row("cifar10 of other labels", STAGE1, ten, beyond, cifar(CIFAR10, data_batch_3=others)),
    ]


# ---- class folders and image files

OWN = "--dataset folder --data_dir {root}/pets --workers 0"
SEEN = " --image_size 32 --network resnet8 --batch_size 4"


def pets(change: Callable[[Path], object]) -> Make:
    """A copy of the class folders, changed."""
    return lambda root, kitchen: change(shutil.copytree(kitchen.pets, root / "pets"))


def victim(content: bytes | None = None, make: Make | None = None, part: str = "train") -> Make:
    """An image of another content, or something else in its place."""

    def change(folder: Path) -> None:
        path = folder / part / "bee" / "001.jpg"
        path.unlink()
        if make:
            make(folder, None)
            (folder / "bad").rename(path)
        else:
            path.write_bytes(content)

    return pets(change)


def new_file(place: str, content: bytes = b"") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)

    return change


def emptied(place: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / place)
        (folder / place).mkdir()

    return change


def link(place: str, target: str) -> Make:
    return pets(lambda folder: (folder / place).symlink_to(target))


def gone(*places: str) -> Make:
    return pets(lambda folder: [shutil.rmtree(folder / place) for place in places])


OTHERS = [f"{part}/{name}" for part in ("train", "test") for name in ("bee", "cat")]
FOLDERS: dict[str, tuple[Make, str]] = {
    "an empty class folder": (pets(emptied("train/bee")), "train/bee holds no image"),
    "an empty class folder of test": (pets(emptied("test/bee")), "test/bee holds no image"),
    "a class in test alone": (
        pets(new_file("test/wasp/0.jpg", jpeg())),
        "test/wasp: train/ has no class folder",
    ),
    "no class folders": (pets(emptied("test")), "pets has no test/<class>/: expected"),
    "no train": (gone("train"), "pets has no train/: expected .*; or images in <class>/, of which --test"),
    "no test": (
        gone("test"),
        "pets has no test/<class>/: expected .*; or images in train/<class>/, of which --tes",
    ),
    "a file as train": (
        pets(lambda folder: (shutil.rmtree(folder / "train"), new_file("train")(folder))),
        "pets has no train/: expected",
    ),
    "one class": (gone(*OTHERS), "train/ has 1 class"),
    "a link to a folder above": (
        link("train/bee/loop", ".."),
        "train/bee/loop.* is a link to a folder above it",
    ),
    "a link in a circle": (link("train/bee/loop", "loop"), "train/bee cannot be read: Too many levels"),
    "a class that is a link to itself": (link("train/dog", "dog"), "train/? .*Too many levels|train cannot"),
}


def endings(**renamed: str) -> Make:
    """The images of some training classes with another ending."""
    return pets(
        lambda folder: [
            path.rename(path.with_suffix(ending))
            for name, ending in renamed.items()
            for path in (folder / "train" / name).iterdir()
        ]
    )


def few(ants: int) -> Make:
    """Class folders with so many training images of ants, and one of each other class."""

    def change(folder: Path) -> None:
        for name, count in (("ant", ants), ("bee", 1), ("cat", 1)):
            for path in sorted((folder / "train" / name).iterdir())[count:]:
                path.unlink()

    return pets(change)


HELD_OUT = " --val_source heldout"
VALIDATION: dict[str, tuple[Make, str, str]] = {
    "empty": (few(1), HELD_OUT, "heldout gives validation images of 0 class"),
    "empty, by share alone": (few(1), " --val_fraction 0.1", "heldout gives validation images of 0 class"),
    "of one class": (few(2), HELD_OUT, "heldout gives validation images of 1 class"),
    "its own of one class": (
        pets(new_file("val/bee/0.jpg", jpeg(7))),
        "",
        "own gives validation images of 1",
    ),
}


def _folders() -> list[Row]:
    rows = [Row(f"folder: {kind}", STAGE1, OWN, says, make) for kind, (make, says) in FOLDERS.items()]
    for kind, (make, words, says) in VALIDATION.items():
        rows.append(Row(f"validation, {kind}", STAGE1, f"{OWN}{SEEN} --select val{words}", says, make))
    says = r"train/bee holds no image: 4 file\(s\) passed over, 'train/bee/000\.HEIC' first: by its name"
    rows.append(Row("folder: a class of .HEIC", STAGE1, OWN, says, endings(bee=".HEIC")))
    missing = " --cur_stage stage1 --network resnet20"  # it is asked before a checkpoint is looked for
    says = "(bee|pets).* holds images, no CIFAR: was --dataset folder meant"
    as_it_is = pets(lambda folder: None)
    for script, place, more in (
        *((STAGE1, place, "") for place in ("pets", "pets/train", "pets/train/bee")),
        (STAGE2, "pets", ""),
        (EVALUATE, "pets/train", missing),
    ):
        words = f"--data_dir {{root}}/{place}{more}"
        rows.append(Row(f"{place} without --dataset, {script}", script, words, says, as_it_is))
    words, phone = "--data_dir {root}/pets/train", endings(ant=".HEIC", bee=".HEIC", cat=".HEIC")
    rows.append(Row("photographs of a telephone without --dataset", STAGE1, words, says, phone))
    secret = pets(lambda folder: (folder / "train/bee").chmod(0))
    says = "train/bee cannot be read: Permission denied"
    rows.append(Row("folder: not permitted", STAGE1, OWN, says, secret, unprivileged=True))
    secret, says = pets(lambda folder: folder.chmod(0)), "pets.*Permission denied"
    for dataset in ("folder", "imagenet_lt", "inaturalist18", "cifar100_lt"):
        words = f"--dataset {dataset} --data_dir {{root}}/pets"
        rows.append(Row(f"{dataset}: data_dir not permitted", STAGE1, words, says, secret, unprivileged=True))
    return rows


def _images() -> list[Row]:
    kinds = {
        name: (victim(content), rf"bee/001.jpg .*{word}") for name, (content, word) in broken_files().items()
    }
    for kind in ("a pipe", "a device", "a link to nothing"):
        says = "does not exist" if kind == "a link to nothing" else "cannot be read"
        kinds[kind] = (victim(make=NO_FILE[kind][0]), f"bee/001.jpg {says}")
    rows = [
        Row(f"image, check: {kind}", CHECK, OWN, says, make, listed=True)
        for kind, (make, says) in kinds.items()
    ]
    for kind in ("cut.jpg", "a pipe", "a link to nothing"):
        make, says = kinds[kind]
        rows.append(Row(f"image, stage 1: {kind}", STAGE1, OWN + SEEN, says, make, started=True))
    hidden, says = victim(b"", part="test"), "test/bee/001.jpg is empty"
    for script, option in (
        (EVALUATE, "--data_dir {root}/pets"),
        (STAGE2, "--data_dir {root}/pets"),
        (EVALUATE, "--predict {root}/pets/test/bee/001.jpg"),
    ):
        words = f"--pretrained_pth {{pets1}} {option} --workers 0"
        rows.append(Row(f"image, {script} {option}: empty.jpg", script, words, says, hidden, started=True))
    words = "--pretrained_pth {pets1} --predict {root}"
    rows.append(Row("predict: no image", EVALUATE, words, "w.*holds no image"))
    says = r"test/bee/9.jpg \(test\) holds the same bytes as"
    copied = pets(lambda folder: shutil.copy(folder / "train/bee/000.jpg", folder / "test/bee/9.jpg"))
    return [*rows, Row("check: the same bytes", CHECK, OWN, says, copied, listed=True, program=True)]


# ---- images that a network cannot take

NETS = """
from torch import nn


def small(num_classes):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
    return nn.Sequential(body, nn.Linear(4, num_classes))


def wide(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.ReLU(), nn.Linear(4, num_classes))
"""


def nets(root: Path, kitchen: Kitchen) -> None:
    """A module of networks, and weights of both: bad.small and bad.wide."""
    (root / "bad_nets.py").write_text(NETS)
    known: dict = {}
    exec(NETS, known)
    for name in ("small", "wide"):
        torch.save(known[name](3).state_dict(), root / f"bad.{name}")


def _networks() -> list[Row]:
    pictures = "--dataset folder --data_dir {pets} --workers 0 --network "
    alone = "cannot train on one image at a time .*"
    on_32 = "resnet18 --stem imagenet --image_size 32 --batch_size "
    first = {
        "vit_b_32 --image_size 32": "vit_b_32 takes no images of 32 x 32",
        "densenet121 --image_size 8": "takes no images of 8 x 8 .* --image_size",
        on_32 + "1": f"resnet18 {alone}Expected more than 1 value.*another --batch_size",
        on_32 + "12 --accum 12": f"resnet18 {alone}smaller --accum",
    }
    rows = [Row(f"network: {words}", STAGE1, pictures + words, says) for words, says in first.items()]
    wide = f"{pictures}bad_nets:wide --image_size 32 --pretrained_pth {{bad}}.wide "
    says = "bad_nets:wide takes no images of 32 x 32 pixels .*cannot be multiplied.*another --image_size"
    for kind, script, words in (
        ("stage 2", STAGE2, wide + "--num_class 3"),
        ("evaluate", EVALUATE, wide + "--cur_stage stage1"),
        ("predict", EVALUATE, wide.replace("--data_dir", "--num_class 3 --predict")),
    ):
        rows.append(Row(f"{kind}: a network of 64 pixels", script, words, says, nets))
    drifting = wide.replace("wide", "small") + "--num_class 3 --bn_mode train --batch_size 11"
    says = f"bad_nets:small {alone}take another --batch_size"
    return [*rows, Row("stage 2: drifting batch-norm on a last image", STAGE2, drifting, says, nets)]


ROWS = [*_cifar(), *_folders(), *_images(), *_networks()]
