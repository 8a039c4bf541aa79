"""Saving a checkpoint safely against a plain write: a ResNet-34 with its optimiser, 171 MB.

    python -m benchmarks.saving [--repeats 10] [--folder FOLDER] [--out FILE]

Ours: the digest of the content, the write, fsync, the file read back and compared bit by bit, the replace,
fsync of the folder. Beside it torch.save of the same content into a file that is fsynced, and nothing else;
the digest alone, which nothing that keeps one can beat; and reading, with the digest and without.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks import common
from benchmarks.table import Row, markdown, ratios
from models import build_model
from utils.base.safe_load import load_plain
from utils.run import checkpoint

GOAL = 1.5


def content() -> dict:
    """The weights of a ResNet-34 of 100 classes and as many momentum buffers."""
    model = build_model("resnet34", 100)
    buffers = {k: {"momentum_buffer": torch.randn_like(p)} for k, p in enumerate(model.parameters())}
    optimizer = {"state": buffers, "param_groups": [{"lr": 0.1}]}
    return {"format": checkpoint.FORMAT, "model": model.state_dict(), "optimizer": optimizer}


def save_plainly(path: Path, value: dict) -> None:
    with open(path, "wb") as handle:
        torch.save(value, handle)
        handle.flush()
        os.fsync(handle.fileno())


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=common.positive, default=10, help="pairs of timings")
    parser.add_argument("--folder", type=Path, help="write on this disk instead of that of temporary files")
    given = parser.parse_args(argv)
    value = content()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = {name: Path(folder) / f"{name}.pth" for name in ("ours", "plain")}
        ways = {
            "ours": lambda: checkpoint.save(paths["ours"], value),
            "plain": lambda: save_plainly(paths["plain"], value),
            "digest": lambda: checkpoint.content_digest(value),
            "read": lambda: checkpoint.content_digest(load_plain(paths["ours"])),
            "load": lambda: torch.load(paths["plain"], weights_only=True),
        }
        seconds = common.alternate(ways, given.repeats)
        size = paths["ours"].stat().st_size / 1e6
    pairs = {
        (f"saving a ResNet-34 with optimiser, {size:.0f} MB", "torch.save, fsync"): ("ours", "plain"),
        ("the digest alone", "torch.save, fsync"): ("digest", "plain"),
        ("reading it", "torch.load"): ("read", "load"),
    }
    rows = []
    for words, names in pairs.items():
        both = [seconds[name] for name in names]
        rows.append(Row(*words, "s", *map(median, both), ratios(*both)))
    goal = (
        f"Medians of {given.repeats} turns in alternation; ratios: ours over the other's; goal for saving: "
        f"at most {GOAL}."
    )
    common.publish([markdown(rows), goal], given.out)


if __name__ == "__main__":
    main()
