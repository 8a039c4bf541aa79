"""How LOS acts, measured on a feature pack: the pictures and figures of docs/los.md.

    python -m docs.los_study [--features PACK] [--out docs/los]

About seven minutes on one core. Accuracies are on the packs' validation images; the test images are not used.
One study goes through every released pack, so it needs those files beside the pack that is named.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from losses import LabelOverSmooth, label_smooth_for_gap, logit_gap
from utils.base.errors import UserError, exit_cleanly
from utils.engine.loop import cosine_lr
from utils.features.frozen import Representation, pack_representation
from utils.features.views import logit_batches
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan
from utils.metrics.accuracy import GROUPS, Scores, logits_magnitude, shot_accuracy
from utils.packs.pack import read_pack
from utils.run.checkpoint import RELEASED
from utils.settings.config import Config, resolve
from utils.settings.methods import METHODS, Method
from utils.settings.parse import STAGE2, Parser

PACK = RELEASED / "cifar100_lt" / "IR=100" / "resnet32_features.safetensors"
EPOCHS, LONG = 20, 16.0
PATHS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
# other networks and ratios are walked farther: a wide network has its best far behind that of a thin one
PACKS = ("IR=100/resnet32", "IR=50/resnet32", "IR=10/resnet32", "IR=100/resnet34")
FAR_PATHS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0)
GAPS = (0.11, 0.25, 0.5, 1.11, 2.0, 3.0, 4.61, 5.7, 7.0)
TAUS = tuple(0.1 * step for step in range(21))
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
READINGS = ("per_sample", "per_class")
# Okabe-Ito; the dashes are for readers in grey
COLOURS = {"overall": "#000000", "many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}
CURVES = {"los": "#0072B2", "los_step": "#D55E00", "la": "#009E73", "tau_norm": "#CC79A7"}
DASHES = {"los": "-", "los_step": "--", "la": "-.", "tau_norm": ":"}
MARKS = {"los": "o", "los_step": "^", "la": "s", "tau_norm": "D"}


class Study:
    """The heads of a study on one pack: makes, trains and scores them."""

    def __init__(self, features: Path) -> None:
        pack = read_pack(features)
        if pack.val is None:
            raise UserError(f"{features} holds no validation images, and the test images choose nothing here")
        self.config: Config = resolve(STAGE2, {"features": features, "seed": 0}, pack.known)
        self.frozen: Representation = pack_representation(pack, torch.device("cpu"))

    def head(
        self, method: Method, epochs: int = EPOCHS, lr: float | None = None, **options: float
    ) -> HeadRun:
        run = HeadRun(HeadPlan(method, options, epochs, lr, 0.0, self.config.seed), self.frozen, self.config)
        if run.failed:
            raise UserError(f"{method.name} {run.plan.setting}: {run.failure}")
        return run

    def scores(self, run: HeadRun) -> dict:
        """Accuracies in percent, LoMa in both readings by group and by class: on validation."""
        scores = Scores(self.frozen.labels["val"], self.frozen.num_classes)
        for logits in logit_batches(run.head, self.frozen.part("val")):
            scores.add(logits)
        found = scores.figures(self.frozen.class_counts)
        row = {name: _times_100(found[name]) for name in ("overall", "balanced", *GROUPS)}
        for reading in READINGS:
            loma = found[f"loma_{reading}"]
            row |= {f"loma_{reading}_{name}": loma[name] for name in (*GROUPS, "spread")}
        return row | {"classes": found["classes"]}

    def way(self, run: HeadRun, path: float) -> list[dict]:
        """Scores after every epoch, against the part of the first-order path that is behind."""
        rates = np.cumsum([cosine_lr(1.0, epoch, EPOCHS) for epoch in range(EPOCHS)])
        rows = [{"walked": 0.0} | self.scores(run)]
        for epoch in range(EPOCHS):
            run.run_epoch(epoch, [])
            rows.append({"walked": path * rates[epoch] / rates[-1]} | self.scores(run))
        return rows

    def trained(self, method: Method, **options: float) -> dict:
        """Scores after all epochs."""
        run = self.head(method, **options)
        for epoch in range(run.plan.epochs):
            run.run_epoch(epoch, [])
        return self.scores(run)


def _times_100(value: float | None) -> float:
    return np.nan if value is None else 100 * value


def draw_ways(study: Study, delta: float) -> tuple[Figure, list[dict]]:
    """Accuracy and LoMa along the way: LOS, the control, and LOS under class-balanced sampling."""
    los, path = METHODS["los"], LONG
    titles = {"los": "LOS", "ce": "control: cross-entropy", "balanced": "LOS, class-balanced sampling"}
    runs = {
        "los": study.head(los, label_smooth=delta, path=path),
        "ce": study.head(METHODS["ce"], path=path),
        "balanced": study.head(replace(los, sampler="balanced"), label_smooth=delta, path=path),
    }
    figure = Figure((7.2, 5), dpi=150, layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    rows = []
    for column, (name, run) in enumerate(runs.items()):
        way = study.way(run, path)
        rows += [{"study": "way", "head": name} | _flat(row) for row in way]
        _lines(axes[0, column], way, {part: part for part in COLOURS})
        _lines(axes[1, column], way, {part: f"loma_per_sample_{part}" for part in GROUPS})
        axes[0, column].set_title(titles[name], fontsize=9)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("LoMa (per_sample)")
    axes[0, 1].legend(fontsize=8, frameon=False, loc="center", bbox_to_anchor=(0.5, 0.3))
    figure.supxlabel("first-order logit drop of the most frequent class so far (path)", fontsize=9)
    return figure, rows


def _lines(axes: Axes, way: Sequence[dict], columns: dict[str, str]) -> None:
    marks = {"overall": "o", "many": "s", "medium": "^", "few": "D"}
    for part, column in columns.items():
        style = {"color": COLOURS[part], "marker": marks[part], "markersize": 3, "markevery": 4}
        axes.plot([row["walked"] for row in way], [row[column] for row in way], label=part, **style)
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.tick_params(labelsize=8)


def sampler_rows(study: Study, delta: float) -> list[dict]:
    """LOS under natural and under class-balanced sampling, at multiples of the learning rate of path 5."""
    los, rows = METHODS["los"], []
    for sampler in ("natural", "balanced"):
        for factor in FACTORS:
            found = study.trained(replace(los, sampler=sampler), label_smooth=delta, path=5.0 * factor)
            rows.append({"study": "sampler", "head": sampler, "strength": factor} | _flat(found))
    return rows


def pack_rows(delta: float) -> list[dict]:
    """LOS and its closed first step on every released pack, with the LoMa of the halves in training.

    `train_frequent` and `train_rare` are the mean LoMa (per_sample) over the training images of the more
    and of the less frequent half of the classes.
    """
    los, step, rows = METHODS["los"], METHODS["los_step"], []
    for name in PACKS:
        study = Study(RELEASED / "cifar100_lt" / f"{name}_features.safetensors")
        frozen = study.frozen
        rank = np.argsort([-count for count in frozen.train_counts], kind="stable")
        halves = np.array_split(rank, 2)
        heads = [("stage1", 0.0, study.head(METHODS["stage1"], epochs=0))]
        heads += [("los", path, study.head(los, label_smooth=delta, path=path)) for path in FAR_PATHS]
        heads += [("los_step", path, study.head(step, epochs=0, path=path)) for path in FAR_PATHS]
        for head, path, run in heads:
            for epoch in range(run.plan.epochs):
                run.run_epoch(epoch, [])
            with torch.no_grad():
                logits = run.head(frozen.train.plain().float())
            loma = logits_magnitude(logits, frozen.train.labels.long()).numpy()
            row = {"study": f"pack {name}", "head": head, "path": path} | _flat(study.scores(run))
            row |= {"train_frequent": loma[halves[0]].mean(), "train_rare": loma[halves[1]].mean()}
            rows.append(row | (stationarity(frozen, delta) if head == "stage1" else {}))
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
    classes = study.frozen.num_classes
    deltas = [label_smooth_for_gap(gap, classes) for gap in GAPS]
    table = np.full((len(GAPS), len(PATHS)), np.nan)
    rows = []
    for i, delta in enumerate(deltas):
        for j, path in enumerate(PATHS):
            row = study.trained(METHODS["los"], label_smooth=delta, path=path)
            table[i, j] = row["balanced"]
            rows.append({"study": "map", "label_smooth": delta, "path": path} | _flat(row))
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
    axes.set(
        xlabel="path: first-order logit drop of the most frequent class", ylabel="logit gap g of the label"
    )
    figure.colorbar(image, label="validation accuracy, classes alike (%)")
    return figure, rows


def draw_alternatives(study: Study, delta: float) -> tuple[Figure, list[dict]]:
    """What frequent classes pay for what rare ones gain, by method, each along its own strength."""
    heads = {
        "los": [(path, study.trained(METHODS["los"], label_smooth=delta, path=path)) for path in PATHS],
        "los_step": [(path, study.trained(METHODS["los_step"], epochs=0, path=path)) for path in PATHS],
        "la": [(tau, study.trained(METHODS["la"], epochs=0, tau=tau)) for tau in TAUS],
        "tau_norm": [(tau, study.trained(METHODS["tau_norm"], epochs=0, tau=tau)) for tau in TAUS],
    }
    figure = Figure((7.2, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = []
    for name, found in heads.items():
        rows += [{"study": "alternatives", "head": name, "strength": s} | _flat(row) for s, row in found]
        style = {"color": CURVES[name], "linestyle": DASHES[name], "marker": MARKS[name], "markersize": 3.5}
        left.plot([row["many"] for _, row in found], [row["few"] for _, row in found], label=name, **style)
        right.plot([row["many"] for _, row in found], [row["balanced"] for _, row in found], **style)
    for axes in (left, right):
        tidy(axes)
        axes.set_xlabel("many-shot accuracy (%)")
    left.set_ylabel("few-shot accuracy (%)")
    right.set_ylabel("all classes alike (%)")
    left.legend(fontsize=8, frameon=False)
    return figure, rows


def draw_readings(study: Study, delta: float, path: float) -> tuple[Figure, list[dict]]:
    """LoMa of each class in both readings, before and after."""
    heads = {
        "stage 1": study.scores(study.head(METHODS["stage1"], epochs=0)),
        "los": study.trained(METHODS["los"], label_smooth=delta, path=path),
        "la": study.trained(METHODS["la"], epochs=0, tau=1.0),
    }
    rank = np.argsort([-count for count in study.frozen.class_counts], kind="stable")
    window = max(1, len(rank) // 10)
    figure = Figure((7.2, 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = {"stage 1": ("#000000", ":"), "los": (CURVES["los"], "-"), "la": (CURVES["la"], "-.")}
    for axes, reading in zip(panels, READINGS, strict=True):
        for name, row in heads.items():
            values = pd.Series(row["classes"][f"loma_{reading}"], dtype=float).iloc[rank]
            smooth = values.rolling(window, center=True, min_periods=1).mean()
            colour, dashes = styles[name]
            axes.plot(range(1, len(rank) + 1), smooth, color=colour, linestyle=dashes, label=name)
        axes.set_title(f"LoMa, {reading}", fontsize=9)
        axes.set_xlabel("class, most frequent first")
        tidy(axes)
    panels[0].legend(fontsize=8, frameon=False)
    return figure, [{"study": "readings", "head": name} | _flat(row) for name, row in heads.items()]


def _flat(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "classes"}


def printed(rows: Iterable[dict]) -> str:
    """The figures that docs/los.md quotes."""
    table = pd.DataFrame(rows)
    columns = ["study", "head", "label_smooth", "path", "strength", "walked", "balanced", *GROUPS]
    return table[columns].round(2).to_string(index=False, na_rep="-")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m docs.los_study", description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, default=PACK, help="pack with validation images")
    parser.add_argument("--out", type=Path, default=Path("docs/los"), help="folder of the pictures")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    study = Study(given.features)
    delta = study.config.label_smooth
    gap = logit_gap(delta, study.frozen.num_classes)
    print(f"{given.features}: δ = {delta:g}, logit gap {gap:.3g}, {EPOCHS} epochs")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = sampler_rows(study, delta) + pack_rows(delta)
    for name, (figure, found) in {
        "way": draw_ways(study, delta),
        "alternatives": draw_alternatives(study, delta),
        "readings": draw_readings(study, delta, path=5.0),
        "map": draw_map(study),
    }.items():
        figure.savefig(given.out / f"{name}.png")
        rows += found
    pd.DataFrame(rows).to_csv(given.out / "los_study.csv", index=False, float_format="%.4f")
    print(printed(rows))


if __name__ == "__main__":
    exit_cleanly(main)
