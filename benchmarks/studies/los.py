"""How LOS acts, measured on a feature pack: the pictures and figures of docs/los.md.

    python -m benchmarks.studies.los [--features PACK] [--out docs/los]

About seven minutes on one core. Accuracies are on the packs' validation images; the test images are not used.
One study goes through every released pack, so it needs those files beside the pack that is named.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from benchmarks.heads import trained
from benchmarks.studies.ablations import Bench
from benchmarks.studies.pictures import COLOURS, MARKS, tidy
from losses import LabelOverSmooth, label_smooth_for_gap, logit_gap
from utils.base.errors import exit_cleanly
from utils.engine.loop import cosine_lr
from utils.features.frozen import Representation
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan
from utils.metrics import logits_magnitude, shot_accuracy
from utils.metrics.accuracy import GROUPS
from utils.metrics.logits import READINGS
from utils.run.checkpoint import RELEASED
from utils.settings.method import Method
from utils.settings.methods import METHODS
from utils.settings.parse import Parser

PACK = RELEASED / "cifar100_lt" / "IR=100" / "resnet32_features.safetensors"
EPOCHS, LONG = 20, 16.0
PATHS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
# other networks and ratios are walked farther: a wide network has its best far behind that of a thin one
PACKS = ("IR=100/resnet32", "IR=50/resnet32", "IR=10/resnet32", "IR=100/resnet34")
FAR_PATHS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0)
GAPS = (0.11, 0.25, 0.5, 1.11, 2.0, 3.0, 4.61, 5.7, 7.0)
TAUS = tuple(0.1 * step for step in range(21))
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LOS, STEP = METHODS["los"], METHODS["los_step"]
CURVES = {
    "los": ("#0072B2", "-", "o"),
    "los_step": ("#D55E00", "--", "^"),
    "la": ("#009E73", "-.", "s"),
    "tau_norm": ("#CC79A7", ":", "D"),
}


class Study:
    """The heads of a study on one pack: plans, trains and scores them."""

    def __init__(self, features: Path) -> None:
        self.bench = Bench(features)
        self.config, self.frozen = self.bench.config, self.bench.frozen
        self.delta = self.config.label_smooth

    def plan(self, method: Method, **options: float) -> HeadPlan:
        epochs = EPOCHS if method.trained else 0
        return HeadPlan(method, options, epochs, None, 0.0, self.config.seed)

    def los(self, path: float, **options: float) -> HeadPlan:
        """LOS with the preset's label, where the options name no other."""
        return self.plan(LOS, **{"label_smooth": self.delta, "path": path} | options)

    def trained(self, plans: Sequence[HeadPlan]) -> list[HeadRun]:
        return trained(plans, self.frozen, self.config)

    def figures(self, head: nn.Module) -> dict:
        """All that validation says of a head as it is now."""
        return self.bench.scored(head, "val").figures(self.frozen.class_counts)

    def row(self, head: nn.Module) -> dict:
        """Accuracies in percent, LoMa in both readings by group: on validation."""
        found = self.figures(head)
        row = {name: _times_100(found[name]) for name in ("overall", "balanced", *GROUPS)}
        for reading in READINGS:
            loma = found[f"loma_{reading}"]
            row |= {f"loma_{reading}_{name}": loma[name] for name in (*GROUPS, "spread")}
        return row

    def rows(self, plans: Sequence[HeadPlan]) -> list[dict]:
        """Scores of these heads after their last epoch."""
        return [self.row(run.head) for run in self.trained(plans)]


def _times_100(value: float | None) -> float:
    return np.nan if value is None else 100 * value


