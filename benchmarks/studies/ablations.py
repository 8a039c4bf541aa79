"""What the settings of LOS do, on feature packs: the csv files, pictures and tables of docs/ablations.md.

    python -m benchmarks.studies.ablations                    # every pack of checkpoints/released; no images
    python -m benchmarks.studies.ablations --packs FILE ...   # these packs
    python -m benchmarks.studies.ablations --report_only      # pictures and tables again, from the csv files

The heads are those of `main_stage2.py --features PACK --seed 0` on the pack's plain training features, at
their last epoch. Settings are chosen on the pack's validation images, every class counting alike; test is
reported.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks import heads
from benchmarks.common import ROOT
from benchmarks.studies import pictures, tables
from losses import logit_gap
from utils.base.errors import UserError, exit_cleanly
from utils.base.files import write_atomically
from utils.engine.scoring import score
from utils.features.frozen import Representation, pack_data, pack_representation
from utils.features.logits import logit_batches
from utils.features.source import PackSource
from utils.heads.head import HeadRun
from utils.heads.outcome import outcome
from utils.heads.plan import plan_heads
from utils.metrics.accuracy import GROUPS, Scores
from utils.metrics.logits import READINGS
from utils.metrics.percent import in_percent
from utils.packs.pack import read_pack
from utils.report.table import mcnemar, table_rows
from utils.run.checkpoint import RELEASED
from utils.run.folder import check_writable
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE2, Parser

OUT = ROOT / "docs" / "ablations"
DELTAS = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999)
RATES, EPOCHS = (1e-4, 2e-4, 5e-4, 1e-3), (5, 10, 20)  # the published pair, 5e-4 and 20, among them
ENDING = "_features.safetensors"


class Bench:
    """A pack and the heads that were trained on it so far: none is trained twice.

    Raises:
        UserError: the pack is broken, or has no validation images that its backbone never saw.
    """

    def __init__(self, path: Path) -> None:
        self.pack = read_pack(path)
        if self.pack.val is None:
            raise UserError(f"{path} holds no validation images, and the test images choose nothing here")
        PackSource(self.pack).saw(pack_data(self.pack), select="val")
        self.config = self._config({})
        data = replace(pack_data(self.pack), shots=tuple(self.config.shots))
        self.frozen: Representation = pack_representation(self.pack, torch.device("cpu"), data)
        facts, ratio = self.pack.facts, self.pack.facts["imb_ratio"]
        self.name = f"{facts['network']} " + (facts["dataset"] if ratio is None else f"IR={ratio:g}")
        self._runs: dict[tuple, HeadRun] = {}
        self.scores = cache(lambda run, part: self.scored(run.head, part))

    def _config(self, words: dict) -> Config:
        return resolve(STAGE2, {"features": self.pack.path, "seed": 0} | words, self.pack.known)

    def trained(self, words: dict) -> list[HeadRun]:
        """The heads of a stage-2 command line after their last epoch, the stage-1 classifier among them."""
        config = self._config(words)
        plans = {(plan.method.name, plan.setting): plan for plan in plan_heads(config)[0]}
        new = [key for key in plans if key not in self._runs]
        if new:
            runs = heads.trained([plans[key] for key in new], self.frozen, config)
            self._runs |= dict(zip(new, runs, strict=True))
        return [self._runs[key] for key in plans]

    def los(self, deltas: Sequence[float], rates: Sequence[float], epochs: Sequence[int]) -> list[HeadRun]:
        """LOS in every combination of settings; δ = 0 is the control, cross-entropy."""
        words = {"label_smooth": deltas, "finetune_lr": rates, "finetune_epoch": epochs}
        runs = self.trained({name: list(values) for name, values in words.items()})
        return [run for run in runs if run.plan.method.name == "los"]

    @property
    def preset(self) -> tuple[float, float, int]:
        """δ, learning rate and epochs of the preset; where it has a path, the rate that this stands for."""
        config = self.config
        lr = self.trained({})[-1].lr if config.finetune_lr is None else config.finetune_lr
        return config.label_smooth, lr, config.finetune_epoch

    @property
    def stage1(self) -> HeadRun:
        return next(run for run in self._runs.values() if run.plan.method.name == "stage1")

    def scored(self, head: nn.Module, part: str) -> Scores:
        """The scores of a head on `val` or `test`; `scores` remembers those of a run."""
        logits = logit_batches(head, self.frozen.part(part))
        return score(logits, self.frozen.labels[part], self.frozen.num_classes)

    def figures(self, run: HeadRun, part: str) -> dict:
        """Accuracies in percent; LoMa and RSD, mean over classes, their spread and by group."""
        found = self.scores(run, part).figures(self.frozen.class_counts, self.frozen.shots)
        names = ("overall", "balanced", *GROUPS, "calibration_error")
        row = {name: None if found[name] is None else 100 * found[name] for name in names}
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
        return row | {"epochs": plan.epochs} | self.figures(run, "val") | self.figures(run, "test")

    def gain(self, chosen_by: str, run: HeadRun) -> dict:
        """A row of gains.csv: a head of LOS against the control of the same length, and against stage 1."""
        plan = run.plan
        [control] = self.los([0.0], [run.lr], [plan.epochs])
        row = self.facts() | {"chosen_by": chosen_by, "label_smooth": plan.options["label_smooth"]}
        row |= {"lr": run.lr, "epochs": plan.epochs}
        for part in ("val", "test"):
            row[f"{part}_los"] = self.figures(run, part)[f"{part}_balanced"]
        for name, other in (("ce", control), ("stage1", self.stage1)):
            for part in ("val", "test"):
                theirs = self.figures(other, part)[f"{part}_balanced"]
                row |= {f"{part}_{name}": theirs, f"{part}_minus_{name}": row[f"{part}_los"] - theirs}
            ours, theirs = (self.scores(one, "test").predicted for one in (run, other))
            row[f"p_{name}"] = mcnemar(ours, theirs, self.frozen.labels["test"])
        return row

    def method_rows(self) -> list[dict]:
        """A row a method, settings of their sources: the columns of a run's table.csv without its seconds."""
        outcomes = [outcome(run) for run in self.trained({"method": "all"})]
        facts = {"budget": self.config.budget, "selected_on": "last"}
        rows = in_percent(table_rows(outcomes, [], self.frozen.labels["test"], facts))
        return [self.facts() | row for row in rows.drop(columns="seconds").to_dict("records")]


