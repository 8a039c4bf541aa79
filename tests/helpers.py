"""Running the scripts in the process, and what they leave behind."""

import contextlib
import glob
import io
import itertools
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import evaluate
import main_stage1
import main_stage2
from datasets import check, to_folder
from losses.closed_form import StackedLoss
from utils.base.errors import UserError
from utils.base.signals import Stopped
from utils.features.__main__ import main as features_main
from utils.run import checkpoint

# seconds after which what a test waits for hangs; says nothing of how fast anything is
HANG = 600
# a command line in a page: indented, and continued where it ends in a backslash
COMMAND = re.compile(r"^    python ((?:.*\\\n)*.*)$", flags=re.MULTILINE)


@dataclass
class TrainedDigits:
    """A folder with both stages of Digits-LT, and what they printed."""

    root: Path
    stage1_text: str = ""
    stage2_text: str = ""

    @property
    def stage1(self) -> Path:
        return self.root / "ckpt" / "digits_lt" / "IR=50" / "resnet8_stage1.pth"

    @property
    def stage2(self) -> Path:
        return self.root / "ckpt" / "digits_lt" / "IR=50" / "resnet8_stage2.pth"


def call(main: Callable, *argv: object) -> str:
    """Run a script's main and return what it printed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([str(word) for word in argv])
    return text.getvalue()


def draw_plots(argv: Sequence[str]) -> None:
    from utils.plots.drawing import main  # here: most tests need no matplotlib

    main(argv)


# what pages call -> its main
PROGRAMS = {
    "main_stage1.py": main_stage1.main,
    "main_stage2.py": main_stage2.main,
    "evaluate.py": evaluate.main,
    "datasets.check": check.main,
    "datasets.to_folder": to_folder.main,
    "utils.features": features_main,
    "utils.plots": draw_plots,
}


def commands(text: str) -> list[list[str]]:
    """The indented command lines of a text, as words, without their comments."""
    return [shlex.split(line.replace("\\\n", " "), comments=True) for line in COMMAND.findall(text)]


def call_words(words: Sequence[str]) -> str:
    """Run a command of `commands` in the process, from the current folder, and return what it printed.

    Files that a `*` names are filled in, as a shell does.
    """
    name, *rest = words[1:] if words[0] == "-m" else words
    return call(PROGRAMS[name], *(found for word in rest for found in glob.glob(word) or [word]))


def page_table(text: str, header: str) -> pd.DataFrame:
    """The Markdown table of a page whose header line begins so, as text; its first column is the index."""
    lines = text[text.index(f"\n{header}") + 1 :].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    first, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in rows)
    return pd.DataFrame(rows, columns=first).set_index(first[0])


def places(root: Path) -> list[str]:
    """Arguments that keep everything a run writes below `root`."""
    return ["--out", str(root / "out"), "--ckpt_dir", str(root / "ckpt")]


def run_stage1(root: Path, *argv: object) -> str:
    """Stage 1 on Digits-LT, below `root`."""
    return call(main_stage1.main, "--dataset", "digits_lt", *places(root), *argv)


def run_stage2(root: Path, *argv: object) -> str:
    """Stage 2 on Digits-LT, below `root`."""
    return call(main_stage2.main, "--dataset", "digits_lt", *places(root), *argv)


def run_evaluate(root: Path, *argv: object) -> str:
    """Evaluate on Digits-LT, below `root`."""
    return call(evaluate.main, "--dataset", "digits_lt", *places(root), *argv)


def wait_until(happened: Callable[[], object], over: Callable[[], object] = lambda: False) -> None:
    """Wait for something to happen that another process does, which must not be `over` before."""
    deadline = time.monotonic() + HANG
    while not happened():
        assert not over(), "it is over, and it did not happen"
        assert time.monotonic() < deadline, f"it did not happen within {HANG} seconds"
        time.sleep(0.005)


def long_form(short: int, long: int) -> pytest.MarkDecorator:
    """A test's `count`, how often it tries: in `make test` the short form, in `make test-long` the long."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.long)])


@contextlib.contextmanager
def in_step(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Act within that optimiser step of a run of either stage."""
    count, patched = [0], ((torch.optim.SGD, "step"), (StackedLoss, "__call__"))

    def acting(real: Callable) -> Callable:
        def step(*args, **options):
            count[0] += 1
            if count[0] == number:
                act()
            return real(*args, **options)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in patched:
            patch.setattr(owner, name, acting(getattr(owner, name)))
        yield


def stopped_at_step(root: Path, step: int, run: Callable[[], object]) -> tuple[int, str]:
    """`run` is sent SIGTERM within that optimiser step; its status, and the newest log's last line."""
    with in_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Stopped) as caught:
        run()
    log = max(root.rglob("log.txt"), key=lambda path: path.stat().st_mtime_ns)
    return caught.value.code, log.read_text().splitlines()[-1]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads of torch in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def published(root: Path, name: str, file: str) -> Path:
    """A model of a user's own images; a digest stands in the name of its folder."""
    [path] = (root / "ckpt").glob(f"{name}-*/{file}")
    return path


def run_folder(root: Path, stage: str, dataset: str = "digits_lt_IR=50") -> Path:
    """The newest run folder of a stage."""
    return max((root / "out" / f"{dataset}_{stage}").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def read_metrics(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")


def read_summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def refusal(main: Callable, *argv: object) -> str:
    """The one line with which a script refuses its arguments."""
    with pytest.raises(UserError) as caught:
        call(main, *argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def load_pretrained(model: nn.Module, state: dict, name: str) -> None:
    """Start `model`, a `name`, from foreign weights, all but the classifier."""
    checkpoint.load_backbone(model, checkpoint.Checkpoint(Path("x.pth"), "", state, {}), name)


def checkpoint_content(state: dict, **facts) -> dict:
    """The content of a checkpoint with no more facts than it must have."""
    known = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "stage": "stage1", "epoch": 3}
    return known | {"dataset": "digits_lt", "network": "resnet8", "num_class": 10, "model": state} | facts
