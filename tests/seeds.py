"""Both stages of several seeds, every seed in each of two processes."""

import sys
from pathlib import Path

from tests.kills import differences, finished
from tests.spoil import DATA

CODE = """
import sys
from pathlib import Path
from tests.helpers import run_stage1, run_stage2
folder, name, stage1, *seeds = sys.argv[1:]
for seed in seeds:
    root = Path(folder) / (seed + name)
    run_stage1(root / "one", "--epochs", "3", "--seed", seed)
    run_stage2(root / "two", "--pretrained_pth", stage1, "--finetune_epoch", "2", "--seed", seed)
"""


def seed_runs(folder: Path, count: int) -> None:
    """Seeds 0 to `count` - 1.

    Raises:
        AssertionError: a seed gave other weights or rows in its second process, or the weights of the next.
    """
    for name, seeds in (("a", range(count)), ("b", reversed(range(count)))):  # the order says nothing
        code, _, error = finished([sys.executable, "-c", CODE, folder, name, DATA / "v1_stage1.pth", *seeds])
        assert code == 0, error
    for stage in ("one", "two"):
        for seed in range(count):
            first, other = folder / f"{seed}a" / stage, folder / f"{(seed + 1) % count}a" / stage
            assert not differences(first, folder / f"{seed}b" / stage)
            assert "weights" in differences(first, other)
