"""Both stages of several seeds, every seed in each of two processes."""

import sys
from pathlib import Path

from tests.forking import forked
from tests.helpers import run_stage1, run_stage2
from tests.kills import differences, finished
from tests.spoil import DATA


def seed_runs(folder: Path, count: int) -> None:
    """Seeds 0 to `count` - 1.

    Raises:
        AssertionError: a seed gave other weights or rows in its second process, or the weights of the next.
    """
    words = ["-m", "tests.seeds", folder]
    # a process hashes texts with a number of its own; the order of the seeds says nothing
    made = [forked([*words, "a", *range(count)])]
    made.append(finished([sys.executable, *words, "b", *reversed(range(count))]))
    for code, _, error in made:
        assert code == 0, error
    for stage in ("one", "two"):
        for seed in range(count):
            first, other = folder / f"{seed}a" / stage, folder / f"{(seed + 1) % count}a" / stage
            assert not differences(first, folder / f"{seed}b" / stage)
            assert "weights" in differences(first, other)


if __name__ == "__main__":
    for seed in sys.argv[3:]:
        place = Path(sys.argv[1]) / f"{seed}{sys.argv[2]}"
        run_stage1(place / "one", "--epochs", "3", "--seed", seed)
        start = ("--pretrained_pth", DATA / "v1_stage1.pth")
        run_stage2(place / "two", *start, "--finetune_epoch", "2", "--seed", seed)
