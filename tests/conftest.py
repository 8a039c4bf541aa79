"""Fixtures shared by the tests: small real runs on the embedded digits, the real CIFAR-100 where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.heads import inputs, stage1_classifier
from tests.helpers import TrainedDigits, run_stage1, run_stage2

ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The counts of `make test-long`: what each test in its long form has said that it found."""
    for report in terminalreporter.getreports("passed"):
        for name, found in report.user_properties:
            if name == "found" and report.when == "call" and "long" in report.keywords:
                terminalreporter.write_line(f"| {report.nodeid.partition('::')[2]} | {found} |")


@pytest.fixture(scope="session", autouse=True)
def all_pictures() -> Iterator[dict]:
    """Gives the table of pictures; runs draw the first alone: all of them take longer than a short run."""
    from utils.plots import drawing

    every = drawing.PICTURES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "PICTURES", {"accuracy": every["accuracy"]})
        yield every


@pytest.fixture
def every_picture(all_pictures: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within, runs draw what they draw for a user."""
    monkeypatch.setattr("utils.plots.drawing.PICTURES", all_pictures)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> TrainedDigits:
    """Stage 1 (6 epochs) and stage 2 (4 epochs) on Digits-LT, made once; read-only for the tests."""
    trained = TrainedDigits(tmp_path_factory.mktemp("digits"))
    trained.stage1_text = run_stage1(trained.root, "--epochs", "6", "--seed", "0")
    trained.stage2_text = run_stage2(trained.root, "--finetune_epoch", "4", "--seed", "0")
    return trained


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """The folder that holds cifar-100-python/: LOS_DATA_DIR, else data/; skips where it is absent."""
    folder = Path(os.environ.get("LOS_DATA_DIR", ROOT / "data")).resolve()
    if not (folder / "cifar-100-python" / "train").is_file():
        pytest.skip(
            f"no cifar-100-python in {folder}: set LOS_DATA_DIR to a folder that holds the real CIFAR-100"
        )
    return folder


@pytest.fixture
def fc() -> nn.Linear:
    """A stage-1 classifier of a few classes, for the tests of heads."""
    return stage1_classifier()


@pytest.fixture
def x() -> torch.Tensor:
    """Features for it."""
    return inputs()
