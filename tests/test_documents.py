"""What README and docs/ say, held against the code and the csv files: commands that run, tables, figures."""

import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

from datasets import build_data, to_folder
from datasets.images.decode import read_image
from losses import label_smooth_for_gap
from tests.helpers import PROGRAMS, call, commands, last_line, page_table, threads
from utils.settings import __main__ as arguments
from utils.settings.methods import METHODS
from utils.settings.parse import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [Path("README.md"), *(path.relative_to(ROOT) for path in sorted(ROOT.glob("docs/*.md")))]
SCRIPTS = ("main_stage1.py", "main_stage2.py", "evaluate.py")
OWN_DATA = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_walk_through_for_own_images_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stated = [float(value) for value in re.findall(r"overall=([\d.]+)", OWN_DATA)]
    said = {}
    with threads(1):
        for words in commands(OWN_DATA):
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
    ("page", "header"), [("docs/large_sets.md", "| `--logit_gap` |"), ("docs/tutorial.md", "| g |")]
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


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_and_picture_of_a_page_is_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_of_a_page_is_understood(page):
    for name, *words in commands((ROOT / page).read_text(encoding="utf-8")):
        if name in SCRIPTS and "…" not in words:
            parse(name, words)


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 14_336 and len(text.splitlines()) <= 260
    assert [line for line in text.splitlines() if len(line) > 120] == []


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