def draw_ways(study: Study) -> tuple[Figure, list[dict]]:
    """Accuracy and LoMa along the way: LOS, the control, and LOS under class-balanced sampling."""
    balanced = replace(study.los(LONG), method=replace(LOS, sampler="balanced"))
    heads = {
        "los": ("LOS", study.los(LONG)),
        "ce": ("control: cross-entropy", study.plan(METHODS["ce"], path=LONG)),
        "balanced": ("LOS, class-balanced sampling", balanced),
    }
    # the part of the first-order path that is behind after each epoch
    walked = LONG * np.cumsum([0.0] + [cosine_lr(1.0, epoch, EPOCHS) for epoch in range(EPOCHS)])
    walked /= walked[-1] / LONG
    ways = {name: [study.row(study.frozen.fc)] for name in heads}

    def note(epoch: int, runs: list[HeadRun]) -> None:
        for name, run in zip(heads, runs, strict=True):
            ways[name].append(study.row(run.head))

    trained([plan for _, plan in heads.values()], study.frozen, study.config, after_epoch=note)
    figure = Figure((7.2, 5), dpi=150, layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    rows = []
    for column, (name, way) in enumerate(ways.items()):
        steps = zip(walked, way, strict=True)
        rows += [{"study": "way", "head": name, "walked": w} | row for w, row in steps]
        _lines(axes[0, column], walked, way, {part: part for part in COLOURS})
        _lines(axes[1, column], walked, way, {part: f"loma_per_sample_{part}" for part in GROUPS})
        axes[0, column].set_title(heads[name][0], fontsize=9)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("LoMa (per_sample)")
    axes[0, 1].legend(fontsize=8, frameon=False, loc="center", bbox_to_anchor=(0.5, 0.3))
    figure.supxlabel("first-order logit drop of the most frequent class so far (path)", fontsize=9)
    return figure, rows


def _lines(axes: Axes, walked: np.ndarray, way: Sequence[dict], columns: dict[str, str]) -> None:
    for part, column in columns.items():
        style = {"color": COLOURS[part], "marker": MARKS[part], "markersize": 3, "markevery": 4}
        axes.plot(walked, [row[column] for row in way], label=part, **style)
    tidy(axes)


def sampler_rows(study: Study) -> list[dict]:
    """LOS under natural and under class-balanced sampling, at multiples of the learning rate of path 5."""
    rows = []
    for sampler in ("natural", "balanced"):
        method = replace(LOS, sampler=sampler)
        found = study.rows([replace(study.los(5.0 * factor), method=method) for factor in FACTORS])
        for factor, row in zip(FACTORS, found, strict=True):
            rows.append({"study": "sampler", "head": sampler, "strength": factor} | row)
    return rows


def pack_rows() -> list[dict]:
    """LOS and its closed first step on every released pack, with the LoMa of the halves in training.

    `train_frequent` and `train_rare` are the mean LoMa (per_sample) over the training images of the more
    and of the less frequent half of the classes.
    """
    rows = []
    for name in PACKS:
        study = Study(RELEASED / "cifar100_lt" / f"{name}_features.safetensors")
        frozen = study.frozen
        halves = np.array_split(np.argsort([-count for count in frozen.train_counts], kind="stable"), 2)
        paths = [0.0, *FAR_PATHS, *FAR_PATHS]
        plans = [study.plan(METHODS["stage1"]), *map(study.los, FAR_PATHS)]
        plans += [study.plan(STEP, path=path) for path in FAR_PATHS]
        for path, run in zip(paths, study.trained(plans), strict=True):
            with torch.no_grad():
                logits = run.head(frozen.train.plain().float())
            loma = logits_magnitude(logits, frozen.train.labels.long()).numpy()
            head = run.plan.method.name
            row = {"study": f"pack {name}", "head": head, "path": path} | study.row(run.head)
            row |= {"train_frequent": loma[halves[0]].mean(), "train_rare": loma[halves[1]].mean()}
            rows.append(row | (stationarity(frozen, study.delta) if head == "stage1" else {}))
    return rows


def stationarity(frozen: Representation, delta: float) -> dict:
    """How near to stationary the stage-1 classifier is on the plain view of its training images.

    `gradient_share` is the norm of the gradient of cross-entropy over that of the penalty that LOS adds;
    `train_few` is the accuracy (%) of the few-shot classes on their training images.
    """
    features, labels = frozen.train.plain().double(), frozen.train.labels.long()
    fc = [value.detach().double().requires_grad_() for value in (frozen.fc.weight, frozen.fc.bias)]
    logits = features @ fc[0].T + fc[1]
    gradients = []
    for value in (0.0, delta):
        parts = torch.autograd.grad(LabelOverSmooth(value)(logits, labels), fc, retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    share = float(gradients[0].norm() / (gradients[1] - gradients[0]).norm())
    few = shot_accuracy(logits.detach(), labels, frozen.class_counts).few
    return {"gradient_share": share, "train_few": _times_100(few)}


def draw_map(study: Study) -> tuple[Figure, list[dict]]:
    """Validation accuracy over the label (as its logit gap) and the path."""
    deltas = [label_smooth_for_gap(gap, study.frozen.num_classes) for gap in GAPS]
    settings = [{"label_smooth": delta, "path": path} for delta in deltas for path in PATHS]
    found = study.rows([study.los(**setting) for setting in settings])
    rows = [{"study": "map"} | setting | row for setting, row in zip(settings, found, strict=True)]
    table = np.array([row["balanced"] for row in rows]).reshape(len(GAPS), len(PATHS))
    figure = Figure((7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for i, j in np.ndindex(table.shape):
        colour = "black" if table[i, j] > middle else "white"
        axes.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(PATHS)), [f"{path:g}" for path in PATHS], fontsize=8)
    names = [f"{gap:g} (δ {delta:.3g})" for gap, delta in zip(GAPS, deltas, strict=True)]
    axes.set_yticks(range(len(GAPS)), names, fontsize=8)
    axes.set_xlabel("path: first-order logit drop of the most frequent class")
    axes.set_ylabel("logit gap g of the label")
    figure.colorbar(image, label="validation accuracy, classes alike (%)")
    return figure, rows


def draw_alternatives(study: Study) -> tuple[Figure, list[dict]]:
    """What frequent classes pay for what rare ones gain, by method, each along its own strength."""
    heads = {
        "los": (PATHS, [study.los(path) for path in PATHS]),
        "los_step": (PATHS, [study.plan(STEP, path=path) for path in PATHS]),
        "la": (TAUS, [study.plan(METHODS["la"], tau=tau) for tau in TAUS]),
        "tau_norm": (TAUS, [study.plan(METHODS["tau_norm"], tau=tau) for tau in TAUS]),
    }
    figure = Figure((7.2, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = []
    for name, (strengths, plans) in heads.items():
        found = pd.DataFrame(study.rows(plans))
        named = {"study": "alternatives", "head": name, "strength": strengths}
        rows += pd.DataFrame(named).join(found).to_dict("records")
        style = dict(zip(("color", "linestyle", "marker"), CURVES[name], strict=True)) | {"markersize": 3.5}
        left.plot(found["many"], found["few"], label=name, **style)
        right.plot(found["many"], found["balanced"], **style)
    for axes in (left, right):
        tidy(axes)
        axes.set_xlabel("many-shot accuracy (%)")
    left.set_ylabel("few-shot accuracy (%)")
    right.set_ylabel("all classes alike (%)")
    left.legend(fontsize=8, frameon=False)
    return figure, rows


def draw_readings(study: Study) -> tuple[Figure, list[dict]]:
    """LoMa of each class in both readings, before and after."""
    plans = [study.plan(METHODS["stage1"]), study.los(5.0), study.plan(METHODS["la"], tau=1.0)]
    heads = dict(zip(("stage 1", "los", "la"), study.trained(plans), strict=True))
    rank = np.argsort([-count for count in study.frozen.class_counts], kind="stable")
    window = max(1, len(rank) // 10)
    figure = Figure((7.2, 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = {"stage 1": ("#000000", ":"), "los": CURVES["los"], "la": CURVES["la"]}
    for axes, reading in zip(panels, READINGS, strict=True):
        for name, run in heads.items():
            values = study.figures(run.head)["classes"][f"loma_{reading}"]
            values = pd.Series(values, dtype=float).iloc[rank]
            smooth = values.rolling(window, center=True, min_periods=1).mean()
            colour, dashes, *_ = styles[name]
            axes.plot(range(1, len(rank) + 1), smooth, color=colour, linestyle=dashes, label=name)
        axes.set_title(f"LoMa, {reading}", fontsize=9)
        axes.set_xlabel("class, most frequent first")
        tidy(axes)
    panels[0].legend(fontsize=8, frameon=False)
    return figure, [{"study": "readings", "head": name} | study.row(run.head) for name, run in heads.items()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m benchmarks.studies.los", description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, default=PACK, help="pack with validation images")
    parser.add_argument("--out", type=Path, default=Path("docs/los"), help="folder of the pictures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    study = Study(args.features)
    gap = logit_gap(study.delta, study.frozen.num_classes)
    print(f"{args.features}: δ = {study.delta:g}, logit gap {gap:.3g}, {EPOCHS} epochs")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = sampler_rows(study) + pack_rows()
    pictures = {"way": draw_ways, "alternatives": draw_alternatives}
    pictures |= {"readings": draw_readings, "map": draw_map}
    for name, draw in pictures.items():
        figure, found = draw(study)
        figure.savefig(args.out / f"{name}.png")
        rows += found
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "los_study.csv", index=False, float_format="%.4f")
    columns = ["study", "head", "label_smooth", "path", "strength", "walked", "balanced", *GROUPS]
    print(table[columns].round(2).to_string(index=False, na_rep="-"))


if __name__ == "__main__":
    exit_cleanly(main)
