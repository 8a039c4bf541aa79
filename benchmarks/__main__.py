"""Every speed figure in one table, each against an opponent measured in alternation in the same run.

    python -m benchmarks [--only stage1,stage2] [--out output/bench] [--quick]

On the CPU only. The opponents are in benchmarks/baselines.py; whatever is timed is compared with ours first,
and a difference ends the run. Leaves table.csv and table.md in `--out`.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from benchmarks import commands, common, encode, stage1, stage2
from benchmarks.common import COLUMNS, Bench, DiffersError, Findings
from utils.base.errors import UserError, complain, exit_cleanly
from utils.report.table import aligned_lines, markdown_lines
from utils.run.folder import check_writable
from utils.settings.parse import Parser


class Part(NamedTuple):
    """Turns: how often both sides are timed."""

    section: str
    run: Callable[[Bench, str, int], Findings]
    turns: int
    network: str = ""


PARTS = (
    Part("stage1", stage1.run, 5, "resnet32"),
    Part("stage2", stage2.run, 5, "resnet32"),
    Part("encode", encode.run, 3, "resnet50"),
    Part("commands", commands.run, 3),
    Part("stage2", stage2.run, 3, "resnet34"),
    Part("stage1", stage1.run, 3, "resnet34"),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))


def main(argv: Sequence[str] | None = None) -> None:
    """Raises UserError for wrong arguments, SystemExit where ours and an opponent do not give the same."""
    parser = Parser(prog="python -m benchmarks", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", help=f"sections with commas between, of {', '.join(SECTIONS)}")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the CIFAR-100 files")
    parser.add_argument("--out", type=Path, default=Path("output/bench"), help="folder of the tables")
    parser.add_argument("--threads", type=common.positive, help="torch's threads; default: torch's own")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one turn: does it run?")
    args = parser.parse_args(argv)
    names = SECTIONS if args.only is None else args.only.split(",")
    for name in names:
        if name not in SECTIONS:
            raise UserError(f"--only has no {name!r}, known: {', '.join(SECTIONS)}")
    check_writable(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    started, load_at_start = time.monotonic(), common.load()
    bench = Bench(*common.load_cifar100_lt(args.data_dir), args.quick)
    found = [measured(bench, part) for part in PARTS if part.section in names]
    facts = common.facts() | {"load at start": load_at_start, "load at end": common.load()}
    facts |= {"data": bench.what, "quick": "yes" if args.quick else "no"}
    facts |= {"minutes": f"{(time.monotonic() - started) / 60:.1f}"}
    report(found, facts, args.out)


def measured(bench: Bench, part: Part) -> Findings:
    """What a part gives.

    Raises:
        SystemExit: what is compared differs; says where.
    """
    name = f"{part.section} {part.network}".strip()
    if sys.stderr is not None and sys.stderr.isatty():
        complain(f"{name} is being measured")
    try:
        return part.run(bench, part.network, 1 if bench.quick else part.turns)
    except DiffersError as error:
        raise SystemExit(f"comparison failed in {name}: {error}") from error


def report(found: list[Findings], facts: dict[str, str], out: Path) -> None:
    """Print the table, and leave it in the folder `out`."""
    rows = [row for one in found for row in one.rows]
    notes = [note for one in found for note in one.notes]
    notes.append(
        "min, median, max: opponent over ours in time, of each pair; ours where there is no opponent"
    )
    notes.append("reached: by the median")
    notes += [f"{name}: {value}" for name, value in facts.items()]
    lines = [COLUMNS, *(tuple(row.values()) for row in rows)]
    print(*aligned_lines(lines, words=range(3)), *notes, sep="\n", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).assign(**facts).to_csv(out / "table.csv", index=False)
    listed = "\n".join(f"- {line}" for line in notes)
    (out / "table.md").write_text(f"{markdown_lines(lines)}\n\n{listed}\n", encoding="utf-8")


if __name__ == "__main__":
    exit_cleanly(main)
