"""Run folders and other places: where runs write, what is resumed, what is drawn."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from tests.bad_inputs import PLOTS, Kitchen, Make, Row
from tests.bad_inputs.checkpoints import NO_FILE, damaged
from tests.helpers import run_folder
from utils.run import checkpoint
from utils.settings.table import EVALUATE, STAGE1, STAGE2

DIGITS = "--dataset digits_lt --epochs 1 "
STAGE1_OF = "--pretrained_pth {stage1} "
AGAIN = "--ckpt_dir {stage1.parent.parent.parent} "
_held = []  # handles that keep their locks


def file_in_place(root: Path, kitchen: Kitchen) -> None:
    (root / "bad").write_text("a file")


def folder_in_place(name: str) -> Make:
    return lambda root, kitchen: (root / name).mkdir(parents=True)


def sealed(root: Path, kitchen: Kitchen) -> None:
    (root / "bad").mkdir(mode=0o500)


def copied(change: Callable[[Path], object], source: str = "run") -> Make:
    """A copy of a run folder, changed."""
    return lambda root, kitchen: change(shutil.copytree(getattr(kitchen, source), root / "run"))


def piped(name: str, source: str = "run") -> Make:
    """A pipe in the place of a file of it."""
    return copied(lambda run: ((run / name).unlink(), os.mkfifo(run / name)), source)


def locked(root: Path, kitchen: Kitchen) -> None:
    copied(lambda folder: None)(root, kitchen)
    handle = open(root / "run" / "log.txt", "a")  # noqa: SIM115 - held while the row runs, and by none after it
    fcntl.flock(handle, fcntl.LOCK_EX)
    _held[:] = [handle]


def let_go() -> None:
    while _held:
        _held.pop().close()


def stage2_run(root: Path, kitchen: Kitchen) -> None:
    shutil.copytree(run_folder(kitchen.run.parents[2], "stage2"), root / "run")


def restated(change: Callable[[dict], dict], stage: str = "stage1") -> Make:
    """A run folder whose last.pth has other facts, with a right digest."""

    def make(root: Path, kitchen: Kitchen) -> None:
        (copied(lambda run: None) if stage == "stage1" else stage2_run)(root, kitchen)
        last = root / "run" / "last.pth"
        source = checkpoint.read(last)
        checkpoint.save(last, change(source.facts) | {"model": source.state})

    return make


def with_facts(path: Path, **facts: object) -> None:
    source = checkpoint.read(path)
    checkpoint.save(path, source.facts | {"model": source.state} | facts)


def without(name: str) -> Callable[[dict], dict]:
    return lambda facts: {fact: value for fact, value in facts.items() if fact != name}


def other_args(**values: object) -> Callable[[dict], dict]:
    return lambda facts: facts | {"args": facts["args"] | values}


def other_heads(**values: object) -> Callable[[dict], dict]:
    return lambda facts: facts | {"heads": [head | values for head in facts["heads"]]}


def without_best_state(facts: dict) -> dict:
    heads = [{name: value for name, value in head.items() if name != "best_state"} for head in facts["heads"]]
    return facts | {"heads": heads}


def selecting(change: Callable[[Path], object]) -> Make:
    """A run that selects on validation, its best.pth changed."""

    def make(root: Path, kitchen: Kitchen) -> None:
        restated(other_args(select="val"))(root, kitchen)
        note = root / "run" / "config.json"
        made = json.loads(note.read_text())
        made["config"]["select"] = "val"
        note.write_text(json.dumps(made))
        change(root / "run" / "best.pth")

    return make


def with_column(name: str, column: str, values: Callable[[pd.DataFrame], object]) -> Make:
    """A run folder with another column in a csv file."""

    def change(run: Path) -> None:
        frame = pd.read_csv(run / name) if (run / name).exists() else pd.read_csv(run / "metrics.csv")
        frame.assign(**{column: values(frame)}).to_csv(run / name, index=False)

    return copied(change, "tables")


def lacking(name: str, column: str) -> Make:
    """A run folder with a csv file that lacks a column."""

    def change(run: Path) -> None:
        pd.read_csv(run / name).drop(columns=column).to_csv(run / name, index=False)

    return copied(change, "tables")


def drawn(name: str, content: bytes) -> Make:
    return copied(lambda folder: (folder / name).write_bytes(content), "tables")


NO_FOLDER = "cannot write to .*bad.* is not a folder"
MODEL1, MODEL2 = (f"ckpt/digits_lt/IR=50/resnet8_stage{stage}.pth" for stage in (1, 2))
PLACES = [
    (STAGE1, DIGITS + "--out {bad}/below", NO_FOLDER, file_in_place),
    (STAGE1, DIGITS + "--ckpt_dir {bad}/below", NO_FOLDER, file_in_place),
    (STAGE2, STAGE1_OF + "--ckpt_dir {bad}", NO_FOLDER, file_in_place),
    (EVALUATE, STAGE1_OF + "--out {bad}", NO_FOLDER, file_in_place),
    (STAGE1, DIGITS + "--out /dev/null", "cannot write to /dev/null.* is not a folder", None),
    (STAGE2, STAGE1_OF + "--save_features {bad}/below/x", NO_FOLDER, file_in_place),
    (
        STAGE2,
        STAGE1_OF + "--save_features {bad}",
        "--save_features .*bad is a folder",
        folder_in_place("bad"),
    ),
    (EVALUATE, STAGE1_OF + "--predictions {bad}/x", NO_FOLDER, file_in_place),
    (STAGE1, DIGITS, "resnet8_stage1.pth is a folder", folder_in_place(MODEL1)),
    (STAGE2, STAGE1_OF, "resnet8_stage2.pth is a folder", folder_in_place(MODEL2)),
    (STAGE1, DIGITS + AGAIN, "resnet8_stage1.pth holds a model of 6 epochs, this run has 1", None),
    (STAGE1, DIGITS + AGAIN + "--val_source heldout", "holds a model of other images", None),
    (STAGE2, STAGE1_OF + AGAIN + "--finetune_epoch 1", "holds a model of 4 epochs, this run has 1", None),
]


def pets_taken(root: Path, kitchen: Kitchen) -> None:
    shutil.copytree(kitchen.pets, root / "pets")


def published_taken(place: str) -> Make:
    def make(root: Path, kitchen: Kitchen) -> None:
        (root / place).parent.mkdir(parents=True)
        shutil.copy(kitchen.stage1, root / place)

    return make


PETS = "--dataset folder --data_dir {root}/pets --image_size 32 --workers 0 "
SOMETHING = "bad is there and holds something else, an input perhaps: name another file"
AMONG = "lies among the images of --data_dir: name another place"
TAKEN: dict[str, tuple[str, str, str, Make]] = {
    "a pack over its checkpoint": (
        STAGE2,
        "--pretrained_pth {bad} --save_features {bad}",
        "--save_features .*" + SOMETHING,
        damaged(bytes, "stage1"),
    ),
    "predictions over their pack": (
        EVALUATE,
        "--features {bad} --cur_stage stage1 --predictions {bad}",
        "--predictions .*" + SOMETHING,
        damaged(bytes, "pack"),
    ),
    "predictions over an image": (
        EVALUATE,
        "--pretrained_pth {pets1} --predict {root}/pets --predictions {root}/pets/train/ant/000.jpg",
        "--predictions .*jpg .*",
        pets_taken,
    ),
    **{
        f"{name} among the images": (
            STAGE2 if name == "save_features" else EVALUATE if name == "predictions" else STAGE1,
            f"{PETS}--{name} {{root}}/pets/train/new"
            + (" --cur_stage stage1" if name == "predictions" else ""),
            f"--{name} .*{AMONG}",
            pets_taken,
        )
        for name in ("out", "ckpt_dir", "save_features", "predictions")
    },
    "a model over the weights of --pretrained": (
        STAGE1,
        DIGITS + "--pretrained {root}/" + MODEL1,
        "resnet8_stage1.pth lies where this run leaves its own model: give another --ckpt_dir",
        published_taken(MODEL1),
    ),
    "a model over that of --pretrained_pth": (
        STAGE2,
        "--pretrained_pth {root}/" + MODEL2,
        "resnet8_stage2.pth lies where this run leaves its own model: give another --ckpt_dir",
        published_taken(MODEL2),
    ),
    "a pack over the last.pth it resumes": (
        STAGE2,
        "--resume {root}/run --save_features {root}/run/last.pth",
        "--save_features .*last.pth is there and holds something else",
        stage2_run,
    ),
}
RESUMED = "--resume {root}/run"
RESUMES: dict[str, tuple[str, Make]] = {
    "a folder as last.pth": (
        "run/last.pth is not a file",
        copied(lambda run: ((run / "last.pth").unlink(), (run / "last.pth").mkdir())),
    ),
    "of stage 2": ("run/last.pth is not the last.pth of a stage-1 run", stage2_run),
    "a pipe as log.txt": ("log.txt cannot be written", piped("log.txt")),
    "without the best epoch": (
        "best.pth does not exist; --select val needs it: restore it",
        selecting(Path.unlink),
    ),
    "with another best epoch": (
        r"best.pth does not hold epoch \d+, the best so far; --select val",
        selecting(lambda best: with_facts(best, epoch=999)),
    ),
    "with a best epoch of another network": (
        "best.pth is not a resnet8: .*; --select val needs it",
        selecting(lambda best: torch.save({"fc.weight": torch.ones(10, 64)}, best)),
    ),
    "while another run writes there": ("another run is writing to .*run", locked),
}
NOWHERE = {"step": 1, "losses": torch.zeros(0), "hits": torch.zeros(0)}
UNFIT = "last.pth cannot be resumed: "
RESTATED: dict[str, tuple[str, Callable[[dict], dict], str]] = {
    **{
        f"without {name}, {stage}": (stage, without(name), f"{UNFIT}it lacks {name}")
        for stage, names in (("stage1", "args train_digest environment progress"), ("stage2", "given"))
        for name in names.split()
    },
    "a rate that is a text": ("stage1", other_args(lr="x"), "last.pth is of no use: its lr is 'x'"),
    "no such set": ("stage1", other_args(dataset="x"), "last.pth is of no use: there is no dataset 'x'"),
    "a seed below 0": ("stage2", other_args(seed=-1), "last.pth is of no use: --seed must be"),
    "words that are none": (
        "stage2",
        lambda facts: facts | {"given": {"finetune_lr": "x"}},
        "last.pth is of no use: its finetune_lr is 'x'",
    ),
    "a momentum of other weights": (
        "stage1",
        lambda facts: (
            facts | {"optimizer": facts["optimizer"] | {"state": {0: {"momentum_buffer": torch.zeros(2)}}}}
        ),
        UNFIT,
    ),
    "a position of another form": ("stage1", lambda facts: facts | {"partial": {"step": 1}}, "fact partial"),
    "a position without images": (
        "stage1",
        lambda facts: facts | {"partial": NOWHERE | {"counts": torch.zeros(1, 2, dtype=torch.int64)}},
        "fact partial cannot be",
    ),
    "no weights of the best epoch": ("stage2", without_best_state, "the fact heads cannot be"),
    "best weights of another head": (
        "stage2",
        other_heads(best_state={"x": torch.ones(1)}),
        "the fact heads",
    ),
    **{
        f"other images, {stage}": (
            stage,
            lambda facts: facts | {"train_digest": "0" * 64},
            "trained on other images: .*; start a new run",
        )
        for stage in ("stage1", "stage2")
    },
}
TABLES: dict[str, tuple[Make, str]] = {
    "empty": (drawn("table.csv", b""), "table.csv cannot be read: No columns"),
    "ragged": (drawn("per_class.csv", b"a,b\n1,2\n1,2,3\n"), "per_class.csv cannot be read: "),
    "a line too long": (drawn("per_class.csv", b"a,b\n1,2,3\n"), "per_class.csv .*: its first line has more"),
    "of something else": (drawn("table.csv", b"a,b\n1,2\n"), "table.csv has no column method"),
    "without counts": (lacking("per_class.csv", "train_images"), "per_class.csv has no column train_images"),
    "without steps": (lacking("metrics.csv", "step"), "metrics.csv has no column step"),
    "words": (with_column("metrics.csv", "step", lambda rows: "much"), "metrics.csv cannot be read: .*much"),
    "of fractions": (
        lacking("metrics.csv", "accuracies"),
        "metrics.csv has no column accuracies: an older version wrote it, not in percent",
    ),
    "not UTF-8": (drawn("table.csv", b"method,setting\n\xff,\xfe\n"), "table.csv cannot be read: .*utf-8"),
    "a NUL byte": (drawn("metrics.csv", b"\0" * 99), "metrics.csv "),
    "heads with other test images": (
        with_column("per_class.csv", "test_images", lambda rows: 5 + (rows["method"] == "ce")),
        "per_class.csv has heads with other test images",
    ),
    "an empty column": (
        with_column("table.csv", "overall", lambda rows: ""),
        "table.csv has no head with figures, there is nothing to draw",
    ),
    "a grid with an empty column": (
        with_column("search.csv", "epoch", lambda rows: ""),
        "search.csv has nothing in its column epoch",
    ),
    "a pipe": (piped("table.csv", "tables"), "table.csv cannot be read: it is a pipe or a device"),
    "a file as plots": (drawn("plots", b"x"), "cannot write to .*plots: .* is not a folder"),
}

ROWS = [
    *(
        Row(f"output: {kind}", script, words, says, make)
        for kind, (script, words, says, make) in TAKEN.items()
    ),
    *(
        Row(
            f"place: {script} {words} {says}",
            script,
            words,
            says,
            make,
            program="/below" in words and "--ckpt_dir" in words,
        )
        for script, words, says, make in PLACES
    ),
    *(
        Row(
            f"place: {script}, not permitted",
            script,
            words + "--out {bad}",
            "cannot write to .*bad",
            sealed,
            unprivileged=True,
        )
        for script, words in ((STAGE1, DIGITS), (STAGE2, STAGE1_OF), (EVALUATE, STAGE1_OF))
    ),
    *(Row(f"resume {kind}", STAGE1, RESUMED, says, make) for kind, (says, make) in RESUMES.items()),
    Row(
        "resume another rate and number of epochs",
        STAGE1,
        RESUMED + " --lr 0.5 --epochs 4",
        "--lr 0.5, the run to resume has --lr 0.1; --epochs 4, the run to resume has --epochs 6",
        copied(lambda run: None),
    ),
    *(
        Row(
            f"resume {kind}",
            STAGE1 if stage == "stage1" else STAGE2,
            RESUMED + (" --pretrained_pth {stage1}" if stage == "stage2" else ""),
            says,
            restated(change, stage),
        )
        for kind, (stage, change, says) in RESTATED.items()
    ),
    *(
        Row(f"plots: {kind}", PLOTS, "{root}/run", says, make, program=kind == "empty")
        for kind, (make, says) in TABLES.items()
    ),
    *(
        Row(f"plots: {kind} as run folder", PLOTS, "{bad}", "bad/table.csv cannot be read", NO_FILE[kind][0])
        for kind in ("a pipe", "a loop of links")
    ),
]
