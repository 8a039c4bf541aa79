"""Feature packs, and the arrays of which `python -m utils.features pack` makes one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.bad_inputs import EXPORT, PACK, Kitchen, Make, Row
from tests.bad_inputs.checkpoints import NO_FILE, Call, damaged, flipped, huge, not_permitted
from tests.helpers import checkpoint_content
from tests.test_packs import tiny, with_val, write_raw
from utils.packs.pack import write_pack
from utils.run import checkpoint
from utils.run.facts import PACK_FORMAT
from utils.settings.table import ARGUMENTS, EVALUATE, NOT_WITH_PACK, STAGE2

READERS = {
    "stage 2": (STAGE2, "--features {bad}"),
    "evaluate": (EVALUATE, "--features {bad} --cur_stage stage1"),
}
HEADER = {"format": PACK_FORMAT, "version": "1", "digest": "0" * 64, "facts": "{}"}


def by_hand(tensors: dict, size: int = 64, length: int | None = None) -> Make:
    """A safetensors file whose header says what it likes."""

    def make(root: Path, kitchen: Kitchen) -> None:
        header = json.dumps({"__metadata__": HEADER} | tensors).encode()
        start = (len(header) if length is None else length).to_bytes(8, "little")
        (root / "bad").write_bytes(start + header + bytes(size))

    return make


def entry(start: int, end: int, dtype: str = "F32", shape: tuple = (4,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def raw(change: Callable[[dict], None] | None = None, **facts: object) -> Make:
    """A pack of three classes with a digest that fits, its tensors or facts changed (... leaves one out)."""

    def make(root: Path, kitchen: Kitchen) -> None:
        known = {name: value for name, value in (tiny().facts | facts).items() if value is not ...}
        write_raw(root / "bad", tiny(), change=change, facts=json.dumps(known))

    return make


def stated(facts: str) -> Make:
    """A pack whose facts are this text."""
    return lambda root, kitchen: write_raw(root / "bad", tiny(), facts=facts)


def tensor(**tensors: torch.Tensor) -> Make:
    return raw(lambda found: found.update(tensors))


DAMAGED = "bad is damaged or not a feature pack"
FILES: dict[str, tuple[Make, str]] = {
    "empty": (damaged(lambda content: b"", "pack"), DAMAGED),
    "text": (damaged(lambda content: b"hello, this is nothing\n", "pack"), DAMAGED),
    "cut in half": (damaged(lambda content: content[: len(content) // 2], "pack"), DAMAGED),
    "cut at its end": (damaged(lambda content: content[:-1], "pack"), DAMAGED),
    "a flipped bit": (damaged(flipped, "pack"), "bad is damaged: its content does not match the digest"),
    "a checkpoint": (damaged(bytes, "stage1"), "bad is a checkpoint"),
    "huge": (huge, DAMAGED),
    "a header of 2^60 bytes": (by_hand({}, length=1 << 60), DAMAGED),
    "a header beyond the file": (by_hand({}, length=1 << 20), DAMAGED),
    "names that lead elsewhere": (by_hand({"../../x": entry(0, 16)}, 16), "bad has no tensor train"),
    "overlapping tensors": (by_hand({"train": entry(0, 16), "test": entry(8, 24)}, 24), DAMAGED),
    "offsets beyond the file": (by_hand({"train": entry(0, 1 << 40, shape=(1 << 38,))}), DAMAGED),
    "offsets the wrong way": (by_hand({"train": entry(16, 0)}), DAMAGED),
    "an unknown type": (by_hand({"train": entry(0, 16, "X32")}, 16), DAMAGED),
    "no feature pack": (by_hand({"a": entry(0, 16)} | {"__metadata__": {"format": "pt"}}, 16), "safetens"),
    "a later version": (by_hand({"__metadata__": HEADER | {"version": "9"}}, 0), "format version 9"),
    "version 0": (by_hand({"__metadata__": HEADER | {"version": "0"}}, 0), "format version 0"),
    "version text": (by_hand({"__metadata__": HEADER | {"version": "x"}}, 0), DAMAGED),
}
NAN = torch.full((2, 7, 5), float("nan"))
CONTENT: dict[str, tuple[Make, str]] = {
    "no tensor fc_bias": (raw(lambda found: found.pop("fc_bias")), "bad has no tensor fc_bias"),
    "NaN features": (tensor(train=NAN), "bad: train holds values that are not finite"),
    "facts without end": (raw(note="x" * 2**24), "bad has facts of more than 16 MiB"),
    "features without squares": (tensor(test=torch.full((2, 4, 5), -1e30)), r"bad: test reaches 1e\+30"),
    "NaN in the classifier": (tensor(fc_bias=NAN[0, 0, :3]), "bad: fc_bias holds values"),
    "features in fp64": (tensor(train=torch.ones(2, 7, 5).double()), "bad: train is float64"),
    "labels out of range": (tensor(train_labels=torch.arange(7).int()), "bad: train_labels holds 3"),
    "negative labels": (tensor(test_labels=-torch.ones(4).int()), "bad: test_labels holds -1"),
    "labels as numbers": (tensor(test_labels=torch.ones(4)), "bad: test_labels is float32"),
    "too few rows": (tensor(train=torch.ones(2, 6, 5)), "bad: train_labels has 7 training images, 6"),
    "no row": (tensor(test=torch.ones(1, 0, 5), test_labels=torch.ones(0).int()), "bad: test is empty"),
    "another width": (tensor(test=torch.ones(1, 4, 6)), "bad: test has 6 features an image, 5"),
    "a flat array": (tensor(train=torch.ones(70)), "bad: train is float32 .70., expected"),
    "a class without images": (tensor(train_labels=torch.zeros(7).int()), "bad: class 1 has no"),
    "a classifier in fp16": (tensor(fc_weight=torch.ones(3, 5).half()), "bad: fc_weight is float16"),
    "biases of more classes": (tensor(fc_bias=torch.ones(4)), "bad: fc_bias has 4 classes, 3"),
    "another plain view": (tensor(plain=torch.ones(7, 4)), "bad: plain has 4 features an image, 5"),
    "facts in a list": (stated("[]"), "bad: the facts are a list"),
    "facts that are no JSON": (stated("{"), DAMAGED),
    "facts without a floor": (stated('{"environment": ' + "[" * 900 + "]" * 900 + "}"), "bad"),
    "other counts": (raw(class_counts=[5, 1, 1]), "bad: class 0 has 4 training images, class_counts says 5"),
    "validation promised": (raw(val_source="own"), "bad: val_source is 'own': val and val_labels"),
}
# what checkpoints say too is tried there; here what is a pack's own, and one value of each further fact
FACTS = {
    "dataset": ["../../x", "", "a/b", "a\nb", "..", 3, ...],
    "network": [None],
    "num_class": [1, 3.0, 1 << 70],
    "imb_ratio": ["x", float("nan"), 0.0, 10**4000],
    "class_names": [["\ud800", "b", "c"], ["a"], None],
    "class_counts": [[4, 2], [4, 2, 1.0], [10**4000, 2, 1]],
    "train_digest": [5],
    "selected_on": ["last\ntest overall=99.99 many=- medium=- few=- selected_on=last"],
    "seed": [-1, 1.5],
    "environment": [{"torch": 10**4000}],
    "val_clean": [1, "yes"],
    "train_views": ["fresh", 3],
    "preset": ["fast", 5, None],
    "stage1_digest": [5],
    "shots": [[100, 20], [0, 5]],
    "val_fraction": [7.0],
    "subset_seed": [-1],
    "stem": ["huge"],
    "image_size": [1],
    "augment": ["none"],
    "tta": [1],
}


def _rows() -> list[Row]:
    rows = []
    for way, (script, words) in READERS.items():
        for kind, (make, says) in (NO_FILE | (FILES if way == "stage 2" else {})).items():
            rows.append(Row(f"pack, {way}: {kind}", script, words, says, make))
        says, make = "bad cannot be read: Permission denied", not_permitted("pack")
        rows.append(Row(f"pack, {way}: not permitted", script, words, says, make, unprivileged=True))
    script, words = READERS["evaluate"]
    rows += [Row(f"pack: {kind}", script, words, says, make) for kind, (make, says) in CONTENT.items()]
    for fact, values in FACTS.items():
        says = rf"bad\b.*{fact}|bad: .*num_class"
        for value in values:
            rows.append(Row(f"pack fact {fact} {value!r:.30}", script, words, says, raw(**{fact: value})))
    for name in NOT_WITH_PACK:
        argument = next(argument for argument in ARGUMENTS if argument.name == name)
        value = {int: " 8", float: " 0.5", bool: ""}.get(argument.kind, " {root}/x")
        value = f" {argument.choices[0]}" if argument.choices else value
        says = f"--features holds the features already: --{name} has no use beside it"
        script, stage = (STAGE2, "") if STAGE2 in argument.scripts else (EVALUATE, " --cur_stage stage1")
        words = f"--features {{pack}}{stage} --{name}{value}"
        rows.append(Row(f"pack beside --{name}", script, words, says))
    return rows


# ---- arrays

X, Y = np.ones((4, 3), dtype=np.float32), np.array([0, 1, 0, 1])
GIVEN = ("train_x", "train_y", "test_x", "test_y")
WORDS = "pack --out {root}/new" + "".join(f" --{name} {{root}}/{name}.npy" for name in GIVEN)


def arrays(**changed: object) -> Make:
    """Four images of two classes, but for `changed`; bytes are written as they are, None is left out."""

    def make(root: Path, kitchen: Kitchen) -> None:
        for name, value in ({"train_x": X, "train_y": Y, "test_x": X, "test_y": Y} | changed).items():
            path = root / f"{name}.npy"
            if callable(value):
                value(path, root)
            elif isinstance(value, bytes):
                path.write_bytes(value)
            elif value is not None:
                np.save(path, value, allow_pickle=True)

    return make


def instead(kind: str) -> Callable[[Path, Path], None]:
    """One of NO_FILE in the place of an array."""

    def make(path: Path, root: Path) -> None:
        NO_FILE[kind][0](root, None)
        (root / "bad").rename(path)

    return make


def claiming(shape: str, dtype: str = "<f4") -> bytes:
    """The header of a .npy file that declares much, without the numbers."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n"


