"""Both stages of several seeds, each seed in two processes."""

import sys
from pathlib import Path

from tests.kills import differences, finished
from tests.spoil import DATA

CODE = """
import sys
from pathlib import Path
from tests.helpers import run_stage1, run_stage2
root, seed, stage1 = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
run_stage1(root / "one", "--epochs", "3", "--seed", seed)
run_stage2(root / "two", "--pretrained_pth", stage1, "--finetune_epoch", "2", "--seed", seed)
"""


def seed_runs(folder: Path, count: int) -> None:
    """Seeds 0 to `count` - 1.

    Raises:
        AssertionError: a seed gave other weights or rows in its second process, or the weights of the next.
    """
    for seed in range(count):
        for name in ("a", "b"):
            words = [sys.executable, "-c", CODE, folder / f"{seed}{name}", seed, DATA / "v1_stage1.pth"]
            code, _, error = finished(words)
            assert code == 0, error
    for stage in ("one", "two"):
        for seed in range(count):
            first, other = folder / f"{seed}a" / stage, folder / f"{(seed + 1) % count}a" / stage
            assert not differences(first, folder / f"{seed}b" / stage)
            assert "weights" in differences(first, other)
