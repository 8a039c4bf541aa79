"""What README and docs/ say, held against the code and the csv files: commands that run, tables, figures."""

import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.common import threads
from datasets import build_data, to_folder
from datasets.images.decode import read_image
from losses import label_smooth_for_gap
from tests.helpers import PROGRAMS, call, commands, last_line, page_table, refusal
from utils.metrics.accuracy import percent
from utils.settings import __main__ as arguments
from utils.settings.methods import METHODS
from utils.settings.parse import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
THIN = "cifar100_lt_IR=100_resnet32_epochs-60"
# page -> its table of gaps
GAPS = {"README.md": "| `--logit_gap` |", "docs/tutorial.md": "| g |"}
# line of the table of representations -> file
REPRESENTATIONS = {
    "**ResNet-34, published recipe**": "cifar100_lt_IR=100_resnet34_epochs-200_pack_last",
    "ResNet-32, 60 epochs, three seeds": f"{THIN}_fresh_last",
    "ResNet-34, the same, settings chosen": "cifar100_lt_IR=100_resnet34_epochs-200_pack_val",
    "ResNet-32, the same, settings chosen": f"{THIN}_fresh_val",
    "ResNet-32, weak weight decay": f"{THIN}-wd-1e-4_fresh_last",
    "ResNet-32, mixup 0.2": f"{THIN}-mixup-0.2_fresh_last",
}


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_walk_through_for_own_images_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stated = [float(value) for value in re.findall(r"overall=([\d.]+)", section("Your own images"))]
    said = {}
    with threads(1):
        for words in commands(section("Your own images")):
            name, *rest = words[1:] if words[0] == "-m" else words
            said.setdefault(name, []).append(call(PROGRAMS[name], *rest))
    assert said["datasets.check"][0].strip().startswith("folder_my_images: 805 images, 0 problems")
    lines = [last_line(said[name][0]) for name in ("main_stage1.py", "main_stage2.py")]
    found = [float(re.search(r"overall=([\d.]+)", line)[1]) for line in lines]
    assert found == pytest.approx(stated, abs=5)  # another processor rounds otherwise
    assert last_line(said["evaluate.py"][0]) == lines[1]
    assert last_line(said["evaluate.py"][1]).startswith("predicted images=50 ")
    rows = pd.read_csv("predictions.csv")
    assert len(rows) == 500 and 100 * (rows["label"] == rows["predicted"]).mean() == pytest.approx(found[1])


@pytest.mark.parametrize(
    ("page", "header"), [("README.md", "| `--logit_gap` |"), ("docs/tutorial.md", "| g |")]
)
def test_a_table_of_gaps_is_the_one_that_is_computed(page, header):
    for gap, deltas in page_table((ROOT / page).read_text(encoding="utf-8"), header).iterrows():
        for classes, delta in deltas.items():
            number, digits = int(re.search(r"\d+$", classes)[0]), len(delta.partition(".")[2])
            assert delta == f"{label_smooth_for_gap(float(gap), number):.{digits}f}" and digits > 3


def test_the_page_of_arguments_is_the_one_that_the_table_gives():
    assert arguments.PAGE.read_text(encoding="utf-8") == arguments.page(), "run python -m utils.settings"


def test_the_settings_of_the_methods_on_their_page_are_those_of_the_table():
    text = arguments.METHODS_PAGE.read_text(encoding="utf-8")
    assert text == arguments.methods_page(), "run python -m utils.settings"
    rows = page_table(text, "| method | source | published |")
    assert list(rows.index) == [f"`{name}`" for name in METHODS]


def test_a_set_in_memory_is_written_as_a_folder_of_the_same_pixels(tmp_path):
    call(to_folder.main, "--dataset", "digits_lt", "--imb_ratio", "10", "--to", tmp_path / "images")
    memory = build_data("digits_lt", imb_ratio=10, val_source="none")
    files = build_data("folder", tmp_path / "images", val_source="none")
    assert files.class_counts == memory.class_counts
    for part, pixels in ((files.train, memory.train), (files.test, memory.test)):
        assert len(part) == len(pixels)
        number = [int(Path(part.paths[i]).stem) for i in range(len(part))]
        assert torch.equal(part.labels, pixels.labels[number])
        for i in (0, len(part) // 2, len(part) - 1):
            image = read_image(str(part.root / part.paths[i]))
            assert torch.equal(image, pixels.images[number[i]].expand(3, -1, -1))
    message = refusal(to_folder.main, "--dataset", "digits_lt", "--to", tmp_path / "images")
    assert message.endswith("exists already: name a folder to be made")


def test_the_commands_for_a_gpu_are_understood():
    lines = commands((ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"))
    scripts = [words for words in lines if words[0] in PROGRAMS]
    assert len(scripts) == 4 and {parse(name, "", words)["seed"] for name, *words in scripts} == {0}


@pytest.mark.parametrize("page", ["speed", "gpu", "ablations", "los"])
def test_the_benchmarks_that_a_page_names_take_the_arguments_given_there(page, capsys):
    lines = commands((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    lines = [words[1:] for words in lines if words[0] == "-m" and words[1].startswith("benchmarks")]
    assert lines
    for module, *words in lines:
        with pytest.raises(SystemExit) as caught:
            import_module(module).main(["--help"])
        assert caught.value.code == 0
        known = capsys.readouterr().out
        assert all(word in known for word in words if word.startswith("--")), module


def results(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / f"{name}.csv")


def spread(row: pd.Series) -> str:
    """An accuracy and its deviation over seeds of stage 2, where there is one."""
    deviation = "" if pd.isna(row["overall_std"]) else f" ± {percent(row['overall_std'])}"
    return percent(row["overall"]) + deviation


def test_the_table_of_methods_is_that_of_the_csv_files():
    frames = (results(f"{THIN}_pack_{select}") for select in ("last", "val"))
    last, val = (frame.query("status == 'done'").set_index("method") for frame in frames)
    rows = page_table(README, "| method | overall | many / medium / few | ECE |")
    assert set(rows.index) == set(last.index) == set(val.index)
    for name, overall, groups, error, loma, selected, _ in rows.itertuples(name=None):
        row = last.loc[name]
        assert (overall, selected) == (spread(row), spread(val.loc[name])), name
        wanted = [100 * row[group] for group in ("many", "medium", "few", "calibration_error")]
        assert [*map(float, groups.split(" / ")), float(error)] == pytest.approx(wanted, abs=0.05001), name
        assert loma == f"{row['loma']:.2f} ({row['loma_spread']:.2f})", name


@pytest.mark.parametrize("line", REPRESENTATIONS)
def test_the_table_of_representations_is_that_of_the_csv_files(line):
    frame = results(REPRESENTATIONS[line])
    rows = page_table(README, "| representation, ratio 100 |").itertuples(name=None)
    row = next(row for row in rows if row[0].startswith(line))
    means = frame.groupby("method")["overall"].mean()
    overall = [re.sub(r"\*| \(.*", "", cell) for cell in row[1:4]]
    named = dict(zip(("stage1", "ce", "los"), overall, strict=True))
    named |= dict(words.split(" ", 1) for words in row[4].split(", "))
    for method, figures in named.items():
        assert figures.partition(" ± ")[0] == percent(means[method]), method
    assert means.drop(["stage1", "ce", "los"]).idxmax() in named
