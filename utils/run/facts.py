"""What a checkpoint or a pack says of itself, a typed record each, to which a file is held when it is read.

A record is a dictionary on the disk and in memory. What has been read can be printed, written and read back.
"""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Literal, Required, TypedDict, Union, get_args, get_origin, is_typeddict

import torch
from torch import Tensor

from datasets.types import FileSet, ImageSet, LongTailedData
from utils.settings.presets import PRESETS

PACK_FORMAT = "label-over-smoothing feature pack"
OWN = "features"  # as the preset of a pack: features that a user brought

# of classes, of characters of a text, of bytes of all class names: a file has to hold them, and be read back
MAX_CLASSES, MAX_TEXT, MAX_NAMES = 500_000, 5_000, 1 << 22
LARGEST, LARGEST_NUMBER = 2**63 - 1, 1e300


# ---- kinds of values: a type, and tests beside it


def _is_text(value: str, odd_bytes: str = "strict") -> bool:
    """Unicode without a zero byte; `surrogateescape`: as a path with bytes that are none."""
    try:
        value.encode("utf-8", odd_bytes)
    except UnicodeEncodeError:
        return False
    return len(value) <= MAX_TEXT and "\0" not in value


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return fits(value, Settings)
    if type(value) is int:
        return abs(value) <= LARGEST
    # figures of a run that has diverged may be no numbers
    other = value is None or type(value) in (bool, float)
    return other or (type(value) is str and _is_text(value, "surrogateescape"))


Text = Annotated[str, _is_text]
Count = Annotated[int, lambda value: 0 <= value <= LARGEST]
AboveZero = Annotated[Count, bool]
Settings = dict[Text, Annotated[object, _is_plain]]
Tensors = dict[str, Tensor]
ClassNames = Annotated[list[Text], lambda names: sum(len(name.encode()) for name in names) <= MAX_NAMES]
Selection = Literal["last", "val", "test", "unknown"]  # it stands in the last line of a run
Prints = Annotated[Tensor, lambda value: value.dtype == torch.int64 and value.ndim == 1]


class FileFacts(TypedDict, total=False):
    """What training files were like: prints of their names and of the bytes of some, digests of the rest."""

    names: Required[Prints]
    bytes: Required[Prints]
    sizes: Required[str]
    times: Required[str]
    all: str


class ProgressFacts(TypedDict):
    """How many epochs are done, and which of them was the best."""

    epoch: Count
    rows: list[Settings]
    best_epoch: Count | None
    best_score: float | None


class OptimizerFacts(TypedDict):
    """What torch's optimiser says of itself."""

    state: dict[object, dict[str, object]]
    param_groups: list[dict[str, object]]


class PartialFacts(TypedDict):
    """What is done of an epoch: steps and images of each process, with their losses and hits."""

    step: Count
    counts: Tensor
    losses: Tensor
    hits: Tensor


class HeadFacts(TypedDict, total=False):
    """A head of stage 2 that is being trained, or has failed."""

    method: Required[Text]
    setting: Required[Text]
    seed: Required[Count]
    progress: Required[ProgressFacts]
    seconds: Required[float]
    weights: Tensors
    momentum: Tensors
    best_state: Tensors
    best_backbone: Tensors
    statistics: Tensors
    shifted: bool
    loss_sum: Tensor
    hit_sum: Tensor
    failure: str
    step: Count
    images: Count


def _has_options(head: dict) -> bool:
    linear = head.get("kind") == "linear" and "options" not in head
    return type(head.get("kind")) is str and (linear or isinstance(head.get("options"), dict))


def _has_images(partial: PartialFacts) -> bool:
    counts = partial["counts"]
    right = counts.ndim == 2 and counts.shape[1] == 2 and counts.dtype == torch.int64 and (counts >= 0).all()
    steps, images = counts.sum(dim=0).tolist() if right else (0, 0)
    return images > 0 and all(partial[name].shape == (steps,) for name in ("losses", "hits"))


def _can_go_on(head: HeadFacts) -> bool:
    """Its weights are there, and those of its best epoch where there has been one: a run needs them."""
    if "failure" in head or "weights" not in head:
        return "failure" in head
    best, epoch = head.get("best_state"), head["progress"]["best_epoch"]
    if best is None or epoch is None:
        return best is epoch
    one, other = ({name: value.shape for name, value in some.items()} for some in (best, head["weights"]))
    return one == other


Files = Annotated[FileFacts, lambda files: 0 < len(files["bytes"]) <= len(files["names"])]


# ---- the records


class Facts(TypedDict, total=False):
    """What checkpoints and packs alike say of themselves."""

    # the data
    dataset: Required[Text]
    num_class: Required[Annotated[int, lambda value: 2 <= value <= MAX_CLASSES]]
    class_names: ClassNames
    class_counts: list[Count]
    imb_ratio: float | None
    subset_seed: Count | None
    test_fraction: float | None
    shots: Annotated[list[AboveZero], lambda limits: len(limits) == 2 and limits[0] <= limits[1]]
    val_source: Text | None
    val_fraction: float | None
    # how images are looked at
    image_size: AboveZero | None
    resize: AboveZero | None
    interpolation: Text | None
    augment: Text | None
    jitter: float | None
    normalise: Text | None
    no_flip: bool
    tta: bool
    # what the weights are
    network: Required[Text]
    stem: Text | None
    selected_on: Selection
    train_digest: Text
    stage1_digest: Text | None
    encoder_digest: Text
    environment: Settings


