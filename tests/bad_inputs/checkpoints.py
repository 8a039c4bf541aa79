"""Checkpoints, ours and foreign ones: damaged, hostile, of another network, stage, version or kind."""

import gzip
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from models import build_model
from tests.attacks import checkpoint_attacks
from tests.bad_inputs import Kitchen, Make, Row
from utils.run import checkpoint
from utils.settings.table import EVALUATE, STAGE1, STAGE2

HOLE = 1 << 33


def damaged(change: Callable[[bytes], bytes], source: str = "stage1") -> Make:
    """The sound file of that name, changed."""
    return lambda root, kitchen: (root / "bad").write_bytes(change(getattr(kitchen, source).read_bytes()))


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def linked(target: str) -> Make:
    return lambda root, kitchen: (root / "bad").symlink_to(target.format(root=root))


def huge(root: Path, kitchen: Kitchen) -> None:
    """A hole: it takes no space."""
    with open(root / "bad", "wb") as handle:
        handle.truncate(HOLE)


def nothing(root: Path, kitchen: Kitchen) -> None:
    """The file is not there."""


# what any file may be instead of one: kind -> (how it is made, what the line says of it)
NO_FILE: dict[str, tuple[Make, str]] = {
    "absent": (nothing, "bad (does not exist|cannot be read: No such file)"),
    "a folder": (
        lambda root, kitchen: (root / "bad").mkdir(),
        "bad (is not a file|cannot be read: Is a dir)",
    ),
    "a pipe": (lambda root, kitchen: os.mkfifo(root / "bad"), "bad is not a file"),
    "a device": (linked("/dev/zero"), "bad is not a file"),
    "a loop of links": (linked("{root}/bad"), "bad cannot be read: Too many levels of symbolic links"),
    "a link to nothing": (linked("{root}/x"), "bad (does not exist|cannot be read: No such file)"),
}


def not_permitted(source: str) -> Make:
    def make(root: Path, kitchen: Kitchen) -> None:
        (root / "bad").write_bytes(getattr(kitchen, source).read_bytes())
        (root / "bad").chmod(0)

    return make


class Call:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.marker}",))


def hostile(old: bool) -> Make:
    def make(root: Path, kitchen: Kitchen) -> None:
        content = {"model": {"w": torch.zeros(2)}, "x": Call(root / "marker")}
        torch.save(content, root / "bad", _use_new_zipfile_serialization=not old)

    return make