def pickled(path: Path, root: Path) -> None:
    np.save(path, np.array([Call(root / "marker"), 1], dtype=object), allow_pickle=True)


NO_ARRAY = "is no .npy file of numbers"
VAL = " --val_x {root}/val_x.npy"
FC = " --fc_weight {root}/fc_weight.npy --fc_bias {root}/fc_bias.npy"
ARRAYS = [  # words, what the line says, the arrays that are changed
    ("", "train_x.npy does not exist", {"train_x": None}),
    ("", "test_y.npy holds Python objects: save ARRAY.astype", {"test_y": pickled}),
    ("", f"train_x.npy {NO_ARRAY}", {"train_x": b""}),
    ("", f"train_x.npy {NO_ARRAY}", {"train_x": X.dumps()}),
    ("", f"train_x.npy {NO_ARRAY}", {"train_x": claiming("(1000000000, 4096)")}),
    ("", f"train_x.npy {NO_ARRAY}", {"train_x": claiming("(-1, 3)")}),
    ("", "train_x.npy holds Python objects", {"train_x": claiming("(4, 3)", "|O")}),
    ("", f"train_x.npy {NO_ARRAY}", {"train_x": claiming("[" * 5000)}),
    ("", "train_x.npy is not a file", {"train_x": instead("a pipe")}),
    ("", r"train_x.npy holds float32 \[4\], expected floats \[N, D\] or \[V, N, D\]", {"train_x": X[:, 0]}),
    ("", r"test_x.npy holds uint8 \[4, 3\], expected floats", {"test_x": X.astype(np.uint8)}),
    ("", r"train_y.npy holds float64 \[4\], expected integers \[N\] or text", {"train_y": Y.astype(float)}),
    ("", r"test_y.npy holds int64 \[4, 1\], expected integers \[N\]", {"test_y": Y[:, None]}),
    ("", "train_y.npy holds no labels", {"train_y": Y[:0]}),
    ("", "test_y.npy holds negative labels", {"test_y": Y - 1}),
    ("", "test_y.npy holds negative labels", {"test_y": (Y - 1).astype(np.uint64)}),
    ("", "train_x.npy has 4 rows, .*train_y.npy 3 labels: one a row", {"train_y": Y[:3]}),
    ("", "labels reach 1099511627777, and class 2 has no training image", {"test_y": Y + 2**40}),
    ("", "class 1 has no training image: give them as text, numpy.save", {"train_y": Y * 2, "test_y": Y * 2}),
    ("", "test_y.npy holds text, .*train_y.npy numbers: save both as text", {"test_y": Y.astype(str)}),
    (
        "",
        "test_y.npy holds the label 3, which no training image has",
        {"train_y": Y.astype(str), "test_y": (Y * 3).astype(str)},
    ),
    (
        " --class_names {root}/train_y.npy",
        "text, which names the classes: leave --class_names out",
        {"train_y": Y.astype(str), "test_y": Y.astype(str)},
    ),
    (" --test_fraction 0.5", "give --test_x or --test_fraction", {}),
    (VAL + " --val_y {root}/val_y.npy --val_fraction 0.5", "give --val_x or --val_fraction, not both", {}),
    ("", "train_y.npy holds one class only: at least 2", {"train_y": Y * 0, "test_y": Y * 0}),
    ("", "test has 2 features an image, 3 are those of train", {"test_x": X[:, :2]}),
    ("", "train is empty", {"train_x": X[:, :0]}),
    ("", "train_x.npy holds values that are not finite", {"train_x": X * np.nan}),
    ("", r"train_x.npy holds values beyond 3.40282e\+38: scale them", {"train_x": X * np.float64(1e39)}),
    ("", "train_x.npy holds features too small for float32", {"train_x": X * np.float64(1e-44)}),
    (
        " --dtype fp16",
        "too small for float16, it would lose them: take --dtype fp32",
        {"train_x": X, "test_x": np.diag([1, 1, 1, 1e-8])},
    ),
    ("", r"train reaches 1e\+30, whose square float32 cannot hold: scale", {"train_x": X * np.float32(1e30)}),
    ("", "test reaches 1e-30, whose square float32 cannot hold: scale", {"test_x": X * np.float32(1e-30)}),
    (" --dtype fp16", "train_x.npy holds values beyond 65504: take --dtype fp32", {"train_x": X * 70_000}),
    (VAL + " --val_y {root}/val_y.npy", "labels reach 2, and class 2 has no", {"val_x": X, "val_y": Y * 2}),
    (VAL, "--val_x and --val_y go together", {"val_x": X}),
    (FC, "fc_weight has 3 classes, 2", {"fc_weight": np.ones((3, 3)), "fc_bias": np.ones(2)}),
    (FC, r"\[1, 4, 3\], expected floats \[K, D\]", {"fc_weight": X[None], "fc_bias": X[0]}),
    (FC, "values that are not finite", {"fc_weight": X[:2] * np.inf, "fc_bias": np.ones(2)}),
    (" --name ../mine", "--name '../mine': take letters, digits", {}),
    (" --name=", "--name '': take letters, digits", {}),
    (" --dtype fp64", "argument --dtype: invalid choice: 'fp64'", {}),
    (" --nmae x", "unrecognized arguments: --nmae", {}),
    (" --out {root}", "--out .*w is a folder or a device: name a file", {}),
    (" --out {root}/train_x.npy/new", "cannot write to .*/train_x.npy: .* is not a folder", {}),
    (" --out {root}/train_x.npy", "--out .*train_x.npy is there and holds something else, an input", {}),
    (" --out {root}/names.npy", "names.npy is there and holds something else", {"names": b"one\ntwo\n"}),
    (" --class_names {root}/absent", "absent does not exist", {}),
    (" --class_names /dev/zero", "/dev/zero is not a file", {}),
    (" --class_names {root}/train_x.npy", "train_x.npy cannot be read", {}),
    (" --class_names {root}/names.npy", "class_names has 3 entries, num", {"names": b"one\ntwo\nthree\n"}),
]


