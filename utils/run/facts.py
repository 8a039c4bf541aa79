"""What a checkpoint or a pack says of itself, a row a fact: readers rely on it, so it is checked when read.

Of a type and bounded: what has been read can be printed, written and read back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from datasets.types import FileSet, ImageSet
from utils.settings.presets import PRESETS

PACK_FORMAT = "label-over-smoothing feature pack"
OWN = "features"  # as the preset of a pack: features that a user brought

# of classes, of characters of a text, of bytes of all class names: a file has to hold them, and be read back
MAX_CLASSES, MAX_TEXT, MAX_NAMES = 500_000, 5_000, 1 << 22
LARGEST, LARGEST_NUMBER = 2**63 - 1, 1e300
SELECTED_ON = ("last", "val", "test", "unknown")  # it stands in the last line of a run
Test = Callable[[object], bool]


def _is(kind: type) -> Test:
    return lambda value: type(value) is kind


def _is_text(value: object, odd_bytes: str = "strict") -> bool:
    """Unicode without a zero byte; `surrogateescape`: as a path with bytes that are none."""
    if type(value) is not str or len(value) > MAX_TEXT or "\0" in value:
        return False
    try:
        value.encode("utf-8", odd_bytes)
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER  # NaN is not


def _whole(low: int, high: int = LARGEST) -> Test:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*values: str) -> Test:
    return lambda value: type(value) is str and value in values


def _list_of(test: Test) -> Test:
    return lambda value: type(value) is list and len(value) <= MAX_CLASSES and all(map(test, value))


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _named(value: object) -> bool:
    return isinstance(value, dict) and all(type(key) is str for key in value)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return _settings(value)
    # figures of a run that has diverged may be no numbers
    other = value is None or type(value) in (bool, float) or _whole(-LARGEST)(value)
    return other or _is_text(value, "surrogateescape")


def _settings(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_plain, value.values()))


def _shots(value: object) -> bool:
    return _list_of(_whole(1))(value) and len(value) == 2 and value[0] <= value[1]


def _class_names(value: object) -> bool:
    return _list_of(_is_text)(value) and sum(len(name.encode()) for name in value) <= MAX_NAMES


def _tensors(value: object) -> bool:
    return _named(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _record(needed: dict[str, Test], others: dict[str, Test] | None = None) -> Test:
    """A dictionary with such entries; `others` may be absent, what is in neither is not looked at."""
    return lambda value: (
        _named(value)
        and needed.keys() <= value.keys()
        and all(test(value[name]) for name, test in (needed | (others or {})).items() if name in value)
    )


def _prints(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _files(value: object) -> bool:
    needed = {"names": _prints, "bytes": _prints, "sizes": _is(str), "times": _is(str)}
    return _record(needed, {"all": _is(str)})(value) and 0 < len(value["bytes"]) <= len(value["names"])


def _head(value: object) -> bool:
    if not _record({"kind": _is(str)})(value):
        return False
    return _settings(value.get("options", {} if value["kind"] == "linear" else None))


_progress = _record(
    {"epoch": _whole(0), "rows": _list_of(_settings)}
    | {"best_epoch": _or_none(_whole(0)), "best_score": _or_none(_is_number)}
)


def _optimizer(value: object) -> bool:
    if not _record({"state": _is(dict), "param_groups": _is(list)})(value):
        return False
    return all(map(_named, chain(value["param_groups"], value["state"].values())))


def _partial(value: object) -> bool:
    tensors = dict.fromkeys(("counts", "losses", "hits"), lambda one: isinstance(one, Tensor))
    if not _record({"step": _whole(0)} | tensors)(value):
        return False
    counts = value["counts"]
    fits = counts.ndim == 2 and counts.shape[1] == 2 and counts.dtype == torch.int64 and (counts >= 0).all()
    steps, images = counts.sum(dim=0).tolist() if fits else (0, 0)
    return images > 0 and all(value[name].shape == (steps,) for name in ("losses", "hits"))


def _best_is_there(state: dict) -> bool:
    """The weights of a head's best epoch, where there has been one: a run needs them at its end."""
    best, epoch = state.get("best_state"), state["progress"]["best_epoch"]
    if best is None or epoch is None:
        return best is epoch
    one, other = ({name: value.shape for name, value in some.items()} for some in (best, state["weights"]))
    return one == other


_head_state = _record(
    {"method": _is_text, "setting": _is_text, "seed": _whole(0)}
    | {"progress": _progress, "seconds": _is_number},
    dict.fromkeys(("weights", "momentum", "best_state", "best_backbone"), _tensors)
    | dict.fromkeys(("loss_sum", "hit_sum"), _is(Tensor))
    | {"failure": _is(str), "step": _whole(0), "images": _whole(0)},
)


def _head_states(value: object) -> bool:
    return isinstance(value, list) and all(
        _head_state(state) and ("failure" in state or ("weights" in state and _best_is_there(state)))
        for state in value
    )


CHECKPOINT, PACK = frozenset({"checkpoint"}), frozenset({"pack"})
BOTH = CHECKPOINT | PACK


@dataclass(frozen=True)
class Fact:
    """One thing that a file says of itself: what it must be, the files it stands in, those that need it."""

    name: str
    test: Test
    wanted: str
    files: frozenset[str] = BOTH
    needed: frozenset[str] = frozenset()