def open_benches(paths: Sequence[Path]) -> list[Bench]:
    """The packs, named by network and ratio; where several share these, by folder or file too."""
    benches = [Bench(path) for path in paths]
    benches.sort(key=lambda bench: (bench.pack.facts["network"], -(bench.pack.facts["imb_ratio"] or 0)))
    names = Counter(bench.name for bench in benches)
    for bench in (bench for bench in benches if names[bench.name] > 1):
        path = bench.pack.path.resolve()
        own = path.relative_to(RELEASED).parts[0] if path.is_relative_to(RELEASED) else path.name
        bench.name += f" ({own})"
    return benches


def measure(paths: Sequence[Path]) -> dict[str, list[dict]]:
    """Train and score all heads: the rows of packs.csv, heads.csv, gains.csv and methods.csv."""
    benches = open_benches(paths)
    rows: dict[str, list[dict]] = {name: [] for name in tables.FILES}
    for bench in benches:
        pack = bench.pack
        images = {name: len(getattr(pack, f"{name}_labels")) for name in ("train", "val", "test")}
        about = {"classes": bench.frozen.num_classes, "width": pack.fc_weight.shape[1], "sha256": pack.digest}
        rows["packs"].append(bench.facts() | about | images)
        delta, lr, epochs = bench.preset
        sweep = bench.los(sorted({*DELTAS, delta}), [lr], [epochs])
        grid = bench.los([delta], RATES, EPOCHS)
        [preset] = bench.los([delta], [lr], [epochs])
        rows["gains"] += [bench.gain("preset", preset), bench.gain("validation", bench.chosen())]
        studies = {"delta": sweep, "grid": grid, "stage1": [bench.stage1]}
        rows["heads"] += [{"study": s} | bench.row(run) for s, runs in studies.items() for run in runs]
        rows["methods"] += bench.method_rows()
        print(f"{bench.name}: {len(rows['heads'])} rows so far", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog=tables.COMMAND, description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--packs", type=Path, nargs="+", help="feature packs with validation images")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the csv files; OUT.md is the page")
    parser.add_argument("--report_only", action="store_true", help="from the csv files of --out alone")
    args = parser.parse_args(argv)
    check_writable(args.out)
    if not args.report_only:
        paths = args.packs or sorted(RELEASED.rglob(f"*{ENDING}"))
        if not paths:
            raise UserError(f"there is no pack *{ENDING} below {RELEASED}: name one with --packs")
        torch.set_num_threads(1)
        for name, rows in measure(paths).items():
            text = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode()
            write_atomically(args.out / f"{name}.csv", lambda handle, text=text: handle.write(text))
    found = tables.read(args.out)
    print(*pictures.draw(found, args.out), sep="\n")
    print(tables.write(found, args.out.with_name(f"{args.out.name}.md")))


if __name__ == "__main__":
    exit_cleanly(main)
