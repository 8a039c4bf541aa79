"""What the facts of a checkpoint or a pack must be: readers rely on it, so it is checked when one is read.

Of a type and bounded: what has been read can be printed, written and read back.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, int64

from datasets.types import FileSet, ImageSet

PACK_FORMAT = "label-over-smoothing feature pack"

# of classes, of characters of a text, of bytes of all class names: a file has to hold them, and be read back
MAX_CLASSES, MAX_TEXT, MAX_NAMES = 500_000, 5_000, 1 << 22
LARGEST, LARGEST_NUMBER = 2**63 - 1, 1e300
SELECTED_ON = ("last", "val", "test", "unknown")  # it stands in the last line of a run
Test = Callable[[object], bool]


def _is(*kinds: type) -> Test:
    return lambda value: type(value) in kinds


def _is_text(value: object, odd_bytes: str = "strict") -> bool:
    """Unicode without a zero byte; `surrogateescape`: as a path with bytes that are none."""
    if type(value) is not str or len(value) > MAX_TEXT or "\0" in value:
        return False
    try:
        return bool(value.encode("utf-8", odd_bytes)) or not value
    except UnicodeEncodeError:
        return False


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER  # NaN is not


def _whole(low: int, high: int = LARGEST) -> Test:
    return lambda value: type(value) is int and low <= value <= high


def _list_of(test: Test, most: int = MAX_CLASSES) -> Test:
    return lambda value: type(value) is list and len(value) <= most and all(map(test, value))


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(type(key) is str for key in value)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return _settings(value)
    # figures of a run that has diverged may be no numbers
    return (
        value is None
        or type(value) in (bool, float)
        or _whole(-LARGEST)(value)
        or _is_text(value, "surrogateescape")
    )


def _settings(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_plain, value.values()))


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _shots(value: object) -> bool:
    return _list_of(_whole(1))(value) and len(value) == 2 and value[0] <= value[1]


def _class_names(value: object) -> bool:
    return _list_of(_is_text)(value) and sum(len(name.encode()) for name in value) <= MAX_NAMES


def _tensors(value: object) -> bool:
    return _texts(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _record(needed: dict[str, Test], others: dict[str, Test] | None = None) -> Test:
    """A dictionary with such entries; `others` may be absent, what is in neither is not looked at."""
    return lambda value: (
        _texts(value)
        and needed.keys() <= value.keys()
        and all(test(value[name]) for name, test in (needed | (others or {})).items() if name in value)
    )


def _prints(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _files(value: object) -> bool:
    tests = {**dict.fromkeys(("names", "bytes"), _prints), **dict.fromkeys(("sizes", "times"), _is(str))}
    return _record(tests, {"all": _is(str)})(value) and 0 < len(value["bytes"]) <= len(value["names"])


def _head(value: object) -> bool:
    if not _texts(value) or type(value.get("kind")) is not str:
        return False
    options = value.get("options", {} if value["kind"] == "linear" else None)
    return _settings(options)


_progress = _record(
    {
        "epoch": _whole(0),
        "best_epoch": _or_none(_whole(0)),
        "best_score": _or_none(_is_number),
        "rows": _list_of(_settings),
    }
)


def _optimizer(value: object) -> bool:
    if not (_texts(value) and isinstance(value.get("state"), dict)):
        return False
    groups = value.get("param_groups")
    each = chain(groups if isinstance(groups, list) else [None], value["state"].values())
    return all(map(_texts, each))


def _partial(value: object) -> bool:
    if not (_texts(value) and _whole(0)(value.get("step"))):
        return False
    counts, *columns = (value.get(name) for name in ("counts", "losses", "hits"))
    if not all(isinstance(tensor, Tensor) for tensor in (counts, *columns)):
        return False
    fits = counts.ndim == 2 and counts.shape[1] == 2 and counts.dtype == int64 and bool((counts >= 0).all())
    steps, images = counts.sum(dim=0).tolist() if fits else (0, 0)
    return images > 0 and all(tensor.shape == (steps,) for tensor in columns)


def _best_is_there(state: dict) -> bool:
    """The weights of a head's best epoch, where there has been one: a run needs them at its end."""
    best, weights = state.get("best_state"), state["weights"]
    if best is None or state["progress"]["best_epoch"] is None:
        return best is state["progress"]["best_epoch"]
    return {name: value.shape for name, value in best.items()} == {
        name: value.shape for name, value in weights.items()
    }