_text, _text_or_none = (_is_text, "text"), (_or_none(_is_text), "text or nothing")
_number, _switch = (_or_none(_is_number), "a number or nothing"), (_is(bool), "true or false")
_whole_or_none, _by_name = (_or_none(_whole(0)), "a whole number or nothing"), (_settings, "settings by name")
_count = (_whole(0), "a whole number")
_selected = (_one_of(*SELECTED_ON), f"one of {', '.join(SELECTED_ON)}")
SCHEMA = (
    # the data
    Fact("dataset", *_text, needed=BOTH),
    Fact("num_class", _whole(2, MAX_CLASSES), f"a whole number of 2 to {MAX_CLASSES}", needed=BOTH),
    Fact("class_names", _class_names, "a list of texts", needed=PACK),
    Fact("class_counts", _list_of(_whole(0)), "a list of whole numbers", needed=PACK),
    Fact("imb_ratio", *_number, needed=PACK),
    Fact("subset_seed", *_whole_or_none),
    Fact("shots", _shots, "two limits"),
    Fact("val_source", *_text_or_none, needed=PACK),
    Fact("val_fraction", *_number),
    Fact("val_clean", *_switch, needed=PACK),
    Fact("train_views", _one_of("plain", "augmented"), "plain or augmented", needed=PACK),
    Fact("train_files", _files, "what the training files were like", CHECKPOINT),
    Fact("stage1_files", _files, "what the training files of stage 1 were like", CHECKPOINT),
    # how images are looked at
    Fact("image_size", _or_none(_whole(1)), "a whole number or nothing"),
    Fact("augment", *_text_or_none),
    Fact("jitter", *_number),
    Fact("normalise", *_text_or_none),
    Fact("no_flip", *_switch),
    Fact("tta", *_switch),
    # what the weights are
    Fact("stage", _one_of("stage1", "stage2"), "stage1 or stage2", CHECKPOINT, CHECKPOINT),
    Fact("network", *_text, needed=BOTH),
    Fact("stem", *_text_or_none),
    Fact("head", _head, "a kind and its options", CHECKPOINT),
    Fact("method", *_text, CHECKPOINT),
    Fact("setting", *_text, CHECKPOINT),
    Fact("epoch", *_count, CHECKPOINT, CHECKPOINT),
    Fact("selected_on", *_selected),
    Fact("stage1_selected_on", _or_none(_selected[0]), _selected[1], CHECKPOINT),
    Fact("metrics", _settings, "figures by name", CHECKPOINT),
    # digests
    Fact("train_digest", *_text),
    Fact("stage1_digest", *_text_or_none, needed=PACK),
    Fact("features_digest", *_text, CHECKPOINT),
    Fact("identity", *_text, CHECKPOINT),
    # settings and environment
    Fact("preset", _one_of(OWN, *PRESETS), f"{OWN} or the name of a data set", PACK),
    Fact("seed", *_whole_or_none, PACK),
    Fact("seed", *_count, CHECKPOINT),
    Fact("lr", *_number, CHECKPOINT),
    Fact("args", *_by_name, CHECKPOINT),
    Fact("given", *_by_name, CHECKPOINT),
    Fact("environment", *_by_name),
    # the weights, and what a resume needs
    Fact("model", _tensors, "tensors by name", CHECKPOINT, CHECKPOINT),
    Fact("head_state", _tensors, "tensors by name", CHECKPOINT),
    Fact("progress", _progress, "epoch, best_epoch, best_score and rows", CHECKPOINT),
    Fact("optimizer", _optimizer, "a state and groups of parameters", CHECKPOINT),
    Fact("scaler", _named, "settings by name", CHECKPOINT),
    Fact("heads", _head_states, "a list of heads and how far they are", CHECKPOINT),
    Fact("partial", _partial, "the steps of an epoch, with their losses and hits", CHECKPOINT),
)


def problems(facts: dict, file: frozenset[str], whole: bool = True) -> Iterator[str]:
    """What is wrong with the facts of a CHECKPOINT or PACK, a line each; not `whole`: some are to come."""
    rows = [row for row in SCHEMA if file <= row.files]
    missing = [row.name for row in rows if whole and file <= row.needed and row.name not in facts]
    yield from (f"the fact {name} is missing" for name in missing)
    for row in rows:
        if row.name in facts and not row.test(facts[row.name]):
            yield f"the fact {row.name} must be {row.wanted}, found {_shown(facts[row.name])}"
    for name in ("class_names", "class_counts"):
        if name in facts and len(facts[name]) != facts["num_class"]:
            yield f"{name} has {len(facts[name])} entries, num_class is {facts['num_class']}"
    kind = facts.get("head", {"kind": "linear"})["kind"]
    if kind != "linear" and whole and "head_state" not in facts:
        yield f"the weights of its {kind!r:.40} head are missing"


def _shown(value: object) -> str:
    """A value that repr takes: numbers may have more digits than Python prints."""
    plain = type(value) in (str, float, bool, type(None)) or _whole(-LARGEST)(value)
    return repr(value)[:60] if plain else f"a {type(value).__name__} of another form"


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
    same_sample = before["bytes"].shape == now["bytes"].shape
    count = int((before["bytes"] != now["bytes"]).sum()) if same_sample else 0
    looked = f"by all names and sizes and by bytes of {len(now['bytes']):,} of {len(images):,} files"
    if whole := "all" in before and "all" in now:
        looked = "by all names and all bytes"
    if before["times"] != now["times"] and not whole:
        looked += "; their times of change are others, as those of a copy are"
    if before["sizes"] != now["sizes"] or count or (whole and before["all"] != now["all"]):
        what = f"{count:,} of {len(now['bytes']):,} that were looked at" if count else "some"
        return f"files were replaced under their names, {what}", looked
    return None, looked