class CheckpointFacts(Facts, total=False):
    """What a checkpoint says of itself, its weights among it until they are taken out."""

    stage: Required[Literal["stage1", "stage2"]]
    epoch: Required[Count]
    head: Annotated[Settings, _has_options]
    method: Text
    setting: Text
    seed: Count
    lr: float | None
    stage1_selected_on: Selection | None
    metrics: Settings
    test_images: Count
    train_files: Files
    stage1_files: Files
    features_digest: Text
    identity: Text
    args: Settings
    given: Settings
    # the weights, and what a resume needs
    model: Required[Tensors]
    head_state: Tensors
    progress: ProgressFacts
    optimizer: OptimizerFacts
    scaler: dict[str, object]
    heads: list[Annotated[HeadFacts, _can_go_on]]
    partial: Annotated[PartialFacts, _has_images]


class PackFacts(Facts, total=False):
    """What a pack says of itself."""

    class_names: Required[ClassNames]
    class_counts: Required[list[Count]]
    imb_ratio: Required[float | None]
    val_source: Required[Text | None]
    stage1_digest: Required[Text | None]
    val_clean: Required[bool]
    train_views: Required[Literal["plain", "augmented"]]
    preset: Annotated[str, {OWN, *PRESETS}.__contains__]
    seed: Count | None
    batch_size: AboveZero  # of stage 2, where it went with the number of images


# ---- checks


def fits(value: object, kind: object) -> bool:
    """Is `value` of a kind? Numbers are finite, lists bounded; a record may hold more than is named in it."""
    origin, inside = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        there = isinstance(value, dict) and all(type(name) is str for name in value)
        there = there and kind.__required_keys__ <= value.keys()
        return there and all(fits(value[n], k) for n, k in kind.__annotations__.items() if n in value)
    if origin in (Annotated, Required):
        return fits(value, inside[0]) and all(test(value) for test in inside[1:])
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return type(value) is str and value in inside
    if origin is list:
        short = type(value) is list and len(value) <= MAX_CLASSES
        return short and all(fits(one, inside[0]) for one in value)
    if origin is dict:
        there = isinstance(value, dict)
        return there and all(fits(n, inside[0]) and fits(one, inside[1]) for n, one in value.items())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER  # NaN is not
    return isinstance(value, kind) if kind in (Tensor, object) else type(value) is kind


def problems(facts: dict, kind: type[Facts], whole: bool = True) -> Iterator[str]:
    """What is wrong with the facts of a file, a line each; not `whole`: some are to come."""
    for name, wanted in kind.__annotations__.items():
        if name not in facts:
            if whole and name in kind.__required_keys__:
                yield f"the fact {name} is missing"
        elif not fits(facts[name], wanted):
            yield f"the fact {name} cannot be {_shown(facts[name])}"
    for name in ("class_names", "class_counts"):
        if name in facts and len(facts[name]) != facts["num_class"]:
            yield f"{name} has {len(facts[name])} entries, num_class is {facts['num_class']}"
    head = facts.get("head") if "head" in kind.__annotations__ else None
    if head and head["kind"] != "linear" and whole and "head_state" not in facts:
        yield f"the weights of its {head['kind']!r:.40} head are missing"


def _shown(value: object) -> str:
    """A value that repr takes: numbers may have more digits than Python prints."""
    short = type(value) in (str, float, bool, type(None)) or (type(value) is int and abs(value) <= LARGEST)
    return repr(value)[:60] if short else f"a {type(value).__name__} of this form"


def counts_told(facts: dict, data: LongTailedData) -> str:
    """Where that differs: how many images a model's data set had, own validation images aside, and has."""
    then = sum(facts.get("class_counts", [])) + facts.get("test_images", 0)
    now = sum(data.class_counts) + len(data.test or ())
    return f" ({then:,} images then, {now:,} now)" if "test_images" in facts and then != now else ""


def class_names(facts: dict, num_classes: int) -> list[str]:
    """The names of the classes; where the facts have none, their numbers."""
    return facts.get("class_names") or [str(k) for k in range(num_classes)]


def compared(facts: dict, images: ImageSet | FileSet) -> tuple[str | None, str]:
    """How training images differ from those of a checkpoint's facts; what of their files was compared.

    None: in nothing that was compared. Other times of change alone are those of a copy.
    """
    if facts.get("train_digest") != images.digest():
        return "the images, their labels or their order are others", ""
    before, now = facts.get("train_files"), images.contents
    if now is None:
        return None, ""
    if before is None:
        return None, "by their names alone, it was made before more was noted"
    looked = f"by all names and sizes and by bytes of {len(now['bytes']):,} of {len(images):,} files"
    if whole := "all" in before and "all" in now:
        looked = "by all names and all bytes"
    elif before["times"] != now["times"]:
        looked += "; their times of change are others, as those of a copy are"
    same_sample = before["bytes"].shape == now["bytes"].shape
    replaced = same_sample and not torch.equal(before["bytes"], now["bytes"])
    replaced = replaced or before["sizes"] != now["sizes"] or (whole and before["all"] != now["all"])
    return ("files were replaced under their names" if replaced else None), looked
