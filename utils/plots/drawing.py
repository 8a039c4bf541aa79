"""Pictures of a run folder, of either stage or of evaluate, drawn from its csv files into RUN_FOLDER/plots/.

    python -m utils.plots RUN_FOLDER [--methods los,ce,crt]

Accuracies are drawn in percent.
"""

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from datasets.long_tail import SHOTS, shot_groups
from losses import logit_gap
from utils.base.errors import say
from utils.base.files import write_atomically
from utils.metrics.accuracy import GROUPS, PARTS
from utils.plots.tables import CONTROLS, SCORES, RunTables, read_run
from utils.run.folder import check_writable
from utils.settings.parse import Parser

DPI, SMALL, GREY = 150, 8.5, "#666666"
MAX_PANELS = 4
NAMED = 40  # classes: up to so many have a bar and a name each, more a line
CONFUSED = 20  # pairs
# Okabe-Ito colours; the dashes and markers are for readers in grey
LINES = [
    dict(zip(("color", "linestyle", "marker", "markersize"), (*style.split(), 4), strict=True))
    for style in ("#000000 : s", "#D55E00 -- ^", "#0072B2 - o", "#009E73 -. D", "#CC79A7 -- v", "#E69F00 - P")
]
# of methods without a line over the classes, in dashes as well
OTHERS = ("#666666", "#56B4E9", "#8C564B", "#7A8B00", "#7B61A8", "#B8860B")
SCORE_STYLES = ((0, "-"), (2, "--"), (3, "-."), (1, ":"))
SCORE_LINES = {
    name: LINES[i] | {"linestyle": dashes} for name, (i, dashes) in zip(SCORES, SCORE_STYLES, strict=True)
}


def draw(folder: Path, methods: Sequence[str] | None = None) -> list[Path]:
    """Write the pictures that the csv files of a run allow to `folder`/plots; returns their paths.

    `methods` names those with a line over the classes; default: stage1, ce, los and the best others. Where
    all their settings are too many lines, a method's first setting stands for it.
    """
    run = read_run(Path(folder), methods)
    check_writable(Path(folder) / "plots")
    images = {}
    for name, picture in PICTURES.items():
        if figure := picture(run):
            images[Path(folder) / "plots" / f"{name}.png"] = image = io.BytesIO()
            figure.savefig(image, format="png")
    for path, image in images.items():
        write_atomically(path, lambda handle, image=image: handle.write(image.getvalue()))
    return list(images)


def _styles(run: RunTables) -> dict[str, dict]:
    """Label -> the style of a head's line over the classes, the same in every picture.

    The controls have theirs in every run as well.
    """
    own = dict(zip(CONTROLS, LINES, strict=False))
    there = {*run.lines["method"]}
    others = LINES[len(own) :] + [style for name, style in own.items() if name not in there]
    return {line.label: own.pop(line.method, None) or others.pop(0) for line in run.lines.itertuples()}


def _figure(
    heads: pd.DataFrame, notes: Sequence[str] = (), shape: tuple = (1, 1), sharey: bool = True
) -> tuple[Figure, list]:
    """An empty picture and its panels, with a caption that says how the figures of `heads` came about."""
    figure = Figure((7.2, 2 + 2 * shape[0]), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(*shape, sharey=sharey, squeeze=False).flat)
    for each in axes:
        each.tick_params(labelsize=SMALL)
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#e4e4e4", linewidth=0.6)
        each.set_axisbelow(True)
    seeds = " to ".join(f"{n:g}" for n in sorted({heads["n"].min(), heads["n"].max()}))
    chosen = ", ".join(sorted(set(heads["selected_on"]) - {""})) or "unknown"
    caption = textwrap.fill("  ·  ".join([f"selected on: {chosen}", f"seeds: {seeds}", *notes]), 115)
    figure.supxlabel(caption, fontsize=SMALL - 0.5, color=GREY, x=0.01, horizontalalignment="left")
    return figure, axes


def _legend(figure: Figure, title: str, handles: Sequence[Artist]) -> None:
    """The picture's title and, below it, its legend in as few rows as fit."""
    lengths = [len(handle.get_label()) + 6 for handle in handles]
    fitting = (n for n in range(len(handles), 1, -1) if sum(map(max, np.array_split(lengths, n))) < 100)
    style = {"ncols": next(fitting, 1), "fontsize": SMALL, "title_fontsize": 11, "frameon": False}
    figure.legend(handles=handles, title=title, loc="outside upper center", **style)


