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
TRAIN = "cifar-100-python/train"


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.ones(shape, dtype=dtype)


def cifar(layout: object = CIFAR100, **replaced: object) -> Make:
    """A folder of small sound files, some of them replaced; None: left out."""
    return lambda root, kitchen: write_small(root, layout, **replaced)


def hostile(root: Path, kitchen: Kitchen) -> None:
    write_small(root, train=pickle.dumps({**GOOD, "extra": Call(root / "marker")}, 2))


def labelled(*last: object) -> dict:
    return {**GOOD, "fine_labels": [*LABELS[: -len(last)], *last]}


LABEL = f"{TRAIN}: labels must be whole numbers from 0 to 99"
ROWS_OF = f"{TRAIN}: 'data' must be uint8 rows of 3072 values, found "
BROKEN, WHOLE = f"{TRAIN} is not an intact CIFAR file", python2_pickle(GOOD)
CIFAR_TRAIN = {  # what the file train holds, what the line says
    "a list": ([1, 2, 3], f"{TRAIN} is not a CIFAR file: it holds a list instead of a dictionary"),
    "a number": (7, f"{TRAIN} is not a CIFAR file: it holds a int"),
    "empty": (b"", BROKEN),
    "text": (b"<html>404 Not Found</html>", BROKEN),
    "cut": (WHOLE[: len(WHOLE) // 2], BROKEN),
    **{
        f"{attack}, as pixels": (cifar_attacks()[f"{attack}, as pixels"], f"{BROKEN} .*{word}")
        for attack, word in {
            "an array of objects made of raw bytes": "an array of O8, which no CIFAR file needs",
            "records of a gigabyte": "an array of V1000000000, which no CIFAR file needs",
            "hex nested 24 times": "another codec than latin-1, which no CIFAR file needs",
            "punycode": "another codec than latin-1, which no CIFAR file needs",
            "a key that takes for ever to hash": "a key is long, or a tuple",
        }.items()
    },
    "a line break in the message": (b"\x80\x02K\x01Q.", BROKEN),
    "no data": ({"fine_labels": LABELS}, f"{TRAIN} lacks 'data' or 'fine_labels'"),
    "no labels": ({"data": GOOD["data"]}, f"{TRAIN} lacks 'data' or 'fine_labels'"),
    "CIFAR-10": (
        small_part(CIFAR10),
        f"{TRAIN} lacks 'data' or 'fine_labels': is it a file of another CIFAR",
    ),
    "a list as data": ({**GOOD, "data": GOOD["data"].tolist()}, ROWS_OF + "list"),
    "float pixels": ({**GOOD, "data": pixels(20, ROW, dtype=np.float32)}, ROWS_OF + "float32"),
    "signed pixels": ({**GOOD, "data": pixels(20, ROW, dtype=np.int8)}, ROWS_OF + "int8"),
    "short rows": ({**GOOD, "data": pixels(20, ROW - 1)}, ROWS_OF + r"uint8 \(20, 3071\)"),
    "images, not rows": ({**GOOD, "data": pixels(20, 3, 32, 32)}, ROWS_OF),
    "one long row": ({**GOOD, "data": pixels(20 * ROW)}, ROWS_OF),
    "a single pixel": ({**GOOD, "data": pixels()}, ROWS_OF),
    "one label too few": ({**GOOD, "fine_labels": LABELS[:-1]}, f"{TRAIN}: 20 images, but 'fine_labels'"),
    "one label too many": ({**GOOD, "fine_labels": [*LABELS, 0]}, f"{TRAIN}: 20 images, but 'fine_labels'"),
    "labels as one number": ({**GOOD, "fine_labels": 3}, f"{TRAIN}: 20 images, but 'fine_labels'"),
    "labels as an array": (
        {**GOOD, "fine_labels": np.array(LABELS)},
        f"{TRAIN}: 20 images, but 'fine_labels'",
    ),
    **{f"label {label!r}": (labelled(label), LABEL) for label in (100, -1, 2**80, True, "3", 3.0, None)},
}
NAMES = [["a"] * 99, ["a"] * 101, [1] * 100, "a" * 100, None, [f"n{i}" for i in range(99)] + [None]]


def _cifar() -> list[Row]:
    words = "--dataset cifar100_lt --data_dir {root}"
    rows = [
        Row(
            f"cifar: {kind}",
            CHECK,
            words,
            says,
            cifar(train=content if isinstance(content, bytes) else pickle.dumps(content, 2)),
        )
        for kind, (content, says) in CIFAR_TRAIN.items()
    ]
    for number, names in enumerate(NAMES):
        says = "meta: 'fine_label_names' must be a list of 100 names"
        rows.append(Row(f"cifar names {number}", CHECK, words, says, cifar(meta={"fine_label_names": names})))
    for script in (STAGE1, CHECK, "datasets.to_folder"):
        more = " --to {root}/new" if script == "datasets.to_folder" else ""
        rows.append(
            Row(
                f"cifar, {script}: hostile",
                script,
                words + more,
                f"{BROKEN} .*asks for .*system",
                hostile,
                shell=bool(more),
            )
        )
    for part in ("train", "test", "meta"):
        says = f"cifar-100-python lacks {part}: complete it"
        rows.append(Row(f"cifar without {part}", STAGE1, words, says, cifar(**{part: None})))
        gone = lambda root, kitchen, part=part: (  # noqa: E731
            write_small(root, **{part: None}),
            os.mkfifo(root / "cifar-100-python" / part),
        )
        rows.append(Row(f"cifar, a pipe as {part}", STAGE1, words, says, gone))
        broken = f"cifar-100-python/{part} is not an intact CIFAR file"
        rows.append(Row(f"cifar, broken {part}", STAGE1, words, broken, cifar(**{part: b"\x80\x02}q"})))
    return [
        *rows,
        Row("cifar: too few images", STAGE1, words, "class 0 has 1 train images instead of 500", cifar()),
        Row(
            "cifar10 without a batch",
            STAGE1,
            "--dataset cifar10_lt --data_dir {root}",
            "lacks data_batch_2: complete",
            cifar(CIFAR10, data_batch_2=None),
        ),
        Row(
            "cifar10 of other labels",
            STAGE1,
            "--dataset cifar10_lt --data_dir {root}",
            "data_batch_3: labels must be whole numbers from 0 to 9",
            cifar(CIFAR10, data_batch_3={**small_part(CIFAR10), "labels": [10] * 20}),
        ),
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


def emptied(*places: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for place in places:
            shutil.rmtree(folder / place, ignore_errors=True)
            (folder / place).mkdir()

    return change


FOLDERS: dict[str, tuple[Make, str]] = {
    "an empty class folder": (pets(emptied("train/bee")), "train/bee holds no image"),
    "an empty class folder of test": (pets(emptied("test/bee")), "test/bee holds no image"),
    "a class in test alone": (
        pets(new_file("test/wasp/0.jpg", jpeg())),
        "test/wasp: train/ has no class folder",
    ),
    "no class folders": (
        pets(emptied("test")),
        "test has no class folders: images must lie in|holds no image",
    ),
    "no train": (pets(lambda folder: shutil.rmtree(folder / "train")), "pets has no train/: expected"),
    "no test": (pets(lambda folder: shutil.rmtree(folder / "test")), "pets has no test/: expected"),
    "a file as train": (
        pets(lambda folder: (shutil.rmtree(folder / "train"), new_file("train")(folder))),
        "pets has no train/: expected",
    ),
    "one class": (
        pets(
            lambda folder: [
                shutil.rmtree(folder / part / name) for part in ("train", "test") for name in ("bee", "cat")
            ]
        ),
        "train/ has 1 class",
    ),
    "a link to a folder above": (
        pets(lambda folder: (folder / "train/bee/loop").symlink_to("..")),
        "train/bee/loop.* is a link to a folder above it",
    ),
    "links in a circle": (
        pets(lambda folder: [(folder / f"train/bee/{a}").symlink_to(b) for a, b in ("xy", "yx")]),
        "train/bee cannot be read: Too many levels",
    ),
    "a class folder that is a link to itself": (
        pets(lambda folder: (folder / "train/dog").symlink_to("dog")),
        "train/? .*Too many levels|train cannot be read",
    ),
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


def few(ant: int, bee: int = 1, cat: int = 1) -> Make:
    """Class folders with so many training images."""
    counts = {"ant": ant, "bee": bee, "cat": cat}
    return pets(
        lambda folder: [
            path.unlink()
            for name, count in counts.items()
            for path in sorted((folder / "train" / name).iterdir())[count:]
        ]
    )


def own_val(folder: Path) -> None:
    new_file("val/bee/0.jpg", jpeg(7))(folder)


FEW = " --select val" + " --image_size 32 --network resnet8 --batch_size 4"
VALIDATION: dict[str, tuple[Make, str, str]] = {
    "empty": (few(1), " --val_source heldout", "heldout gives validation images of 0 class"),
    "of one class": (few(2), " --val_source heldout", "heldout gives validation images of 1 class"),
    "its own of one class": (pets(own_val), "", "own gives validation images of 1 class"),
}


def _folders() -> list[Row]:
    rows = [Row(f"folder: {kind}", STAGE1, OWN, says, make) for kind, (make, says) in FOLDERS.items()]
    for kind, (make, words, says) in VALIDATION.items():
        rows.append(Row(f"validation, {kind}", STAGE1, OWN + FEW + words, says, make))
    for ending in (".HEIC", ".txt"):
        kinds = rf"\(4 \{ending.lower()}\), 'train/bee/000\{ending}' first"
        says = rf"train/bee holds no image: 4 file\(s\) passed over {kinds}: by its name it is none of JPEG"
        rows.append(Row(f"folder: a class of {ending}", STAGE1, OWN, says, endings(bee=ending)))
    missing = " --cur_stage stage1 --network resnet20"  # it is asked before a checkpoint is looked for
    for script, words in ((STAGE1, ""), (STAGE2, ""), (EVALUATE, missing)):
        for place in ("pets", "pets/train", "pets/train/bee"):
            rows.append(
                Row(
                    f"{place} without --dataset, {script}",
                    script,
                    f"--data_dir {{root}}/{place}{words}",
                    "bee|pets.* holds images, no CIFAR: was --dataset folder meant",
                    pets(lambda folder: None),
                )
            )
    rows.append(
        Row(
            "photographs of a telephone without --dataset",
            STAGE1,
            "--data_dir {root}/pets/train",
            "train holds images, no CIFAR: was --dataset folder meant",
            endings(ant=".HEIC", bee=".HEIC", cat=".HEIC"),
        )
    )
    rows.append(
        Row(
            "folder: not permitted",
            STAGE1,
            OWN,
            "train/bee cannot be read: Permission denied",
            pets(lambda folder: (folder / "train/bee").chmod(0)),
            unprivileged=True,
        )
    )
    for dataset in ("folder", "imagenet_lt", "inaturalist18", "cifar100_lt"):
        rows.append(
            Row(
                f"{dataset}: data_dir not permitted",
                STAGE1,
                f"--dataset {dataset} --data_dir {{root}}/pets",
                "pets.*Permission denied",
                pets(lambda folder: folder.chmod(0)),
                unprivileged=True,
            )
        )
    return rows


def _images() -> list[Row]:
    rows = []
    kinds = {
        name: (victim(content), rf"bee/001.jpg .*{word}") for name, (content, word) in broken_files().items()
    }
    for kind, (make, _) in NO_FILE.items():
        says = "does not exist" if kind in ("absent", "a link to nothing") else "cannot be read"
        if kind not in ("absent", "a folder", "a loop of links"):  # no image then, or a folder
            kinds[kind] = (victim(make=make), f"bee/001.jpg {says}")
    for kind, (make, says) in kinds.items():
        rows.append(Row(f"image, check: {kind}", CHECK, OWN, says, make, listed=True))
    for kind in ("cut.jpg", "a pipe", "a link to nothing"):
        make, says = kinds[kind]
        rows.append(Row(f"image, stage 1: {kind}", STAGE1, OWN + SEEN, says, make, started=True))
    hidden = victim(b"", part="test")
    rows.append(
        Row(
            "image, evaluate: empty.jpg",
            EVALUATE,
            "--pretrained_pth {pets1} --data_dir {root}/pets --workers 0",
            "test/bee/001.jpg is empty",
            hidden,
            started=True,
        )
    )
    rows.append(
        Row(
            "image, stage 2: empty.jpg",
            STAGE2,
            "--pretrained_pth {pets1} --data_dir {root}/pets --workers 0",
            "test/bee/001.jpg is empty",
            hidden,
            started=True,
        )
    )
    rows.append(
        Row(
            "image, predict: empty.jpg",
            EVALUATE,
            "--pretrained_pth {pets1} --predict {root}/pets --workers 0",
            "test/bee/001.jpg is empty",
            hidden,
            started=True,
        )
    )
    rows.append(
        Row("predict: no image", EVALUATE, "--pretrained_pth {pets1} --predict {root}", "w.*holds no image")
    )
    rows.append(
        Row(
            "check: the same bytes",
            CHECK,
            OWN,
            r"test/bee/9.jpg \(test\) holds the same bytes as",
            pets(lambda folder: shutil.copy(folder / "train/bee/000.jpg", folder / "test/bee/9.jpg")),
            listed=True,
            shell=True,
        )
    )
    return rows


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
    pictures = "--dataset folder --data_dir {pets} --workers 0"
    first = {
        "vit_b_32 on 32 pixels": (
            "--network vit_b_32 --image_size 32",
            "vit_b_32 takes no images of 32 x 32",
        ),
        "alexnet on 32": ("--network alexnet --image_size 32", "alexnet takes no images of 32 x 32 pixels"),
        "densenet121 on 8": (
            "--network densenet121 --image_size 8",
            "takes no images of 8 x 8 .* --image_size",
        ),
        "batch-norm on one image": (
            "--network resnet18 --stem imagenet --image_size 32 --batch_size 1",
            "resnet18 cannot train on one image at a time .*Expected more than 1 value.*another --batch_size",
        ),
        "batch-norm on parts of one": (
            "--network resnet18 --stem imagenet --image_size 32 --batch_size 12 --accum 12",
            "resnet18 cannot train on one image at a time .*smaller --accum",
        ),
    }
    rows = [
        Row(f"stage 1: {kind}", STAGE1, f"{pictures} {words}", says) for kind, (words, says) in first.items()
    ]
    foreign = f"{pictures} --image_size 32 --network bad_nets:"
    wide = "bad_nets:wide takes no images of 32 x 32 pixels .*cannot be multiplied.*another --image_size"
    alone = "bad_nets:small cannot train on one image at a time .*take another --batch_size"
    return [
        *rows,
        Row(
            "stage 2: a network of 64 pixels",
            STAGE2,
            f"{foreign}wide --num_class 3 --pretrained_pth {{bad}}.wide",
            wide,
            nets,
        ),
        Row(
            "evaluate: a network of 64 pixels",
            EVALUATE,
            f"{foreign}wide --cur_stage stage1 --pretrained_pth {{bad}}.wide",
            wide,
            nets,
        ),
        Row(
            "predict: a network of 64 pixels",
            EVALUATE,
            "--network bad_nets:wide --dataset folder --num_class 3 --image_size 32 --workers 0 "
            "--predict {pets} --pretrained_pth {bad}.wide",
            wide,
            nets,
        ),
        Row(
            "stage 2: drifting batch-norm on a last image",
            STAGE2,
            f"{foreign}small --num_class 3 --pretrained_pth {{bad}}.small --bn_mode train --batch_size 11",
            alone,
            nets,
        ),
    ]


ROWS = [*_cifar(), *_folders(), *_images(), *_networks()]
