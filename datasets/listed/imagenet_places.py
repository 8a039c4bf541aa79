"""ImageNet-LT and Places-LT: published split lists over the images of ImageNet and Places365."""

from functools import partial

from datasets.listed.published import Published, as_listed, build_published

KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"


def flat_val(path: bytes) -> bytes:
    """val/n01440764/x.JPEG -> val/x.JPEG, as ImageNet is shipped; other folders stay."""
    return b"val/" + path.rpartition(b"/")[2] if path.startswith(b"val/") else path


def by_letter(size: bytes, path: bytes) -> bytes:
    """train/arena-hockey/x.jpg -> data_256/a/arena/hockey/x.jpg, val/arena-hockey/y.jpg -> val_256/y.jpg.

    So Places365 is shipped; `size` is 256 or large.
    """
    part, _, rest = path.partition(b"/")
    folder, _, name = rest.rpartition(b"/")
    if part == b"train":
        return b"/".join((b"data_" + size, folder[:1], folder.replace(b"-", b"/"), name))
    return b"/".join((part + b"_" + size, name))


# Source of lists and totals: Liu et al. 2019
IMAGENET_LT = Published(
    name="imagenet_lt",
    num_classes=1000,
    images={"train": 115_846, "val": 20_000, "test": 50_000},
    most=1280,
    least=5,
    lists={part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")},
    address="ImageNet_LT",
    folders=("", KAGGLE_FOLDER),
    layouts=(as_listed, flat_val),
    expected="{0}/train/n01440764/n01440764_190.JPEG and, of the test images, "
    "{0}/val/n01440764/ILSVRC2012_val_00000293.JPEG or {0}/val/ILSVRC2012_val_00000293.JPEG",
)
PLACES_LT = Published(
    name="places_lt",
    num_classes=365,
    images={"train": 62_500, "val": 7_300, "test": 36_500},
    most=4980,
    least=5,
    lists={part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")},
    address="Places_LT",
    layouts=(as_listed, flat_val, partial(by_letter, b"256"), partial(by_letter, b"large")),
    expected="{0}/train/airfield/00002049.jpg and, of the test images, "
    "{0}/val/airfield/Places365_val_00003597.jpg or {0}/val/Places365_val_00003597.jpg; or Places365's own "
    "{0}/data_256/a/airfield/00002049.jpg and {0}/val_256/Places365_val_00003597.jpg",
)
build_imagenet_lt = partial(build_published, IMAGENET_LT)
build_places_lt = partial(build_published, PLACES_LT)