def _over_classes(column: str, title: str, unit: str, run: RunTables) -> Figure | None:
    """A figure of each class, most frequent class first, mean over seeds."""
    classes = run.classes.drop_duplicates("class").set_index("class").sort_index()
    counts = classes["train_images"].sort_values(ascending=False, kind="stable")
    window = max(5, len(counts) // 10 | 1) if len(counts) > NAMED else 1
    shown = run.classes[run.classes["method"].isin(run.lines["method"])]
    values = shown.groupby(["class", "method", "setting"])[column].mean().unstack([1, 2])
    values = values.loc[counts.index].rolling(window, center=True, min_periods=1).mean()
    values = values.dropna(axis=1, how="all")
    lines = [line for line in run.lines.itertuples() if (line.method, line.setting) in values]
    if not lines:
        return None
    figure, [axes] = _figure(run.lines)
    ranks, stride, width = np.arange(1, len(counts) + 1), max(1, len(counts) // 10), 0.8 / len(lines)
    for i, line in enumerate(lines):
        style, own = _styles(run)[line.label] | {"label": line.label}, values[line.method, line.setting]
        if len(counts) > NAMED:
            axes.plot(ranks, own, **style, markevery=(i * stride // len(lines), stride))
        else:
            places = ranks + (i - (len(lines) - 1) / 2) * width
            axes.bar(places, own, width, color=style["color"], label=line.label)
    _legend(figure, f"{title} of each class", axes.get_legend_handles_labels()[0])
    _mark_groups(axes, counts.to_numpy(), classes.loc[counts.index].get("group"))
    smoothed = f", mean of {window} neighbours" if window > 1 else ""
    axes.set(xlabel="class, by rank in training images", ylabel=unit.format(PARTS[run.judged]) + smoothed)
    if len(counts) <= NAMED:
        names = classes.get("name", {k: f"{k:.0f}" for k in counts.index})
        texts = [f"{names[k][:16]} ({count:.0f})" for k, count in counts.items()]
        turned = {"rotation": 90, "va": "center"} if len(counts) > 12 else {"rotation": 35}
        axes.set_xticks(ranks, texts, fontsize=SMALL - 0.5, rotation_mode="anchor", ha="right", **turned)
        axes.set_xlabel("class (training images)")
    return figure


def _mark_groups(axes: Axes, counts: np.ndarray, groups: pd.Series | None) -> None:
    """Boundaries and names of the shot groups over classes in rank order; slim groups go without a name.

    `groups` are those of the run; where they are not the usual ones, or slim, they go without their limits.
    """
    low, high = SHOTS
    bounds = (f"> {high} images", f"{low} to {high}", f"< {low}")
    usual = shot_groups(counts)
    own = usual if groups is None else {name: (groups == name).to_numpy() for name in usual}
    room = 0.22 if all((own[name] == usual[name]).all() for name in usual) else 1.0
    start = 0.5
    for (name, mask), bound in zip(own.items(), bounds, strict=True):
        share, end = mask.mean(), start + mask.sum()
        if start > 0.5 and share:
            axes.axvline(start, color=GREY, linewidth=0.8)
        if share > 0.06:
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            text = f"{name} ({bound})" if share > room else name
            axes.text((start + end) / 2, 1.01, text, color=GREY, fontsize=SMALL, **place)
        start = end
    axes.set_xlim(0.5, start)


def _path(run: RunTables) -> Figure | None:
    """Accuracies against steps, mean over seeds: los solid, ce dashed, the first setting of each."""
    dashes = {"los": "-", "ce": "--"}
    heads = run.heads[run.heads["method"].isin(dashes)].drop_duplicates("method")
    scored = [part for part in PARTS if run.epochs.get(f"{part}_overall", pd.Series()).count()]
    if not scored:
        return None
    columns = {f"{scored[0]}_{name}": name for name in SCORES}
    rows = run.epochs.merge(heads[["method", "setting"]]).rename(columns=columns)
    rows = rows.reindex(columns=["method", "step", *SCORES]).dropna(subset="overall")
    ways = {method: way.groupby("step").mean(numeric_only=True) for method, way in rows.groupby("method")}
    if max(map(len, ways.values()), default=0) < 2:
        return None
    figure, [axes] = _figure(heads)
    names = [name for name in SCORES if rows[name].count()]
    for (method, way), name in product(ways.items(), names):
        style = SCORE_LINES[name] | {"linestyle": dashes[method], "markevery": max(1, len(way) // 10)}
        axes.plot(way.index, way[name], **style)
    handles = [Line2D([], [], **SCORE_LINES[name] | {"linestyle": ""}, label=name) for name in names]
    handles += [Line2D([], [], color=GREY, linestyle=dashes[m], label=m) for m in dashes if m in ways]
    _legend(figure, "Accuracy along the re-training", handles)
    axes.set(xlabel="steps", ylabel=f"{PARTS[scored[0]]} accuracy (%)")
    return figure


def _sweep(run: RunTables) -> Figure | None:
    """Accuracies against the values of each swept key, a panel each."""
    swept = list(_swept(run.heads))
    if not swept:
        return None
    shown = swept[:MAX_PANELS]
    shape = (len(shown) + 1) // 2, min(2, len(shown))
    notes = [f"{len(shown)} of {len(swept)} sweeps"] if len(swept) > len(shown) else []
    figure, axes = _figure(pd.concat([heads for _, _, heads in shown]), notes, shape)
    handles = {}
    for each, (title, key, heads) in zip(axes, shown, strict=False):
        each.set_title(title, fontsize=10)
        places = _value_axis(each, key, heads["value"], run.classes["class"].nunique(), 16 // shape[1])
        for name in (name for name in SCORES if heads[name].count()):
            style = SCORE_LINES[name] | {"label": name, "capsize": 2.5}
            handles[name] = each.errorbar(places, heads[name], heads[f"{name}_std"], **style)
    for each in axes[len(shown) :]:
        each.set_axis_off()
    figure.supylabel(f"{PARTS[run.judged]} accuracy (%)", fontsize=10)
    _legend(figure, "Accuracy against the swept settings", list(handles.values()))
    return figure


def _swept(heads: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, key and heads of each sweep: for a key, the most values that share the rest of the setting."""
    for _, rows in heads.groupby("method", sort=False):
        if len(rows) < 2:
            continue
        for key in dict.fromkeys(rows["label"].str.findall(r"(\S+?)=").explode().dropna()):
            pattern = rf" {re.escape(key)}=(\S+)"
            rest = rows["label"].str.replace(pattern, "", regex=True)
            value = pd.to_numeric(rows["label"].str.extract(pattern)[0], errors="coerce")
            known = rows.assign(value=value, rest=rest)[value.abs() < np.inf]
            sizes = known.groupby("rest", sort=False)["value"].nunique()
            if sizes.max() > 1:
                yield sizes.idxmax(), key, known[known["rest"] == sizes.idxmax()].sort_values("value")


def _value_axis(axes: Axes, key: str, values: pd.Series, num_classes: int, labels: int) -> Sequence[float]:
    """Set up the axis of a swept key; returns where its values lie."""
    axes.set_xlabel(key)
    if key == "label_smooth":  # evenly spaced, they crowd near 1
        texts = [f"{value:g}\n{logit_gap(value, num_classes):.2f}".replace("inf", "∞") for value in values]
        stride = -(-len(texts) // labels)
        axes.set_xticks(range(0, len(texts), stride), texts[::stride])
        axes.set_xlabel("label_smooth δ (below it: logit gap g)")
        return range(len(texts))
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")
    return values


def _balance(run: RunTables) -> Figure | None:
    """Overall accuracy against the spread of LoMa over the classes, a dot a head."""
    heads = run.heads.dropna(subset="loma_spread")
    if heads.empty:
        return None
    keys = heads.drop_duplicates("method", keep="last")["label"].str.replace(r"=\S+", "", regex=True)
    named = "; ".join(text for text in keys if " " in text)
    figure, [axes] = _figure(heads, [f"dots: {named}"] if named else [])
    for head in heads.itertuples():
        style = _styles(run).get(head.label, {"color": GREY, "marker": "o"}) | {"markersize": 6}
        axes.plot(head.loma_spread, head.overall, **style)
    axes.set_xlabel("LoMa: standard deviation over classes")
    axes.set_ylabel(f"overall {PARTS[run.judged]} accuracy (%)")
    _name_dots(
        axes, "Balance of the logits and accuracy", heads["label"].str.replace(r"\S+=", "", regex=True)
    )
    return figure


def _trade(run: RunTables) -> Figure | None:
    """Accuracy of frequent classes against that of rare ones: a curve for a swept strength, else a dot.

    Settings that cost a method half of its many-shot accuracy are left out: they would fill the picture.
    """
    heads, part = run.heads, run.judged
    if not run.tried.empty:
        heads, part = run.tried, run.heads["selected_on"].iloc[0]
    heads = heads.dropna(subset=["many", "few"])
    curves = {method: (None, rows.head(1)) for method, rows in heads.groupby("method", sort=False)}
    if len(curves) < 2:
        return None
    for _, key, rows in _swept(heads):
        method = rows["method"].iloc[0]
        curves[method] = max(curves[method], (key.removeprefix("finetune_"), rows), key=lambda c: len(c[1]))
    swept = "; ".join(f"{method} {key}" for method, (key, _) in curves.items() if key)
    figure, [axes] = _figure(run.heads, [f"curves: {swept}"] if swept else [])
    colours = run.lines.drop_duplicates("method").set_index("method")["label"].map(_styles(run))
    others = cycle(product(("-", "--", ":", "-."), OTHERS))
    for method, (_, rows) in curves.items():
        style = colours.get(method) or dict(zip(("linestyle", "color"), next(others), strict=True))
        style = {"marker": "."} | style | {"markersize": 4, "linewidth": 1}
        shown = rows[rows["many"] >= rows["many"].max() / 2]
        axes.plot(shown["many"], shown["few"], **style)
    axes.set(xlabel=f"many: {PARTS[part]} accuracy (%)", ylabel=f"few: {PARTS[part]} accuracy (%)")
    _name_dots(axes, "Many-shot against few-shot accuracy", curves)
    return figure


def _confusion(run: RunTables) -> Figure | None:
    """What the published head takes for what: shares of the shot groups, and the pairs it confuses most."""
    if run.pairs.empty:
        return None
    pairs, names = run.pairs, list(GROUPS)
    head = run.heads.merge(pairs[["method", "setting"]].head(1))
    what = f"shares of the {PARTS[run.judged]} images of a row"
    figure, (left, right) = _figure(head, [what], (1, 2), sharey=False)
    figure.suptitle(f"Confusion of {pairs['method'].iloc[0]}", fontsize=11)
    blocks = pairs.pivot_table("images", "group", "predicted_group", "sum").reindex(names, columns=names)
    shares = 100 * blocks.div(pairs.groupby("group")["images"].sum().reindex(names), axis=0)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        style = {"color": "white" if share > 60 else "black", "fontsize": SMALL, "ha": "center"}
        left.text(column, row, "-" if np.isnan(share) else f"{share:.1f} %", **style)
    left.grid(visible=False)
    left.set(xlabel="predicted", ylabel="class", xticks=range(3), yticks=range(3))
    left.set(xticklabels=names, yticklabels=names)
    pairs = pairs.assign(share=100 * pairs["images"] / pairs.groupby("class")["images"].transform("sum"))
    wrong = pairs[(pairs["predicted"] >= 0) & (pairs["predicted"] != pairs["class"])]
    wrong = wrong.sort_values("share", ascending=False, kind="stable").head(CONFUSED)[::-1]
    right.barh(range(len(wrong)), wrong["share"], color=LINES[2]["color"])
    texts = wrong["name"].str[:16] + " > " + wrong["predicted_name"].str[:16]
    right.set_yticks(range(len(wrong)), texts, fontsize=SMALL - 0.5)
    right.set(xlabel="% of the class", title=f"the {len(wrong)} most confused pairs")
    right.title.set_fontsize(10)
    return figure


def _name_dots(axes: Axes, title: str, labels: Iterable[str]) -> None:
    """Write each label at the nearest place that is free around its dot, or the middle one of a curve."""
    axes.figure.suptitle(title, fontsize=11)
    axes.margins(0.1)
    axes.figure.draw_without_rendering()  # settles the layout, which takes as long as to draw
    axes.figure.set_layout_engine("none")
    lines, frame = axes.get_lines(), axes.get_window_extent()
    points = [line.get_xydata()[len(line.get_xydata()) // 2] for line in lines]
    taken = [Bbox([place - 8, place + 8]) for place in axes.transData.transform(points)]
    sides = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])
    ways = [reach * side for reach in (10, 20, 34, 52) for side in sides]
    for drawn, point, label in zip(lines, points, labels, strict=True):
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
        style = {"fontsize": SMALL - 1, "verticalalignment": "bottom", "arrowprops": line}
        style |= {} if drawn.get_color() == GREY else {"color": drawn.get_color()}
        note = axes.annotate(label, point, (0, 0), textcoords="offset pixels", in_layout=False, **style)
        size = Text.get_window_extent(note).size
        corners = [way + (np.sign(way) - 1) / 2 * size for way in ways]
        x, y = axes.transData.transform(point)
        boxes = [Bbox([corner, corner + size]).translated(x, y) for corner in corners]
        costs = [b.count_overlaps(taken) + 99 * (not frame.x0 < b.x0 < b.x1 < frame.x1) for b in boxes]
        note.set_position(corners[np.argmin(costs)])
        taken.append(boxes[np.argmin(costs)])


PICTURES = {
    "accuracy": partial(_over_classes, "accuracy", "Accuracy", "{} accuracy (%)"),
    "loma": partial(_over_classes, "loma_per_sample", "Logits magnitude", "LoMa"),
    "rsd": partial(_over_classes, "rsd_per_sample", "Regularised standard deviation", "RSD"),
    "path": _path,
    "sweep": _sweep,
    "balance": _balance,
    "trade_off": _trade,
    "confusion": _confusion,
}


def main(argv: Sequence[str] | None = None) -> None:
    summary = __doc__.splitlines()[0]
    parser = Parser(prog="python -m utils.plots", description=summary, allow_abbrev=False)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--methods", help="those with a line over the classes, separated by commas")
    given = parser.parse_args(argv)
    methods = None if given.methods is None else given.methods.replace(",", " ").split()
    say(*draw(given.run_folder, methods))
