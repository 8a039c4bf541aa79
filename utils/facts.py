"""What the facts of a checkpoint must be: readers rely on it, so it is checked when a file is read."""

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

_PLAIN = (str, int, float, bool, type(None))
_NUMBER = (int, float)


def _is(*kinds: type) -> Callable[[object], bool]:
    return lambda value: type(value) in kinds


def _whole(low: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value >= low


def _list_of(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(type(entry) in kinds for entry in value)


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(type(key) is str for key in value)


def _or_none(test: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or test(value)


def _shots(value: object) -> bool:
    return _list_of(int)(value) and len(value) == 2 and 1 <= value[0] <= value[1]


def _tensors(value: object) -> bool:
    return _texts(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _files(value: object) -> bool:
    tests = {**dict.fromkeys(("names", "bytes"), _prints), **dict.fromkeys(("sizes", "times"), _is(str))}
    found = {"all": ""} | value if _texts(value) else {}
    return all(name in found and test(found[name]) for name, test in (tests | {"all": _is(str)}).items())


def _prints(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _head(value: object) -> bool:
    if not _texts(value) or type(value.get("kind")) is not str:
        return False
    options = value.get("options", {} if value["kind"] == "linear" else None)
    return _texts(options) and all(type(entry) in _PLAIN for entry in options.values())


def _progress(value: object) -> bool:
    tests = {
        "epoch": _whole(0),
        "best_epoch": _or_none(_whole(0)),
        "best_score": _is(*_NUMBER, type(None)),
        "rows": lambda rows: isinstance(rows, list) and all(map(_texts, rows)),
    }
    return _texts(value) and all(name in value and test(value[name]) for name, test in tests.items())


def _optimizer(value: object) -> bool:
    if not (_texts(value) and isinstance(value.get("state"), dict)):
        return False
    groups = value.get("param_groups")
    each = chain(groups if isinstance(groups, list) else [None], value["state"].values())
    return all(map(_texts, each))


def _head_states(value: object) -> bool:
    tests = {
        **dict.fromkeys(("method", "setting"), _is(str)),
        "seed": _whole(0),
        "progress": _progress,
        "seconds": _is(*_NUMBER),
    }
    others = {
        "failure": _is(str),
        **dict.fromkeys(("weights", "best_state", "best_backbone"), _tensors),
        "optimizer": _optimizer,
        "partial": _texts,
    }
    return isinstance(value, list) and all(
        _texts(state)
        and all(name in state and test(state[name]) for name, test in tests.items())
        and all(test(state[name]) for name, test in others.items() if name in state)
        and ("weights" in state or "failure" in state)
        for state in value
    )


# name -> (test, what it must be)
_FACTS = {
    "stage": (lambda value: value in ("stage1", "stage2"), "stage1 or stage2"),
    "dataset": (_is(str), "text"),
    "network": (_is(str), "text"),
    "imb_ratio": (_is(*_NUMBER, type(None)), "a number or nothing"),
    "num_class": (_whole(2), "a whole number of 2 or more"),
    "class_names": (_list_of(str), "a list of texts"),
    "class_counts": (_list_of(int), "a list of whole numbers"),
    "subset_seed": (_or_none(_whole(0)), "a whole number or nothing"),
    "stem": (_or_none(_is(str)), "text or nothing"),
    "shots": (_shots, "two limits"),
    "image_size": (_or_none(_whole(1)), "a whole number or nothing"),
    "augment": (_is(str, type(None)), "text or nothing"),
    "jitter": (_is(*_NUMBER, type(None)), "a number or nothing"),
    "normalise": (_is(str, type(None)), "text or nothing"),
    "no_flip": (_is(bool), "true or false"),
    "tta": (_is(bool), "true or false"),
    "val_source": (_is(str, type(None)), "text or nothing"),
    "val_fraction": (_is(*_NUMBER, type(None)), "a number or nothing"),
    "train_digest": (_is(str), "text"),
    "train_files": (_files, "what the training files were like"),
    "stage1_files": (_files, "what the training files of stage 1 were like"),
    "identity": (_is(str), "text"),
    "seed": (_whole(0), "a whole number"),
    "epoch": (_whole(0), "a whole number"),
    "args": (_texts, "settings by name"),
    "environment": (_texts, "settings by name"),
    "head": (_head, "a kind and its options"),
    "head_state": (_tensors, "tensors by name"),
    "progress": (_progress, "epoch, best_epoch, best_score and rows"),
    "optimizer": (_optimizer, "a state and groups of parameters"),
    "scaler": (_texts, "settings by name"),
    "heads": (_head_states, "a list of heads and how far they are"),
    "given": (_texts, "settings by name"),
    "metrics": (_texts, "figures by name"),
    "selected_on": (_is(str), "text"),
    "method": (_is(str), "text"),
    "setting": (_is(str), "text"),
    "lr": (_is(*_NUMBER, type(None)), "a number or nothing"),
    "stage1_digest": (_is(str, type(None)), "text or nothing"),
    "stage1_selected_on": (_is(str, type(None)), "text or nothing"),
    "features_digest": (_is(str), "text"),
    "model": (_tensors, "tensors by name"),
}
REQUIRED = ("stage", "dataset", "network", "num_class", "epoch", "model")


def problems(content: dict) -> Iterator[str]:
    """What is wrong with a checkpoint's content (plain data and `model`), one line a problem."""
    for name in REQUIRED:
        if name not in content:
            yield f"the fact {name} is missing"
    for name, (test, wanted) in _FACTS.items():
        if name in content and not test(content[name]):
            yield f"the fact {name} must be {wanted}, found {_shown(content[name])}"
    for name in ("class_names", "class_counts"):
        if name in content and len(content[name]) != content["num_class"]:
            yield f"{name} has {len(content[name])} entries, num_class is {content['num_class']}"
    if content.get("head", {"kind": "linear"})["kind"] != "linear" and "head_state" not in content:
        yield f"the weights of its {content['head']['kind']!r:.40} head are missing"


def _shown(value: object) -> str:
    return repr(value)[:60] if type(value) in _PLAIN else f"a {type(value).__name__} of another form"
