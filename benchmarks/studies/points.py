"""Where the points of a published figure come from: the tables of docs/methods.md, on one stage 1.

    python -m benchmarks.studies.points [--network resnet34]   # runs what is missing, writes csv and table
    python -m benchmarks.studies.points --network resnet34 --recipe epochs=30 --amp bf16
    python -m benchmarks.studies.points --cells                # the csv file and the table of what is done

A cell is a run of main_stage2.py with `--select test`, whose metrics.csv has the accuracies of every epoch:
all ways to choose one are read off the same training. Views of a frozen backbone are a pack: the released
one of plain images, or one that is made first; fresh views are 20 of each image.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.common import ROOT
from utils.base.errors import UserError, exit_cleanly
from utils.base.files import write_atomically
from utils.base.pages import put
from utils.metrics.accuracy import GROUPS
from utils.metrics.percent import SCALE
from utils.plots.tables import read_table
from utils.report.table import markdown_lines
from utils.run.checkpoint import RELEASED
from utils.settings.method import Method
from utils.settings.methods import METHODS
from utils.settings.parse import Parser
from utils.settings.presets import preset_for

COMMAND, PRESET = "python -m benchmarks.studies.points", "benchmarks.studies.points:los_preset"
DRIFTING = ["ce", "los", PRESET, "wb"]  # what has no training moves nothing, and bsce takes 94 epochs
SCORES = {"val": "val_balanced", "test": "test_overall"}
COLUMNS = ("views", "batch_norm", "method", "setting", "seed", "chosen", "epoch", "overall", *GROUPS)
# cell -> views, batch-norm; a drifting backbone goes another way with every seed, so that each is a run
CELLS = {"plain": ("plain", "eval"), "fresh": ("fresh", "eval")}
CELLS |= {f"drift{seed}": ("fresh", "train") for seed in range(3)}
VIEWS = {"plain": 0, "fresh": 20}  # of --views, where the features of a cell are a pack


def los_preset() -> Method:
    """LOS with the learning rate of the thin network's preset; that of ResNet-34 is the published one."""
    return replace(METHODS["los"], name="los_preset", lr=preset_for("cifar100_lt", "resnet32")["finetune_lr"])


def runs(folder: Path, file: str) -> list[Path]:
    return sorted(folder.glob(f"*_stage2/*/{file}"))


def run(folder: Path, *words: object) -> None:
    """Run main_stage2.py in a folder to its end, or go on with what is there."""
    words += ("--cur_stage", "stage2", "--out", folder, "--ckpt_dir", folder / "checkpoints", "--quiet")
    words += tuple(word for path in runs(folder, "last.pth")[-1:] for word in ("--resume", path.parent))
    if subprocess.run([sys.executable, "main_stage2.py", *map(str, words)], cwd=ROOT, check=False).returncode:
        raise UserError(f"{folder} has not come to its end: the same command goes on with it")


def run_all(network: str, home: Path, out: Path, names: Sequence[str], amp: str) -> None:
    """The cells; those that need images and a backbone only where this is released in `home`."""
    packs = {name: out / f"{name}_views.safetensors" for name in ("plain", "fresh")}
    if (released := home / f"{network}_features.safetensors").exists():
        packs["plain"] = released
    start = ["--imb_ratio", 100, "--network", network, "--pretrained_pth", home / f"{network}_stage1.pth"]
    drifting = [method for method in DRIFTING if method != PRESET or network == "resnet32"]
    able = [name for name in names if start[-1].exists() or packs.get(name) == released]
    for name in (name for name in able if not runs(out / name, "summary.json")):
        if name in packs and not packs[name].exists():
            kept = ["--views", VIEWS[name], "--save_features", packs[name], "--pack_dtype", "fp32"]
            run(out / f"{name}_views", *start, *kept, "--seed", 0, "--amp", amp, "--method", "stage1")
        given, methods = [*start, "--amp", amp, "--bn_mode", "train", "--seed", name[-1]], drifting
        if name in packs:
            given, methods = ["--features", packs[name], "--seeds", "0,1,2"], ["stage1,la", *drifting, "bsce"]
        run(out / name, *given, "--method", ",".join(methods), "--budget", "source", "--select", "test")


def rows(out: Path) -> pd.DataFrame:
    """A row a finished cell, head and way to choose the epoch; the seeds of a cell share the epoch."""
    found = []
    for name, cell in CELLS.items():
        for path in runs(out / name, "summary.json"):
            metrics = read_table(path.with_name("metrics.csv"), [SCALE]).fillna({"setting": ""})
            for key, heads in metrics.groupby(["method", "setting"], sort=False):
                means = heads.groupby("epoch")[[*SCORES.values()]].mean()
                epochs = {"last": means.index.max()} | {way: means[s].idxmax() for way, s in SCORES.items()}
                for way, epoch in epochs.items():
                    for row in heads[heads["epoch"] == epoch].to_dict("records"):
                        figures = [row[f"test_{part}"] for part in ("overall", *GROUPS)]
                        found.append((*cell, *key, row["seed"], way, epoch, *figures))
    return pd.DataFrame(found, columns=COLUMNS)


def table(made: pd.DataFrame) -> str:
    """Mean ± deviation over n seeds of stage 2, and in brackets the epoch where it is chosen."""
    lines = [["views", "batch-norm", "method", "n", "last", "by validation", "by test", "groups, last"]]
    for key, group in made.groupby([*COLUMNS[:4]], sort=False):
        ways, cells = dict(iter(group.groupby("chosen"))), []
        for own in (ways[way] for way in ("last", *SCORES)):
            at = f" ({', '.join(map(str, own['epoch'].unique()))})" if own is not ways["last"] else ""
            spread = f" ± {own['overall'].std():.2f}" if len(own) > 1 else ""
            cells.append(f"{own['overall'].mean():.2f}{spread}{at}")
        cells.append("/".join(f"{ways['last'][name].mean():.1f}" for name in GROUPS))
        lines.append([*key[:3], str(len(ways["last"])), *cells])
    return markdown_lines(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet32", help="of a released model of ratio 100")
    parser.add_argument("--recipe", default="", help="folder of checkpoints/released where that lies")
    for name, place in (("out", "output/points"), ("results", "results/points"), ("page", "docs/methods.md")):
        parser.add_argument(f"--{name}", type=Path, default=ROOT / place, help=f"default {place}")
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=[*CELLS], help="to run; none: report")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="precision of the backbone")
    args = parser.parse_args(argv)
    label = f"{args.network}_{args.recipe}".removesuffix("_")
    home, out = RELEASED / args.recipe / "cifar100_lt" / "IR=100", args.out.resolve() / label
    run_all(args.network, home, out, args.cells, args.amp)
    file = args.results / f"{label}.csv"
    if len(made := rows(out)):
        text = made.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode()
        write_atomically(file, lambda handle: handle.write(text))
    words = f" --recipe {args.recipe}" if args.recipe else ""
    made = table(read_table(file, COLUMNS, keep_default_na=False))
    put(args.page, f"points of {label}", f"{COMMAND} --network {args.network}{words}", made)


if __name__ == "__main__":
    exit_cleanly(main)