def one_class(root: Path, kitchen: Kitchen) -> None:
    write_pack(root / "bad", replace(with_val(tiny(val_clean=True)), val_labels=torch.zeros(2).long()))


def not_affine(root: Path, kitchen: Kitchen) -> None:
    """A stage 2 on a pack whose head is no linear map."""
    facts = {"stage": "stage2", "features_digest": "0" * 64, "num_class": 3, "class_names": ["a", "b", "c"]}
    head = {"head": {"kind": "etf", "options": {"scale": 30.0}}, "head_state": {"weight": torch.ones(3, 5)}}
    checkpoint.save(root / "bad", checkpoint_content({}, **facts, **head))


def odd_head(root: Path, kitchen: Kitchen) -> None:
    """A last.pth with a head whose setting is no setting."""
    progress = {"epoch": 1, "rows": [], "best_epoch": None, "best_score": None}
    head = {"method": "la", "setting": "tau=x", "seed": 0, "progress": progress, "seconds": 0.0}
    head["weights"] = {"weight": torch.ones(3, 5), "bias": torch.ones(3)}
    checkpoint.save(root / "bad", checkpoint_content({"a": torch.ones(1)}, stage="stage2", heads=[head]))


def rows_of_three(root: Path, kitchen: Kitchen) -> None:
    np.save(root / "x.npy", np.ones((4, 3), np.float32))


