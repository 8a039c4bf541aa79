"""What README and docs/ say, held against the code: commands that run, tables that are computed."""

import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

from datasets import build_data, to_folder
from datasets.images.decode import read_image
from docs import arguments, scale
from losses import label_smooth_for_gap
from tests.helpers import PROGRAMS, call, commands, last_line, refusal
from utils.settings.parse import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_walk_through_for_own_images_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = commands(section("Your own images"))
    assert len(lines) == 6
    stated = [float(value) for value in re.findall(r"overall=([\d.]+)", section("Your own images"))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        said = {}
        for words in lines:
            name, *rest = words[1:] if words[0] == "-m" else words
            said.setdefault(name, []).append(call(PROGRAMS[name], *rest))
    finally:
        torch.set_num_threads(threads)
    assert said["datasets.check"][0].strip().startswith("folder_my_images: 805 images, 0 problems")
    found = [
        float(re.search(r"overall=([\d.]+)", last_line(said[name][0]))[1])
        for name in ("main_stage1.py", "main_stage2.py")
    ]
    assert found == pytest.approx(stated, abs=5)  # another processor rounds otherwise
    assert last_line(said["evaluate.py"][0]) == last_line(said["main_stage2.py"][0])
    assert last_line(said["evaluate.py"][1]).startswith("predicted images=50 ")
    rows = pd.read_csv("predictions.csv")
    assert len(rows) == 500 and 100 * (rows["label"] == rows["predicted"]).mean() == pytest.approx(found[1])


def test_the_table_of_gaps_is_the_one_that_is_computed():
    table = section("ImageNet-LT, Places-LT, iNaturalist 2018").partition("| `--logit_gap` |")[2]
    lines = [line.strip(" |").split(" | ") for line in table.splitlines() if re.match(r"\| [\d.]+ \|", line)]
    classes = (10, 100, 365, 1000, 8142)
    assert len(lines) == 4
    for gap, *deltas in lines:
        wanted = [f"{label_smooth_for_gap(float(gap), k):.5f}".lstrip("0") for k in classes]
        assert deltas == wanted


def test_the_table_of_costs_is_the_one_that_is_computed():
    assert "\n".join(scale.rows()) in scale.PAGE.read_text(encoding="utf-8")


def test_the_page_of_arguments_is_the_one_that_the_table_gives():
    assert arguments.PAGE.read_text(encoding="utf-8") == arguments.page(), "run python -m docs.arguments"


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
    assert len(scripts) == 4
    for name, *words in scripts:
        assert parse(name, "", words)["seed"] == 0


def test_the_benchmarks_that_the_page_on_speed_names_take_the_arguments_given_there(capsys):
    lines = [words[1:] for words in commands((ROOT / "docs" / "speed.md").read_text(encoding="utf-8"))]
    assert len(lines) >= 3
    for module, *words in lines:
        with pytest.raises(SystemExit) as caught:
            import_module(module).main(["--help"])
        assert caught.value.code == 0
        known = capsys.readouterr().out
        assert all(word in known for word in words if word.startswith("--")), module
