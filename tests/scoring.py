"""Scoring one network in many ways, through evaluate: none of them may change what it says of an image."""

import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from torch import nn

import evaluate
import main_stage1
from tests.file_trees import list_tree
from tests.forking import forked
from tests.helpers import call, places
from utils.base.distributed import ALONE
from utils.engine import scoring

WORKERS, BATCH_SIZES, ORDERS = (0, 1, 3), (1, 7, 50, 10_000), 2
CONFIDENCE = 1e-2  # of 100


class Scored:
    """A tiny network trained on files below `root`, and what evaluate says of its test images."""

    def __init__(self, root: Path, test_per_class: int = 40) -> None:
        self.root, self.data, self.count = root, root / "data", 0
        list_tree(self.data, counts=(40, 20, 10), test_per_class=test_per_class, val_per_class=0)
        self.images = self._lines("test.txt")
        words = [*self._words("test.txt"), "--workers", "0", "--epochs", "2", "--batch_size", "16"]
        call(main_stage1.main, *words, "--seed", "0")
        self.usual = self.predictions()

    def _lines(self, name: str) -> list[str]:
        return (self.data / name).read_text().splitlines(keepends=True)

    def _words(self, test_list: str) -> list[str]:
        words = ["--dataset", "list", "--data_dir", str(self.data), "--train_list", "train.txt"]
        words += ["--test_list", test_list, "--network", "resnet8", "--image_size", "32", "--device", "cpu"]
        return [*words, "--cur_stage", "stage1", *places(self.root)]

    def predictions(
        self, workers: int = 0, batch_size: int = 256, order: int | None = None, ranks: int = 1
    ) -> pd.DataFrame:
        """A row an image, by its name; `order`: the seed of another order of the list."""
        lines = list(self.images)
        if order is not None:
            random.Random(order).shuffle(lines)
        (self.data / "scored.txt").write_text("".join(lines))
        self.count += 1
        path = self.root / f"predictions{self.count}.csv"
        words = [*self._words("scored.txt"), "--workers", str(workers), "--predictions", str(path)]
        if ranks > 1:
            code, _, error = forked(["evaluate.py", *words], processes=ranks)
            assert code == 0, error
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(scoring.logit_batches, "__defaults__", (batch_size, ALONE))
                call(evaluate.main, *words)
        found = pd.read_csv(path)
        assert list(found["image"]) == [line.split()[0] for line in lines]
        return found.set_index("image").sort_index()

    def changed(self, **how: int) -> int:
        """How many images are scored otherwise than usual; each must be there once."""
        found = self.predictions(**how)
        assert list(found.index) == list(self.usual.index) and len(found) == len(self.images)
        other = found["predicted"] != self.usual["predicted"]
        return int((other | ((found["confidence"] - self.usual["confidence"]).abs() > CONFIDENCE)).sum())

    def ways(self, ranks: bool = True) -> Iterator[tuple[str, int]]:
        """Every way by name, and how many images it changes."""
        ways = [{"workers": workers} for workers in WORKERS]
        ways += [{"batch_size": size} for size in BATCH_SIZES] + [{"order": order} for order in range(ORDERS)]
        for way in [*ways, *([{"ranks": 2}] if ranks else [])]:
            [(name, value)] = way.items()
            yield f"{name} {value}", self.changed(**way)

    def changed_by_batch_statistics(self) -> int:
        """The control: where batch-norm takes a batch's own statistics, the batch size matters."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "eval", nn.Module.train)
            return self.changed(batch_size=7)