def export_taken(root: Path, kitchen: Kitchen) -> None:
    not_affine(root, kitchen)
    (root / "bad").rename(root / "bad.npz")


# kind -> script, words, what the line says, how the file is made
RUNS = {
    "export to an unknown ending": (
        EXPORT,
        "--stage2 {stage2} --out {root}/a.txt",
        "a.txt: its ending says what is written, take .npz, .pt2, .onnx",
    ),
    "export of a head that is not affine": (
        EXPORT,
        "--stage2 {bad} --out {root}/a.npz",
        "its head, EtfHead, is not affine in the features: load it from Python",
        not_affine,
    ),
    "export of a network without its backbone": (
        EXPORT,
        "--stage2 {bad} --out {root}/a.pt2",
        "bad is of a pack and holds no backbone for a .pt2: export it as .npz",
        not_affine,
    ),
    "export over the checkpoint": (
        EXPORT,
        "--stage2 {bad}.npz --out {bad}.npz",
        "bad.npz is there and holds something else",
        export_taken,
    ),
    "logits over the pack": (
        EVALUATE,
        "--features {bad} --cur_stage stage1 --logits {bad}",
        "--logits .*bad is there and holds something else",
        damaged(bytes, "pack"),
    ),
    "a head beside the pack's own classifier": (
        EVALUATE,
        "--features {pack} --cur_stage stage1 --head la",
        "--head takes a head of a run's last.pth: name that by --pretrained_pth",
    ),
    "two outputs in one place": (
        EVALUATE,
        "--features {pack} --cur_stage stage1 --predictions {root}/x --logits {root}/x",
        "two outputs would be written to .*x: name a file for each",
    ),
    "rows of features without a pack": (
        EVALUATE,
        "--pretrained_pth {pets1} --predict {root}/x.npy",
        "--predict X.npy continues a pack, .*: give --features",
        rows_of_three,
    ),
    "rows of another width than the pack's": (
        EVALUATE,
        "--features {pack} --cur_stage stage1 --predict {root}/x.npy",
        r"x.npy has 3 features a row, .*\d+$",
        rows_of_three,
    ),
    "a head of a setting that cannot be": (
        EVALUATE,
        "--pretrained_pth {bad} --head la",
        "bad: its head la cannot be read: could not convert string to float: 'x'",
        odd_head,
    ),
    "a head of a file that keeps one alone": (
        EVALUATE,
        "--pretrained_pth {stage2} --head la",
        "--head la: .*stage2.pth has no such head, the last.pth of a run of stage 2 has all of its run",
    ),
    "features that nothing judges": (
        PACK,
        "pack --train_x x --train_y x --test_x x --out {root}/new",
        "neither test nor validation features with labels: --test_fraction",
    ),
    "pack with --pretrained_pth": (
        STAGE2,
        "--features {pack} --pretrained_pth {stage1}",
        "--features holds its stage-1 classifier: leave --pretrained_pth out",
    ),
    "selection on validation images of one class": (
        STAGE2,
        "--features {bad} --select val",
        "--select val refused: all validation images of .*bad are of one class",
        one_class,
    ),
    "test images of one class": (
        STAGE2,
        "--features {bad}",
        "all scored images are of one class: heads are compared over two or more",
        tensor(test_labels=torch.zeros(4).int()),
    ),
    "pack of another class count": (STAGE2, "--features {pack} --num_class 7", "--num_class 7 is asked for"),
    "pack of another set": (STAGE2, "--features {pack} --dataset cifar100_lt", "--dataset cifar100_lt is"),
    "a classifier of another pack": (
        EVALUATE,
        "--features {bad} --pretrained_pth {stage2}",
        "stage2.pth is a classifier for other features than those of .*bad",
        raw(network="resnet8"),
    ),
    "no classifier for a pack": (EVALUATE, "--features {pack} --cur_stage stage2", "no stage2 checkpoint at"),
}

ROWS = [
    *_rows(),
    *(
        Row(f"arrays {number}: {says}", PACK, WORDS + words, says, arrays(**changed), program=number == 1)
        for number, (words, says, changed) in enumerate(ARRAYS)
    ),
    *(Row(kind, *row, program=row[0] == EXPORT and len(row) == 3) for kind, row in RUNS.items()),
]
