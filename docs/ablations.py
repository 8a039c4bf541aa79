"""What the settings of LOS do, on feature packs: the csv files, pictures and tables of docs/ablations.md.

    python -m docs.ablations                    # every pack below checkpoints/released; no images
    python -m docs.ablations --packs FILE ...   # these packs
    python -m docs.ablations --report_only      # pictures and tables again, from the csv files alone

The heads are those of `main_stage2.py --features PACK --seed 0` on the pack's plain training features, at
their last epoch. Settings are chosen on the pack's validation images, every class counting alike; test is
reported.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from utils.heads.crew import Crew

from docs import ablation_pictures, ablation_tables
from docs.ablation_statements import statement_rows
from losses import logit_gap
from utils.base.errors import UserError, exit_cleanly
from utils.base.files import write_atomically
from utils.engine.scoring import score
from utils.features.frozen import Representation, pack_data, pack_representation
from utils.features.source import PackSource
from utils.features.views import logit_batches
from utils.heads.head import HeadRun
from utils.heads.outcome import outcome
from utils.heads.plan import plan_heads
from utils.heads.stack import start_heads, train_heads
from utils.metrics.accuracy import GROUPS, READINGS, Scores
from utils.packs.pack import read_pack
from utils.report.table import mcnemar, table_rows
from utils.run.checkpoint import RELEASED
from utils.run.folder import check_writable
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE2, Parser

OUT = Path(__file__).with_name("ablations")
DELTAS = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999)
RATES, EPOCHS = (1e-4, 2e-4, 5e-4, 1e-3), (5, 10, 20)  # the published pair, 5e-4 and 20, among them
ENDING = "_features.safetensors"


def released_packs(folder: Path = RELEASED) -> list[Path]:
    """The packs below a folder."""
    return sorted(folder.rglob(f"*{ENDING}"))


class Bench:
    """A pack and the heads that were trained on it so far: none is trained twice.

    Raises:
        UserError: the pack is broken, or has no validation images that its backbone never saw.
    """

    def __init__(self, path: Path, crew: Crew) -> None:
        self.pack, self.name, self._crew = read_pack(path), "", crew
        if self.pack.val is None:
            raise UserError(f"{path} holds no validation images, and the test images choose nothing here")
        PackSource(self.pack).saw(pack_data(self.pack), select="val")
        self.config = self._config({})
        data = replace(pack_data(self.pack), shots=tuple(self.config.shots))
        self.frozen: Representation = pack_representation(self.pack, torch.device("cpu"), data)
        self._runs: dict[tuple, HeadRun] = {}
        self._scores: dict[tuple, dict[str, Scores]] = {}

    def _config(self, words: dict) -> Config:
        return resolve(STAGE2, {"features": self.pack.path, "seed": 0} | words, self.pack.known)

    def trained(self, words: dict) -> list[HeadRun]:
        """The heads of a stage-2 command line after their last epoch, the stage-1 classifier among them."""
        config = self._config(words)
        plans = plan_heads(config)[0]
        new = [plan for plan in plans if _key(plan) not in self._runs]
        runs = start_heads(new, self.frozen, [], config)
        if runs:
            train_heads(runs, self.frozen, [], crew=self._crew)
        self._runs |= {_key(run.plan): run for run in runs}
        return [self._runs[_key(plan)] for plan in plans]

    def los(self, deltas: Sequence[float], rates: Sequence[float], epochs: Sequence[int]) -> list[HeadRun]:
        """LOS in every combination of settings; δ = 0 is the control, cross-entropy.

        Raises:
            UserError: one of the heads failed.
        """
        words = {"label_smooth": deltas, "finetune_lr": rates, "finetune_epoch": epochs}
        runs = self.trained({name: list(values) for name, values in words.items()})
        for run in runs:
            if run.failed:
                raise UserError(f"{self.pack.path}: {run.plan.method.name} {run.plan.setting}: {run.failure}")
        return [run for run in runs if run.plan.method.name == "los"]

    @cached_property
    def preset(self) -> tuple[float, float, int]:
        """δ, learning rate and epochs of the preset; where it has a path, the rate that this stands for."""
        config, lr = self.config, self.config.finetune_lr
        if lr is None:
            lr = HeadRun(plan_heads(config)[0][-1], self.frozen, config).lr
        return config.label_smooth, lr, config.finetune_epoch

    @property
    def stage1(self) -> HeadRun:
        return next(run for run in self._runs.values() if run.plan.method.name == "stage1")

    def scores(self, run: HeadRun, part: str) -> Scores:
        """The scores of a head on `val` or `test`."""
        known = self._scores.setdefault(_key(run.plan), {})
        if part not in known:
            logits = logit_batches(run.head, self.frozen.part(part))
            known[part] = score(logits, self.frozen.labels[part], self.frozen.num_classes)
        return known[part]

    def figures(self, run: HeadRun, part: str) -> dict:
        """Accuracies in percent; LoMa and RSD, mean over classes, their spread and by group."""
        found = self.scores(run, part).figures(self.frozen.class_counts, self.frozen.shots)
        row = {
            name: _times_100(found[name]) for name in ("overall", "balanced", *GROUPS, "calibration_error")
        }
        for name in (f"{metric}_{reading}" for metric in ("loma", "rsd") for reading in READINGS):
            row |= {f"{name}_{group}": value for group, value in found[name].items()}
        return {f"{part}_{name}": value for name, value in row.items()}

    def chosen(self) -> HeadRun:
        """The head of LOS that does best on validation; the first of equals."""
        runs = [run for run in self._runs.values() if run.plan.options.get("label_smooth")]
        return max(runs, key=lambda run: self.figures(run, "val")["val_balanced"])

    def facts(self) -> dict:
        """What tells the pack apart in every row."""
        return {"pack": self.name} | {name: self.pack.facts[name] for name in ("network", "imb_ratio")}

    def row(self, run: HeadRun) -> dict:
        """A row of heads.csv. `label_times_classes`: the label of the true class, in multiples of 1/K."""
        plan, classes = run.plan, self.frozen.num_classes
        row = self.facts() | {"method": plan.method.name, "setting": plan.setting}
        delta = plan.options.get("label_smooth")
        if delta is not None:
            row |= {"label_smooth": delta, "logit_gap": logit_gap(delta, classes)}
            row |= {"label_times_classes": classes * (1 - delta) + delta, "lr": run.lr}
        row |= {"epochs": plan.epochs} | self.figures(run, "val") | self.figures(run, "test")
        return row

    def gain(self, setting: str, run: HeadRun) -> dict:
        """A row of gains.csv: a head of LOS against the control of the same length, and against stage 1."""
        plan = run.plan
        [control] = self.los([0.0], [run.lr], [plan.epochs])
        row = self.facts() | {"chosen_by": setting, "label_smooth": plan.options["label_smooth"]}
        row |= {"lr": run.lr, "epochs": plan.epochs}
        ours, labels = self.scores(run, "test").predicted, self.frozen.labels["test"]
        for part in ("val", "test"):
            row[f"{part}_los"] = self.figures(run, part)[f"{part}_balanced"]
        for name, other in (("ce", control), ("stage1", self.stage1)):
            for part in ("val", "test"):
                theirs = self.figures(other, part)[f"{part}_balanced"]
                row[f"{part}_{name}"], row[f"{part}_minus_{name}"] = theirs, row[f"{part}_los"] - theirs
            row[f"p_{name}"] = mcnemar(ours, self.scores(other, "test").predicted, labels)
        return row

    def method_rows(self) -> list[dict]:
        """A row a method, settings of their sources: the columns of a run's table.csv without its seconds."""
        runs = self.trained({"method": "all"})
        left, failed = ([run for run in runs if run.failed is state] for state in (False, True))
        facts = {"budget": self.config.budget, "selected_on": "last"}
        rows = table_rows([outcome(run) for run in left], failed, self.frozen.labels["test"], facts)
        return [self.facts() | {k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _key(plan: object) -> tuple[str, str]:
    return plan.method.name, plan.setting


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def open_benches(paths: Sequence[Path], crew: Crew) -> list[Bench]:
    """The packs, named by network and ratio; where several share these, by folder or file too."""
    benches = [Bench(path, crew) for path in paths]
    benches.sort(key=lambda bench: (bench.pack.facts["network"], -(bench.pack.facts["imb_ratio"] or 0)))
    for bench in benches:
        facts = bench.pack.facts
        ratio = facts["imb_ratio"]
        bench.name = f"{facts['network']} " + (facts["dataset"] if ratio is None else f"IR={ratio:g}")
    for name in {bench.name for bench in benches}:
        same = [bench for bench in benches if bench.name == name]
        for bench in same if len(same) > 1 else []:
            path = bench.pack.path.resolve()
            inside = path.is_relative_to(RELEASED)
            bench.name += f" ({path.relative_to(RELEASED).parts[0] if inside else path.name})"
    return benches


def measure(paths: Sequence[Path], crew: Crew) -> dict[str, list[dict]]:
    """Train and score all heads: the rows of packs.csv, heads.csv, gains.csv and methods.csv."""
    benches = open_benches(paths, crew)
    tables: dict[str, list[dict]] = {name: [] for name in ("packs", "heads", "gains", "methods")}
    for bench in benches:
        pack = bench.pack
        images = {name: len(getattr(pack, f"{name}_labels")) for name in ("train", "val", "test")}
        about = {"classes": bench.frozen.num_classes, "width": pack.fc_weight.shape[1], "sha256": pack.digest}
        tables["packs"].append(bench.facts() | about | images)
        delta, lr, epochs = bench.preset
        sweep = bench.los(sorted({*DELTAS, delta}), [lr], [epochs])
        grid = bench.los([delta], RATES, EPOCHS)
        [preset] = bench.los([delta], [lr], [epochs])
        tables["gains"] += [bench.gain("preset", preset), bench.gain("validation", bench.chosen())]
        studies = {"delta": sweep, "grid": grid, "stage1": [bench.stage1]}
        tables["heads"] += [{"study": s} | bench.row(run) for s, runs in studies.items() for run in runs]
        print(f"{bench.name}: {len(tables['heads'])} rows so far", flush=True)
    widest = max(benches, key=lambda bench: bench.pack.fc_weight.shape[1])
    tables["methods"] = widest.method_rows()
    return tables


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m docs.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--packs", type=Path, nargs="+", help="feature packs with validation images")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the csv files; OUT.md is the page")
    parser.add_argument(
        "--report_only", action="store_true", help="draw and write from the csv files of --out"
    )
    given = parser.parse_args(argv)
    check_writable(given.out)
    if not given.report_only:
        paths = given.packs or released_packs()
        if not paths:
            raise UserError(f"there is no pack *{ENDING} below {RELEASED}: name one with --packs")
        crew = Crew(torch.get_num_threads())
        torch.set_num_threads(1)
        tables = {name: pd.DataFrame(rows) for name, rows in measure(paths, crew).items()}
        for name, table in tables.items():
            write_csv(given.out / f"{name}.csv", table)
        read = ablation_tables.read(given.out, ("packs", "heads", "gains", "methods"))
        write_csv(given.out / "statements.csv", pd.DataFrame(statement_rows(read)))
    tables = ablation_tables.read(given.out)
    print(*ablation_pictures.draw(tables, given.out), sep="\n")
    print(ablation_tables.write(tables, given.out.with_name(f"{given.out.name}.md")))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    text = table.to_csv(index=False, float_format="%.6g")
    write_atomically(path, lambda handle: handle.write(text.encode()))


if __name__ == "__main__":
    exit_cleanly(main)
