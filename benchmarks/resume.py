"""How much longer `--resume FOLDER` takes than a fresh start until a first step is done. Goal: under 3 s.

    python -m benchmarks.resume [--repeats 5] [--out FILE]

main_stage1.py as a user calls it, fresh and resumed in alternation, each in a process of its own: the time
from its start until it has saved its first step (--save_every 1), and then it is killed. The save is part of
both times. Batches of 8, so that the step, which is not in question, is short. Without the CIFAR-100 files
the embedded digits alone.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.table import Row, markdown

ROOT = Path(__file__).resolve().parent.parent
GOAL, POLL_SECONDS = 3.0, 0.005
SHARED = ["--save_every", "1", "--batch_size", "8", "--seed", "0", "--device", "cpu"]


def until_saved(words: list[str], folder: Path) -> Path:
    """Start stage 1 and end it once a last.pth below `folder` is another file than before; that file.

    Raises:
        SystemExit: it ended by itself.
    """
    before = {path: path.stat().st_ino for path in folder.rglob("last.pth")}
    command = [sys.executable, "main_stage1.py", *words, *SHARED]
    log = folder / "output.txt"
    with open(log, "wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as run:
        try:
            while run.poll() is None:
                for path in folder.rglob("last.pth"):
                    if path.stat().st_ino != before.get(path):
                        return path
                time.sleep(POLL_SECONDS)
        finally:
            run.kill()
    raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text(encoding='utf-8')[-500:]}")


def measured(words: list[str], folder: Path, repeats: int, label: str) -> Row:
    """A row: medians of both, and how much longer the resumed start took in each pair."""
    words = [*words, "--ckpt_dir", str(folder / "checkpoints")]
    counter = itertools.count()

    def fresh() -> Path:
        place = folder / str(next(counter))
        place.mkdir()
        return until_saved([*words, "--out", str(place)], place)

    last = fresh()
    ways = {"resumed": lambda: until_saved(["--resume", str(last.parent)], last.parent), "fresh": fresh}
    seconds = common.alternate(ways, repeats)
    longer = [a - b for a, b in zip(seconds["resumed"], seconds["fresh"], strict=True)]
    medians = (median(seconds[name]) for name in ways)
    what = f"{label}, last.pth of {last.stat().st_size / 1e6:.1f} MB"
    return Row(what, "a fresh start", "s", *medians, longer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--repeats", type=common.positive, default=5, help="pairs of starts")
    args = parser.parse_args(argv)
    runs = {"digits, resnet8": ["--dataset", "digits_lt"]}
    if common.has_cifar100(args.data_dir):
        cifar = ["--data_dir", str(args.data_dir.resolve()), "--network"]
        runs |= {f"CIFAR100-LT, {name}": [*cifar, name] for name in ("resnet32", "resnet34")}
    rows = []
    for label, words in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(words, Path(folder), args.repeats, label))
    table = markdown(rows).replace("| min |", "| seconds longer: min |")
    goal = f"Medians of {args.repeats} pairs in alternation; goal: at most {GOAL:g} s longer."
    common.publish(["## Resuming: until the first step is saved", table, goal], args.out)


if __name__ == "__main__":
    main()