_head_state = _record(
    {
        **dict.fromkeys(("method", "setting"), _is_text),
        "seed": _whole(0),
        "progress": _progress,
        "seconds": _is_number,
    },
    {
        "failure": _is(str),
        **dict.fromkeys(("weights", "best_state", "best_backbone"), _tensors),
        "momentum": _tensors,
        **dict.fromkeys(("step", "images"), _whole(0)),
        **dict.fromkeys(("loss_sum", "hit_sum"), _is(Tensor)),
    },
)


def _head_states(value: object) -> bool:
    return isinstance(value, list) and all(
        _head_state(state) and ("failure" in state or ("weights" in state and _best_is_there(state)))
        for state in value
    )


_text, _number = (_is_text, "text"), (_or_none(_is_number), "a number or nothing")
_text_or_none = (_or_none(_is_text), "text or nothing")
_selected = (lambda value: value in SELECTED_ON, f"one of {', '.join(SELECTED_ON)}")
# name -> (test, what it must be), of facts that both may have
FACTS: dict[str, tuple[Test, str]] = {
    "dataset": _text,
    "network": _text,
    "imb_ratio": _number,
    "num_class": (_whole(2, MAX_CLASSES), f"a whole number of 2 to {MAX_CLASSES}"),
    "class_names": (_class_names, "a list of texts"),
    "class_counts": (_list_of(_whole(0)), "a list of whole numbers"),
    "subset_seed": (_or_none(_whole(0)), "a whole number or nothing"),
    "stem": _text_or_none,
    "shots": (_shots, "two limits"),
    "image_size": (_or_none(_whole(1)), "a whole number or nothing"),
    "augment": _text_or_none,
    "jitter": _number,
    "normalise": _text_or_none,
    "no_flip": (_is(bool), "true or false"),
    "tta": (_is(bool), "true or false"),
    "val_source": _text_or_none,
    "val_fraction": _number,
    "train_digest": _text,
    "stage1_digest": _text_or_none,
    "seed": (_or_none(_whole(0)), "a whole number or nothing"),
    "environment": (_settings, "settings by name"),
    "selected_on": _selected,
    "val_clean": (_is(bool), "true or false"),
    "train_views": (lambda value: value in ("plain", "augmented"), "plain or augmented"),
}
_OF_CHECKPOINTS = {
    "stage": (lambda value: value in ("stage1", "stage2"), "stage1 or stage2"),
    "train_files": (_files, "what the training files were like"),
    "stage1_files": (_files, "what the training files of stage 1 were like"),
    "identity": _text,
    "seed": (_whole(0), "a whole number"),
    "epoch": (_whole(0), "a whole number"),
    "args": (_settings, "settings by name"),
    "head": (_head, "a kind and its options"),
    "head_state": (_tensors, "tensors by name"),
    "progress": (_progress, "epoch, best_epoch, best_score and rows"),
    "optimizer": (_optimizer, "a state and groups of parameters"),
    "scaler": (_texts, "settings by name"),
    "heads": (_head_states, "a list of heads and how far they are"),
    "partial": (_partial, "the steps of an epoch, with their losses and hits"),
    "given": (_settings, "settings by name"),
    "metrics": (_settings, "figures by name"),
    "method": _text,
    "setting": _text,
    "lr": _number,
    "stage1_selected_on": (_or_none(_selected[0]), _selected[1]),
    "features_digest": _text,
    "model": (_tensors, "tensors by name"),
}
REQUIRED = ("stage", "dataset", "network", "num_class", "epoch", "model")


def problems(content: dict) -> Iterator[str]:
    """What is wrong with a checkpoint's content (plain data and `model`), one line a problem."""
    yield from problems_of_facts(content, REQUIRED, FACTS | _OF_CHECKPOINTS)
    if content.get("head", {"kind": "linear"})["kind"] != "linear" and "head_state" not in content:
        yield f"the weights of its {content['head']['kind']!r:.40} head are missing"


def problems_of_facts(
    facts: dict, required: Iterable[str], known: dict[str, tuple[Test, str]] = FACTS
) -> Iterator[str]:
    """What is wrong with facts, those of a pack where not said otherwise."""
    for name in required:
        if name not in facts:
            yield f"the fact {name} is missing"
    for name, (test, wanted) in known.items():
        if name in facts and not test(facts[name]):
            yield f"the fact {name} must be {wanted}, found {_shown(facts[name])}"
    for name in ("class_names", "class_counts"):
        if name in facts and len(facts[name]) != facts["num_class"]:
            yield f"{name} has {len(facts[name])} entries, num_class is {facts['num_class']}"


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