def compressed(root: Path, kitchen: Kitchen) -> None:
    with zipfile.ZipFile(kitchen.stage1) as source, zipfile.ZipFile(root / "bad", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


def torchscript(root: Path, kitchen: Kitchen) -> None:
    with zipfile.ZipFile(root / "bad", "w") as target:
        target.writestr("a/constants.pkl", b"")


def bare(value: object) -> Make:
    return lambda root, kitchen: torch.save(value, root / "bad")


def written(content: bytes) -> Make:
    return lambda root, kitchen: (root / "bad").write_bytes(content)


def archive(root: Path, kitchen: Kitchen) -> None:
    with tarfile.open(root / "bad", "w") as target:
        target.add(kitchen.stage1, "x" * 120)


def ours(source: str = "stage1", change: Callable[[dict], None] | None = None, **facts: object) -> Make:
    """A sound file with other facts (... leaves one out) and a digest that fits."""

    def make(root: Path, kitchen: Kitchen) -> None:
        found = checkpoint.read(getattr(kitchen, source))
        content = found.facts | {"model": dict(found.state)} | facts
        if change:
            change(content["model"])
        checkpoint.save(root / "bad", {name: value for name, value in content.items() if value is not ...})

    return make


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    name = "layer1.0.conv1.weight"
    return ours(change=lambda state: state.update({name: change(state[name])}))


def spoilt(value: float) -> Make:
    return weights(lambda weight: weight.index_fill(0, torch.tensor([0]), value))


def turned(state: dict) -> dict:
    """With a classifier as LDAM-DRW's: cosines to [features, classes], no bias."""
    last = {"linear.weight": state.pop("fc.weight").T.contiguous()}
    return {name: value for name, value in state.items() if name != "fc.bias"} | last


def network(name: str = "resnet8", classes: int = 10) -> dict:
    """The weights of a network for the digits."""
    return build_model(name, classes, in_channels=1).state_dict()


def built(attack: str) -> Make:
    return lambda root, kitchen: (root / "bad").write_bytes(checkpoint_attacks()[attack])


# ---- any file in place of a checkpoint, named in four ways: one reader has them all

READERS = {
    "evaluate": (EVALUATE, "--dataset digits_lt --pretrained_pth {bad}"),
    "stage 2": (STAGE2, "--dataset digits_lt --pretrained_pth {bad}"),
    "start": (STAGE1, "--dataset digits_lt --pretrained {bad}"),
    "resume": (STAGE1, "--resume {bad}"),
}
DAMAGED, MISLAS = "bad is damaged", ("model", "classifier", "lws_model")
FILES: dict[str, tuple[Make, str]] = {
    "empty": (written(b""), "bad is empty: not a checkpoint"),
    "text": (written(b"hello, this is nothing\n"), DAMAGED),
    "cut in half": (damaged(lambda content: content[: len(content) // 2]), DAMAGED),
    "cut at its end": (damaged(lambda content: content[:-1]), DAMAGED),
    "a flipped bit": (damaged(flipped), DAMAGED),
    "a feature pack": (damaged(bytes, "pack"), "bad is a feature pack: stage 2 and evaluate take it by"),
    "a Git-LFS pointer": (written(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git-LFS pointer"),
    "a web page": (written(b"\n<!DOCTYPE html><html>Sign in</html>"), "bad is a web page"),
    "packed by gzip": (damaged(gzip.compress), "bad is compressed by gzip: unpack it"),
    "a tar archive": (archive, "bad is a tar archive: unpack it"),
    "broken safetensors": (written(b"\2\0\0\0\0\0\0\0{}x"), "bad is damaged or no file of weights"),
    "MiSLAS's scales": (
        bare({f"state_dict_{part}": {"fc.weight": torch.ones(2, 2)} for part in MISLAS}),
        r"bad holds a factor on each logit \(state_dict_lws_model\)",
    ),
    "huge": (huge, DAMAGED),
    "compressed": (compressed, "bad is a compressed zip file"),
    "a TorchScript program": (torchscript, "bad is a TorchScript program: save"),
    "hostile": (hostile(old=False), "bad holds Python objects"),
    "hostile, old format": (hostile(old=True), "bad holds Python objects"),
    "a pickled module": (bare(build_model("resnet8", 10)), "bad holds Python objects"),
    "declaring much": (
        bare({"w": torch.zeros(1).expand(1 << 36)}),
        r"bad declares a tensor \[68719476736\] larger than",
    ),
    "no torch file": (
        written(pickle.dumps({"w": [1, 2]})),
        "bad is a plain pickle, and may run code: not read",
    ),
    "two files in one": (
        built("an old file with a new one behind it"),
        "bad goes on for .* behind its weights",
    ),
    "two tables": (
        built("two tables of records"),
        "bad is damaged, or built so that it can be read in two ways",
    ),
    "two records": (built("two records of one name"), "bad holds two .* it can be read in two ways"),
    "a codec bomb": (
        built("hex nested 24 times, zip"),
        "bad holds Python objects .* another codec than latin-1",
    ),
    "a tensor beyond": (built("a tensor far behind its storage"), r"bad declares a tensor \[1\] larger than"),
    "a list": (bare([1, 2]), "bad holds no weights by name: found a list"),
    "no weights": (bare({"a": 1}), "bad holds no weights by name: found a dict with 'a'"),
    "a sparse tensor": (bare({"w": torch.eye(3).to_sparse()}), "bad holds Python objects .*sparse"),
    "a later version": (ours(version=99), "bad has format version 99, this code reads up to 2: update it"),
    "version 0": (ours(version=0), "bad is damaged: there is no format version 0"),
    "version one": (ours(version="1"), "bad is damaged: there is no format version '1'"),
}
# ---- what a network may not be given (not for --resume, which is of its own)
WEIGHTS: dict[str, tuple[Make, str]] = {
    "NaN": (spoilt(float("nan")), r"bad: .*layer1.0.conv1.weight.*not finite"),
    "infinite": (spoilt(float("inf")), r"bad: .*layer1.0.conv1.weight.*not finite"),
    "complex": (bare({"w": torch.ones(2, dtype=torch.complex64)}), "bad holds Python objects"),
    "whole numbers": (weights(torch.Tensor.long), r"bad: .*layer1.0.conv1.weight.* int64"),
    "another network": (ours(model=network("resnet20")), "bad.*(resnet20|layer1.1)"),
    "one weight too few": (ours(change=lambda state: state.pop("bn1.weight")), "bad.*1 missing .bn1.weight"),
    "a name that a terminal obeys": (
        ours(change=lambda state: state.update({"\x1b[2J\u202e": torch.ones(1)})),
        r"bad.*1 unexpected .\\x1b\[2J\\u202e",
    ),
    "one weight too many": (ours(change=lambda state: state.update(x=torch.ones(1))), "bad.*1 unexpected .x"),
    "another shape": (weights(lambda w: w[:, :1]), "bad.*1 of another shape .layer1.0.conv1.weight"),
    "scalars": (weights(lambda w: w.sum()), "bad.*1 of another shape .layer1.0.conv1.weight"),
}
# what every way of naming a file meets: evaluate alone meets the rest too, of weights --pretrained as well
EVERYWHERE = {"absent", "a folder", "a pipe", "a loop of links", "empty", "cut in half", "a feature pack"}
EVERYWHERE |= {"hostile", "a later version", "NaN"}
FACTS = {
    "train_files": [
        {"names": torch.arange(names), "bytes": torch.arange(count), "sizes": "", "times": ""}
        for names, count in ((1, 2), (2, 0))
    ],
    "stage": ["stage3", ["stage1"]],
    "dataset": [None],
    "network": [None],
    "num_class": [10.0, True, 1, None, 9],
    "epoch": [-1, None, 1 << 70],
    "train_digest": [{}, None],
    "stage1_digest": [5, "\ud800"],
    "selected_on": ["best", "last\ntest overall=99.99 many=- medium=- few=- selected_on=last", 3],
    "val_fraction": [float("nan"), 1e301],
    "metrics": [[], {"overall": 10**100}],
    "class_names": [["\ud800"] * 10, ["a\0"] * 10, ["a" * 500_000] * 10, "abc", [1] * 10, list("abc"), None],
    "class_counts": [[1.5] * 10, [1], {}, [10**100] * 10, [-1] * 10],
    "shots": [[100, 20], [20], "20,100", [0, 5]],
    "imb_ratio": ["50"],
    "seed": [-1, None],
    "tta": [1],
    "args": [[], {1: 2}, None, {"ckpt_dir": "a\0b"}, {"out": "\ud800"}, {"epochs": 10**100}],
    "environment": ["cpu", {"cpu": "a" * 500_000}],
    "head": [
        "linear",
        {},
        {"kind": 3},
        {"kind": "lws"},
        {"kind": "lws", "options": {}},
        {"kind": "x", "options": 3},
        {"kind": "x", "options": {"scale": 10**100}},
    ],
    "head_state": [[], {"weight": 3}],
    "progress": [{}, [], {"epoch": 1, "best_epoch": "x", "best_score": None, "rows": []}],
    "heads": [[{"method": "la", "setting": "", "seed": 0, "seconds": 0.0, "statistics": {"x": "text"}}]],
    "optimizer": [{}, {"state": {}, "param_groups": 3}, {"state": [], "param_groups": []}],
    "model": ["weights", {"w": 3}, None],
}
REQUIRED = ("stage", "dataset", "network", "num_class", "epoch", "model")
# of the right kind, and still nothing that could be: the first of each is tried in stage 2 as well
STRANGE = {
    "imb_ratio": [float("nan"), float("inf"), -3.0, 0.5],
    "dataset": ["mnist", "../../x", "", "a\nb", "\0"],
    "network": ["os:abort", "builtins:input", "resnet99", "", "a\nb", "../x", "x" * 5000],
    "subset_seed": [1 << 80],
    "stem": ["huge", ""],
    "val_source": ["theirs"],
    "shots": [[1, 1 << 70]],
}
STRANGE_ON_DISK = {
    "image_size": [1, 1 << 40],
    "augment": ["none", ""],
    "jitter": [5.0, -1.0, float("nan")],
    "normalise": ["x"],
    "num_class": [1 << 50],
    "class_names": [["ant", "bee", "dog"], ["a\nb", "\x1b[2J", "c" * 5000]],
}


def _rows() -> list[Row]:
    rows = []
    for way, (script, words) in READERS.items():
        kinds = NO_FILE | FILES | (WEIGHTS if way != "resume" else {})
        program = {"hostile": "evaluate", "cut in half": "stage 2"}
        for kind, (make, says) in kinds.items():
            tried = way == "evaluate" or kind in EVERYWHERE or (way == "start" and kind in WEIGHTS)
            if not tried:
                continue
            inside = "bad/last.pth does not exist" if (way, kind) == ("resume", "a folder") else says
            rows.append(Row(f"{way}: {kind}", script, words, inside, make, program=program.get(kind) == way))
        says, make = "bad cannot be read: Permission denied", not_permitted("stage1")
        rows.append(Row(f"{way}: not permitted", script, words, says, make, unprivileged=True))
    evaluate = READERS["evaluate"][1]
    for fact, values in FACTS.items():
        for value in values:
            says = rf"bad was not written by this project's code: .*({fact}|class_names|head)"
            rows.append(Row(f"fact {fact} {value!r:.50}", EVALUATE, evaluate, says, ours(**{fact: value})))
    for fact in REQUIRED:
        says = f"bad was not written by this project's code: the fact {fact} is missing"
        rows.append(Row(f"no fact {fact}", EVALUATE, evaluate, says, ours(**{fact: ...})))
    for fact, values in STRANGE.items():
        for script, tried in ((EVALUATE, values), (STAGE2, values[:1])):
            for value in tried:
                name = f"{script}, fact {fact} {value!r:.40}"
                rows.append(Row(name, script, "--pretrained_pth {bad}", "bad", ours(**{fact: value})))
    for fact, values in STRANGE_ON_DISK.items():
        for value in values:
            more = {} if fact != "num_class" else {"class_names": ..., "class_counts": ...}
            make = ours("pets1", **{fact: value}, **more)
            words = "--pretrained_pth {bad} --data_dir {pets} --workers 0"
            words = words if fact != "num_class" else words + " --predict {pets}"
            rows.append(Row(f"fact {fact} {value!r:.40}", EVALUATE, words, "bad", make))
    return rows


HEADS = {
    "of an unknown kind": ({"kind": "magic", "options": {}}, {}, "bad: .*'?magic"),
    "without its weights": ({"kind": "lws", "options": {}}, {}, "bad: "),
    "with weights of another": ({"kind": "lws", "options": {}}, {"x": torch.ones(3)}, "bad: "),
    "with an unknown option": ({"kind": "etf", "options": {"x": 1}}, {"w": torch.ones(3)}, "bad: "),
    "with text for a number": ({"kind": "etf", "options": {"scale": "x"}}, {"w": torch.ones(3)}, "bad: "),
}
FOREIGN = {
    "of other classes": (network(classes=7), "bad is a resnet8 with 7 classes, 10 are needed"),
    "with a cosine classifier": (
        turned(network()),
        r"bad is a resnet8 with another classifier: .*fc.weight \[64, 10\] instead of \[10, 64\]",
    ),
    "with a classifier of another kind": (
        network() | {"fc.scale": torch.ones(1)},
        r"bad is a resnet8 with another classifier: 1 unexpected \(fc.scale\)",
    ),
    "of another network": (network("resnet20"), "bad is not a resnet8: .*unexpected"),
    "of another network, behind a prefix": (
        {f"module.{name}": value for name, value in network("resnet20").items()},
        "bad is not a resnet8: .*unexpected",
    ),
}
NO_LAST = "is not the last.pth of a stage-1 run"
OTHERS = {
    "stage 2 for stage 1": (
        STAGE2,
        "--pretrained_pth {stage2}",
        "stage2.pth is a stage2 checkpoint, --cur_stage stage1 needs one of stage1",
    ),
    "stage 1 for stage 2": (
        EVALUATE,
        "--pretrained_pth {stage1} --cur_stage stage2",
        "stage1.pth is a stage1 checkpoint, --cur_stage stage2 needs one of stage2",
    ),
    "a published stage 1 to resume": (STAGE1, "--resume {stage1}", NO_LAST),
    "a stage 2 to resume": (STAGE1, "--resume {stage2}", NO_LAST),
    "other classes than the images": (
        EVALUATE,
        "--pretrained_pth {bad} --data_dir {pets} --workers 0",
        "bad knows class 1 as 'bird', folder_pets has 'bee' there",
        ours("pets1", class_names=["ant", "bird", "cat"]),
    ),
}


def _heads_and_foreign() -> list[Row]:
    rows = []
    for kind, (head, state, says) in HEADS.items():
        make = ours("stage2", head=head, head_state=state)
        rows.append(Row(f"a head {kind}", EVALUATE, "--pretrained_pth {bad}", says, make))
    words = READERS["evaluate"][1] + " --cur_stage stage1"
    for kind, (state, says) in FOREIGN.items():
        rows.append(Row(f"foreign weights {kind}", EVALUATE, words, says, bare(state)))
    return rows


ROWS = [*_rows(), *_heads_and_foreign(), *(Row(kind, *row) for kind, row in OTHERS.items())]
