"""The pictures of docs/ablations.md, drawn from the csv files alone."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.patches import Rectangle

from benchmarks.studies.tables import EVEN, Tables, of_widest, unevenness
from utils.base.files import write_atomically
from utils.metrics.accuracy import GROUPS

DPI, SMALL = 110, 8
# Okabe-Ito; the dashes and markers are for readers in grey
COLOURS = {"overall": "#000000", "many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}
MARKS = {"overall": "o", "many": "s", "medium": "^", "few": "D"}
SETTINGS = {"preset": ("#0072B2", "-", "o"), "validation": ("#D55E00", "--", "s")}
ENDLESS = 14.0  # where the axis of gaps has its ∞


def draw(tables: Tables, folder: Path) -> list[Path]:
    """Write every picture to `folder`; returns their paths."""
    paths = []
    for name, picture in PICTURES.items():
        image = io.BytesIO()
        picture(tables).savefig(image, format="png")
        paths.append(folder / f"{name}.png")
        write_atomically(paths[-1], lambda handle, image=image: handle.write(image.getvalue()))
    return paths


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.tick_params(labelsize=SMALL)


def _panels(names: Iterable[str], height: float, **share: object) -> tuple[Figure, list[Axes]]:
    """A panel a name, two in a row."""
    names = list(names)
    rows = -(-len(names) // 2)
    figure = Figure((7.2, 0.7 + height * rows), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, min(2, len(names)), squeeze=False, **share).flat)
    for each, name in zip(axes, names, strict=False):
        each.set_title(name, fontsize=SMALL + 1)
        each.tick_params(labelsize=SMALL)
    for each in axes[len(names) :]:
        each.set_axis_off()
    return figure, axes


def _legend(figure: Figure, axes: Axes, place: str, ncols: int) -> None:
    """The legend of a panel, for all of them."""
    style = {"ncols": ncols, "fontsize": SMALL, "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), loc=f"outside {place} center", **style)


def delta(tables: Tables) -> Figure:
    """Accuracy against the logit gap, δ named above; validation full, test dashed."""
    sweep = tables["heads"][tables["heads"]["study"] == "delta"]
    packs = list(tables["packs"]["pack"])
    figure, panels = _panels(packs, 2.6, sharey=True)
    for axes, pack in zip(panels, packs, strict=False):
        rows = sweep[sweep["pack"] == pack].sort_values("logit_gap")
        places = rows["logit_gap"].replace(np.inf, ENDLESS)
        tidy(axes)
        for part, mark in MARKS.items():
            name, label = ("balanced", "all classes") if part == "overall" else (part, part)
            style = {"color": COLOURS[part], "marker": mark, "markersize": 3.5}
            axes.plot(places, rows[f"val_{name}"], label=label, **style)
            axes.plot(places, rows[f"test_{name}"], color=COLOURS[part], linestyle="--", linewidth=0.9)
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.3, 1, 3, ENDLESS], ["0.1", "0.3", "1", "3", "∞"])
        axes.minorticks_off()
        top = axes.secondary_xaxis("top")
        top.set_xscale("log")
        top.set_xticks(places, [f"{value:g}" for value in rows["label_smooth"]], rotation=90)
        top.minorticks_off()
        top.tick_params(labelsize=SMALL - 1)
    panels[0].plot([], [], color="#666666", linestyle="--", linewidth=0.9, label="test")
    _legend(figure, panels[0], "upper", ncols=5)
    figure.supxlabel("logit gap g of the label; above: δ", fontsize=SMALL + 1)
    figure.supylabel("accuracy (%), full lines: validation", fontsize=SMALL + 1)
    return figure


def grid(tables: Tables) -> Figure:
    """Validation accuracy over learning rate and epochs."""
    heads = tables["heads"][tables["heads"]["study"] == "grid"]
    packs = list(tables["packs"]["pack"])
    figure, panels = _panels(packs, 1.9)
    for axes, pack in zip(panels, packs, strict=False):
        rows = heads[heads["pack"] == pack]
        table = rows.pivot(index="epochs", columns="lr", values="val_balanced")
        axes.imshow(table, cmap="cividis", aspect="auto", origin="lower")
        middle, best = (table.min(axis=None) + table.max(axis=None)) / 2, table.max(axis=None)
        for (i, epochs), (j, rate) in ((a, b) for a in enumerate(table.index) for b in enumerate(table)):
            value = table.iloc[i, j]
            colour = "black" if value > middle else "white"
            text = f"{value:.1f}" + (" *" if value == best else "")
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=SMALL)
            if (rate, epochs) == (5e-4, 20):
                frame = {"fill": False, "edgecolor": "#D55E00", "linewidth": 2.5}
                axes.add_patch(Rectangle((j - 0.49, i - 0.47), 0.98, 0.94, **frame))
        axes.set_xticks(range(len(table.columns)), [f"{rate:g}" for rate in table])
        axes.set_yticks(range(len(table)), table.index)
    note = "learning rate    (frame: the published pair; *: the best on validation)"
    figure.supxlabel(note, fontsize=SMALL + 1)
    figure.supylabel("epochs", fontsize=SMALL + 1)
    return figure


def gain(tables: Tables) -> Figure:
    """What LOS gains on test over the control and over stage 1, against the imbalance ratio."""
    figure = Figure((7.2, 3.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    networks = list(dict.fromkeys(tables["gains"]["network"]))
    for axes, (other, title) in zip(
        panels, (("ce", "over cross-entropy"), ("stage1", "over stage 1")), strict=True
    ):
        tidy(axes)
        axes.axhline(0, color="#666666", linewidth=0.8)
        axes.set_title(title, fontsize=SMALL + 1)
        gains = tables["gains"].sort_values("imb_ratio")
        for (network, chosen_by), rows in gains.groupby(["network", "chosen_by"], sort=False):
            colour, dashes, mark = SETTINGS[chosen_by]
            style = {"color": colour, "linestyle": dashes, "marker": mark, "markersize": 6}
            if networks.index(network):
                style |= {"markerfacecolor": "white"}
            label = f"{network}, {'by the preset' if chosen_by == 'preset' else 'chosen on validation'}"
            axes.plot(rows["imb_ratio"], rows[f"test_minus_{other}"], label=label, **style)
        ratios = sorted(tables["gains"]["imb_ratio"].dropna().unique())
        axes.set_xscale("log")
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axes.minorticks_off()
        axes.margins(x=0.15)
        axes.set_xlabel("imbalance ratio", fontsize=SMALL + 1)
    panels[0].set_ylabel("points of test accuracy", fontsize=SMALL + 1)
    _legend(figure, panels[0], "upper", ncols=2)
    return figure


def balance(tables: Tables) -> Figure:
    """LoMa and RSD of every method by group, the most accurate method on top."""
    rows = of_widest(tables).dropna(subset="overall").sort_values("overall", kind="stable")
    figure = Figure((7.2, 1.3 + 0.22 * len(rows)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("loma", "rsd"), strict=True):
        tidy(axes)
        axes.set_xlabel({"loma": "LoMa", "rsd": "RSD"}[metric], fontsize=SMALL + 1)
        columns = [f"{metric}_{name}" for name in GROUPS]
        places = np.arange(len(rows))
        axes.hlines(
            places, rows[columns].min(axis=1), rows[columns].max(axis=1), color="#bbbbbb", linewidth=1
        )
        for name, column in zip(GROUPS, columns, strict=True):
            style = {"color": COLOURS[name], "marker": MARKS[name], "markersize": 4.5, "linestyle": ""}
            axes.plot(rows[column], places, label=name, **style)
    names = [f"{row.method}  {row.overall:.1f} %" for row in rows.itertuples()]
    panels[0].set_yticks(range(len(rows)), names)
    figure.suptitle(f"{rows['pack'].iloc[0]}, test images", fontsize=SMALL + 1)
    _legend(figure, panels[0], "lower", ncols=3)
    return figure


def size(tables: Tables) -> Figure:
    """Accuracy against the size of LoMa over the heads of LOS: nearly even ones filled, the others open."""
    packs = list(tables["packs"]["pack"])
    figure, panels = _panels(packs, 2.1)
    for axes, pack in zip(panels, packs, strict=False):
        own = tables["heads"][tables["heads"]["pack"] == pack]
        rows = own[own["label_smooth"] > 0].drop_duplicates("setting")  # without the control
        even = unevenness(rows) <= EVEN
        first = own[own["study"] == "stage1"]
        blue = {"color": "#0072B2", "marker": "o", "markersize": 5}
        tidy(axes)
        for some, style in (
            (rows[~even], blue | {"label": f"less even than {EVEN:g}", "markerfacecolor": "white"}),
            (rows[even], blue | {"label": "nearly even"}),
            (first, {"label": "stage 1", "color": "#000000", "marker": "x"}),
        ):
            axes.plot(some["test_loma_per_sample_all"], some["test_balanced"], linestyle="", **style)
    _legend(figure, panels[0], "upper", ncols=3)
    figure.supxlabel("LoMa, mean over classes", fontsize=SMALL + 1)
    figure.supylabel("test accuracy (%)", fontsize=SMALL + 1)
    return figure


PICTURES = {picture.__name__: picture for picture in (delta, grid, gain, balance, size)}
