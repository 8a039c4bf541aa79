"""Every speed figure in one table, each against an opponent measured in alternation in the same run.

    python -m benchmarks [--only stage1,stage2] [--out output/bench] [--quick]

Under 15 minutes on two idle cores, on the CPU only. The opponents are in benchmarks/baselines.py; whatever is
timed is compared with ours first, and a difference ends the run. Leaves table.csv and table.md in `--out`.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common, machine
from benchmarks.bar import Turns
from benchmarks.common import Bench, DiffersError
from benchmarks.sections import PARTS, SECTIONS, Part
from benchmarks.table import Findings, aligned, as_csv, markdown
from utils.base.errors import UserError, exit_cleanly
from utils.run.folder import check_writable
from utils.settings.parse import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Raises UserError for wrong arguments, SystemExit where ours and an opponent do not give the same."""
    args = parser().parse_args(argv)
    parts = chosen(args.only)
    check_writable(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    started, load_at_start = time.monotonic(), machine.load()
    data, what = common.load_cifar100_lt(args.data_dir)
    counts = [1 if args.quick else part.turns for part in parts]
    turns = Turns([part.seconds / n for part, n in zip(parts, counts, strict=True) for _ in range(n)])
    bench = Bench(data, what, args.quick, not (args.quick or args.no_compile), turns.tick)
    found = []
    for part, count in zip(parts, counts, strict=True):
        turns.begin(part.name)
        found.append(measured(bench, part, count))
    turns.end()
    facts = machine.facts() | {"load at start": load_at_start, "load at end": machine.load()}
    facts |= {"data": what, "quick": "yes" if args.quick else "no"}
    facts |= {"minutes": f"{(time.monotonic() - started) / 60:.1f}"}
    report(found, facts, args.out)


def parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", help=f"sections with commas between, of {', '.join(SECTIONS)}")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the CIFAR-100 files")
    parser.add_argument("--out", type=Path, default=Path("output/bench"), help="folder of the tables")
    parser.add_argument("--threads", type=common.positive, help="torch's threads; default: torch's own")
    parser.add_argument("--no_compile", action="store_true", help="leave out the row with --compile")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, one turn, no --compile: does it run?"
    )
    return parser


def chosen(only: str | None) -> list[Part]:
    """The parts of the sections named; all where none is.

    Raises:
        UserError: there is no such section.
    """
    names = SECTIONS if only is None else only.split(",")
    for name in names:
        if name not in SECTIONS:
            raise UserError(f"--only has no {name!r}, known: {', '.join(SECTIONS)}")
    return [part for part in PARTS if part.section in names]


def measured(bench: Bench, part: Part, turns: int) -> Findings:
    """What a part gives.

    Raises:
        SystemExit: what is compared differs; says where.
    """
    try:
        return part.run(bench, part.network, turns)
    except DiffersError as error:
        raise SystemExit(f"comparison failed in {part.name}: {error}") from error


def report(found: list[Findings], facts: dict[str, str], out: Path) -> None:
    """Print the table, and leave it in the folder `out`."""
    rows = [row for one in found for row in one.rows]
    notes = [note for one in found for note in one.notes]
    notes.append("ratio: opponent over ours in time, of each pair; reached: its median is the target or more")
    machine_lines = [f"{name}: {value}" for name, value in facts.items()]
    print(aligned(rows), *notes, *machine_lines, sep="\n", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.csv").write_text(as_csv(rows, facts), encoding="utf-8")
    listed = "\n".join(f"- {line}" for line in (*notes, *machine_lines))
    (out / "table.md").write_text(f"{markdown(rows)}\n\n{listed}\n", encoding="utf-8")


if __name__ == "__main__":
    exit_cleanly(main)
