"""Pictures of a run folder: which appear, what they show, gaps in the csv files, refusals."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from datasets.long_tail import shot_groups
from losses import logit_gap
from tests.helpers import call, files_below, refusal
from utils.metrics.percent import in_percent
from utils.plots import drawing
from utils.plots import tables as run_tables
from utils.plots.tables import read_run

pytestmark = pytest.mark.usefixtures("every_picture")
COUNTS = [150, 500, 300, 90, 60, 30, 5, 15, 10, 8]
LOS = [f"finetune_lr=0.0001 label_smooth={delta}" for delta in ("0.98", "0", "0.5", "0.9")]
HEADS = {"crt": ["finetune_lr=0.1"], "los": LOS, "stage1": [""], "ce": ["finetune_lr=0.0001"], "ncm": [""]}


def tables(heads: dict = HEADS, counts: list[int] = COUNTS, seeds: int = 2) -> dict[str, pd.DataFrame]:
    """The csv files of a made-up run, by name."""
    draws = np.random.default_rng(0)
    table, classes, epochs = [], [], []
    for head in ({"method": name, "setting": text} for name, texts in heads.items() for text in texts):
        figures = {name: draws.random() for name in (*run_tables.SCORES, "balanced", "loma_spread")}
        spreads = {f"{name}_std": 0.01 for name in run_tables.SCORES}
        table.append(head | {"n": seeds, "selected_on": "val", "failed": None} | figures | spreads)
        for seed in range(seeds):
            for label, count in enumerate(counts):
                figures = {name: draws.random() for name in run_tables.PER_CLASS[2:]}
                classes.append(head | {"seed": seed, "class": label, "train_images": count} | figures)
            for epoch in (0,) if head["method"] in ("stage1", "ncm") else (1, 2, 3):
                figures = {f"val_{name}": draws.random() for name in run_tables.SCORES}
                epochs.append(head | {"seed": seed, "epoch": epoch, "step": 10 * epoch} | figures)
    table.sort(key=lambda row: (row["method"] != "stage1", -row["balanced"]))  # as a run writes it
    pairs = [(k, j) for k in range(len(counts)) for j in range(len(counts))]
    columns = {"class": [k for k, _ in pairs], "predicted": [j for _, j in pairs]}
    group = pd.Series({k: name for name, mask in shot_groups(counts).items() for k in np.flatnonzero(mask)})
    confusion = {
        f"{end}{part}": [f"{part} {k}" if part == "name" else group[k] for k in columns[column]]
        for end, column in (("", "class"), ("predicted_", "predicted"))
        for part in ("name", "group")
    }
    confusion |= columns | {
        "method": "los",
        "setting": heads.get("los", [""])[0],
        "images": [1 + k + 2 * j for k, j in pairs],
    }
    files = {"table": table, "per_class": classes, "metrics": epochs, "confusion": confusion}
    return {name: pd.DataFrame(rows) for name, rows in files.items()}


def write(folder: Path, files: dict[str, pd.DataFrame]) -> Path:
    for name, frame in files.items():
        in_percent(frame).to_csv(folder / f"{name}.csv", index=False)
    return folder


def picture(folder: Path, name: str, methods: list[str] | None = None) -> Figure | None:
    """One picture before it is a file."""
    return drawing.PICTURES[name](read_run(folder, methods))


def names(folder: Path) -> list[str]:
    run = read_run(folder, None)
    return [name for name, draw in drawing.PICTURES.items() if draw(run)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(Text))


# ---- files


def test_every_picture_appears_as_a_png_and_twice_with_equal_bytes(tmp_path):
    folder = write(tmp_path, tables())
    paths = [folder / "plots" / f"{name}.png" for name in drawing.PICTURES]
    assert drawing.draw(folder) == paths
    assert files_below(folder / "plots") == sorted(paths)
    before = [path.read_bytes() for path in paths]
    assert call(drawing.main, folder).splitlines() == list(map(str, paths))
    assert [path.read_bytes() for path in paths] == before
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (1080, 600))
    assert "matplotlib.pyplot" not in sys.modules, "it has a state that all share, and asks for windows"


# ---- what they show


def test_bars_of_classes_are_means_over_seeds_in_rank_order_with_names_and_counts(tmp_path):
    files = tables()
    figure = picture(write(tmp_path, files), "accuracy", ["ce", "ncm"])
    of_ce = files["per_class"][files["per_class"]["method"] == "ce"]
    expected = of_ce.groupby("class")["accuracy"].mean()[np.argsort(COUNTS)[::-1]]
    bars = figure.axes[0].containers
    np.testing.assert_allclose([bar.get_height() for bar in bars[0]], 100 * expected)
    assert len(bars) == 2 and figure.axes[0].get_xticklabels()[0].get_text() == "1 (500)"
    assert [line.get_xdata()[0] for line in figure.axes[0].get_lines()] == [3.5, 6.5]
    assert "many (> 100 images) | medium (20 to 100) | few (< 20)" in texts(figure)
    assert "selected on: val  ·  seeds: 2" in texts(figure)
    assert "neighbours" not in texts(figure)


def test_many_classes_are_smoothed_and_the_axis_says_so(tmp_path):
    files = tables({"ce": [""]}, list(range(141, 100, -1)), seeds=1)
    axes = picture(write(tmp_path, files), "rsd").axes[0]
    assert axes.get_ylabel() == "RSD, mean of 5 neighbours"
    values = files["per_class"]["rsd_per_sample"]
    assert axes.get_lines()[0].get_ydata()[[0, 10]] == pytest.approx([values[:3].mean(), values[8:13].mean()])


def test_lines_are_the_controls_and_the_best_others_or_all_that_was_asked_for(tmp_path):
    files = tables(HEADS | {"cb": [""], "lade": [""]}, seeds=1)
    others = files["table"][~files["table"]["method"].isin(run_tables.CONTROLS)]
    best = others.sort_values("balanced", ascending=False)["method"][:2]
    folder = write(tmp_path, files)
    assert legend(picture(folder, "loma")) == ["stage1", "ce", "los label_smooth=0.98", *best]
    settings = [f"los label_smooth={delta}" for delta in ("0.98", "0", "0.5", "0.9")]
    assert legend(picture(folder, "loma", ["los", "ce", "los"])) == [*settings, "ce"]


def test_the_path_is_that_of_los_and_ce_on_the_part_that_was_scored(tmp_path):
    files = tables()
    figure = picture(write(tmp_path, files), "path")
    assert figure.axes[0].get_ylabel() == "validation accuracy (%)"
    assert legend(figure) == ["overall", "many", "medium", "few", "los", "ce"]
    rows = files["metrics"][files["metrics"]["setting"] == LOS[0]]
    line = next(line for line in figure.axes[0].get_lines() if line.get_linestyle() == "-")
    np.testing.assert_allclose(line.get_ydata(), 100 * rows.groupby("step")["val_overall"].mean())
    on_test = {column: column.replace("val_", "test_") for column in files["metrics"]}
    write(tmp_path, {"metrics": files["metrics"].rename(columns=on_test)})
    assert picture(tmp_path, "path").axes[0].get_ylabel() == "test accuracy (%)"


def test_a_sweep_of_delta_shows_the_logit_gap(tmp_path):
    [axes] = picture(write(tmp_path, tables()), "sweep").axes
    gaps = [f"{delta:g}\n{logit_gap(delta, 10):.2f}" for delta in (0.5, 0.9, 0.98)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n∞", *gaps]


def test_a_grid_gives_a_panel_a_key_with_the_rest_held_fixed_four_at_most(tmp_path):
    grid = [f"lr={lr} tau={tau}" for lr in ("0.1", "0.001", "0.01") for tau in ("1", "2")]
    others = {"crt": [f"lr={lr}" for lr in ("2", "1")], "wb": ["kind=a", "kind=b"], "ce": [""]}
    figure = picture(write(tmp_path, tables({"la": grid} | others, seeds=1)), "sweep")
    shown = [(axes.get_title(), axes.get_xlabel(), axes.get_xscale()) for axes in figure.axes[:3]]
    assert shown == [("la tau=1", "lr", "log"), ("la lr=0.1", "tau", "linear"), ("crt", "lr", "linear")]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0.001, 0.01, 0.1]
    swept = {name: ["tau=1", "tau=2"] for name in ("la", "crt", "cb", "los", "lws")}
    figure = picture(write(tmp_path, tables(swept, seeds=1)), "sweep")
    assert [axes.get_title() for axes in figure.axes] == ["la", "crt", "cb", "los"]
    assert "4 of 5 sweeps" in texts(figure)


def test_the_labels_of_many_methods_do_not_overlap(tmp_path):
    methods = {f"method_{i}": [""] for i in range(17)}
    figure = picture(write(tmp_path, tables(methods, seeds=1)), "balance")
    figure.draw_without_rendering()
    notes = figure.findobj(Annotation)
    assert sorted(note.get_text() for note in notes) == sorted(methods)
    boxes = [Text.get_window_extent(note) for note in notes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_trade_off_is_a_curve_for_each_swept_method_and_a_dot_for_the_others(tmp_path):
    files = tables()
    figure = picture(write(tmp_path, files), "trade_off")
    lines = figure.axes[0].get_lines()
    assert [note.get_text() for note in figure.findobj(Annotation)] == list(HEADS)
    los = files["table"].set_index(["method", "setting"]).loc["los"].loc[[LOS[i] for i in (1, 2, 3, 0)]]
    los = los[los["many"] >= los["many"].max() / 2]
    assert [len(line.get_xdata()) for line in lines] == [1, len(los), 1, 1, 1] and 1 < len(los) <= 4
    np.testing.assert_allclose(lines[1].get_xdata(), 100 * los["many"])
    np.testing.assert_allclose(lines[1].get_ydata(), 100 * los["few"])
    assert "many: test accuracy (%)" in texts(figure) and "curves: los label_smooth" in texts(figure)
    over_classes = picture(tmp_path, "accuracy").axes[0].containers
    colours = {bars.get_label(): to_hex(bars[0].get_facecolor()).upper() for bars in over_classes}
    assert [lines[3].get_color(), lines[2].get_color()] == [colours["ce"], colours["stage1"]]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)


def test_more_methods_without_a_line_over_the_classes_than_there_are_styles_are_drawn_still(tmp_path):
    files = tables({f"method_{i}": [""] for i in range(30)}, seeds=1)
    lines = picture(write(tmp_path, files), "trade_off", ["method_0"]).axes[0].get_lines()
    assert len(lines) == 30 and len({(line.get_color(), line.get_linestyle()) for line in lines}) == 1 + 24


def test_where_validation_selects_the_trade_off_is_of_all_that_were_tried_in_their_best_epochs(tmp_path):
    files = tables()
    files["table"] = files["table"].drop_duplicates("method")
    chosen = files["table"][["method", "setting"]]
    files["per_class"] = files["per_class"].merge(chosen)
    last = files["metrics"].drop_duplicates(["method", "setting", "seed"], keep="last")
    files["search"] = last[["method", "setting", "seed", "epoch"]].assign(score=1, chosen=True)
    figure = picture(write(tmp_path, files), "trade_off")
    lines = figure.axes[0].get_lines()
    assert "many: validation accuracy (%)" in texts(figure)
    best = 100 * last[last["method"] == "los"].groupby("setting")["val_many"].mean()
    best = best[[LOS[i] for i in (1, 2, 3, 0)]]
    np.testing.assert_allclose(lines[1].get_xdata(), best[best >= best.max() / 2])
    assert [len(line.get_xdata()) for line in lines[:1] + lines[2:]] == [1, 1, 1, 1]


def test_the_confusion_has_shares_of_groups_and_names_the_pairs_confused_most(tmp_path):
    files = tables()
    figure = picture(write(tmp_path, files), "confusion")
    blocks, pairs = figure.axes[:2]
    images = files["confusion"].pivot_table("images", "group", "predicted_group", "sum")
    shares = (
        100 * images.div(images.sum(axis=1), axis=0).loc[["many", "medium", "few"], ["many", "medium", "few"]]
    )
    np.testing.assert_allclose(blocks.get_images()[0].get_array(), shares)
    assert [text.get_text() for text in blocks.texts] == [
        f"{share:.1f} %" for share in shares.to_numpy().flat
    ]
    named = [label.get_text() for label in pairs.get_yticklabels()]
    assert len(named) == 20 and named[-1] == "name 0 > name 9", "the most confused one is at the top"
    row = files["confusion"].query("`class` == 0")["images"]
    assert pairs.patches[-1].get_width() == pytest.approx(100 * row.iloc[9] / row.sum())
    assert not any(text.split(" > ")[0] == text.split(" > ")[1] for text in named)
    assert "Confusion of los" in texts(figure)


# ---- gaps


@pytest.mark.parametrize("counts", [[7], [500, 5]], ids=["one class", "no medium"])
def test_few_classes_and_empty_groups_break_nothing(tmp_path, counts, monkeypatch):
    files = tables(HEADS, counts, seeds=1)
    files["table"][["many", *run_tables.STDS]] = np.nan
    files["metrics"]["val_many"] = np.nan
    monkeypatch.setattr(drawing, "DPI", 50)
    drawn = [path.stem for path in drawing.draw(write(tmp_path, files))]
    assert drawn == [name for name in drawing.PICTURES if name != "trade_off"], "it has no many-shot accuracy"
    assert "many" not in legend(picture(tmp_path, "sweep")) + legend(picture(tmp_path, "path"))


def test_missing_figures_and_failed_heads_are_left_out(tmp_path):
    files = tables()
    files["per_class"]["rsd_per_sample"] = np.nan
    files["per_class"].loc[::3, "loma_per_sample"] = np.inf
    files["table"]["loma_spread"] = np.nan
    del files["confusion"]
    failed = {"method": "etf", "setting": "", "n": 0, "selected_on": "val", "failed": "loss nan"}
    files["table"] = pd.concat([files["table"], pd.DataFrame([failed])])
    assert names(write(tmp_path, files)) == ["accuracy", "loma", "path", "sweep", "trade_off"]
    assert "no figures of 'etf'" in refusal(drawing.main, tmp_path, "--methods", "etf")


def test_without_a_course_of_epochs_only_the_path_is_missing(tmp_path):
    files = tables(seeds=1)
    rows = files.pop("metrics")
    names_of_others = [name for name in drawing.PICTURES if name != "path"]
    assert names(write(tmp_path, files)) == names_of_others
    for few in (
        rows[["method", "setting", "seed", "epoch", "step"]].assign(train_accuracy=0),
        rows[rows["epoch"] == 1],
    ):
        assert names(write(tmp_path, {"metrics": few})) == names_of_others
    rows.loc[rows["epoch"] == 2, [f"val_{name}" for name in run_tables.SCORES]] = np.nan  # not scored
    path = picture(write(tmp_path, {"metrics": rows}), "path")
    assert all(list(line.get_xdata()) == [10, 30] for line in path.axes[0].get_lines())


def test_more_methods_than_fit_are_refused(tmp_path):
    others = {f"{name}_head": [""] for name in "abcdefg"}
    folder = write(tmp_path, tables(others, seeds=1))
    assert "1 to 6 methods fit" in refusal(drawing.main, folder, "--methods", ",".join(others))
    assert not (folder / "plots").exists()
