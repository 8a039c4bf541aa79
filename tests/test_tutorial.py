"""docs/tutorial.md, executed: every command and snippet in order, and what the page says of their outcome."""

import contextlib
import io
import re
from itertools import zip_longest
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.helpers import COMMAND, call_words, commands, last_line, page_table, threads

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "tutorial.md"
PAGE = PATH.read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
POINTS = {"overall": 5, "many": 10, "medium": 10, "few": 10}  # another processor rounds otherwise


class Walk:
    """The page, gone through once: what each command and each snippet printed."""

    def __init__(self) -> None:
        self.said, self.stated, self.printed = [], [], []
        parts = SNIPPET.split(PAGE)
        for text, code in zip_longest(parts[::2], parts[1::2], fillvalue=""):
            behind = COMMAND.split(text)[2::2]
            for words, after in zip(commands(text), behind, strict=True):
                self.said.append(call_words(words))
                self.stated.append(re.findall(r"^    (test .*)$", after, flags=re.MULTILINE))
            self.printed.append(run_snippet(code))

    def output(self, *words: str) -> str:
        """What the one command with these words printed."""
        [place] = [i for i, line in enumerate(commands(PAGE)) if set(words) <= set(line)]
        return self.said[place]


def run_snippet(code: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(compile(code, str(PATH), "exec"), {})
    return text.getvalue()


@pytest.fixture(scope="module")
def walk(tmp_path_factory, all_pictures):
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr("utils.plots.drawing.PICTURES", all_pictures)
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        yield Walk()


def result(line: str) -> dict[str, str]:
    return dict(word.split("=") for word in line.split()[1:])


@pytest.mark.long
def test_the_last_lines_have_the_accuracies_stated(walk):
    assert len(walk.said) == len(re.findall(r"^    python ", PAGE, re.MULTILINE)) > 10
    compared = 0
    for said, stated in zip(walk.said, walk.stated, strict=True):
        lines = [line for line in said.splitlines() if line.startswith("test ") and "overall=" in line]
        for line in stated:
            wanted = result(line)
            [found] = [found for found in map(result, lines) if found.get("method") == wanted.get("method")]
            assert found.keys() == wanted.keys() and found["selected_on"] == wanted["selected_on"]
            for name, allowed in POINTS.items():
                assert float(found[name]) == pytest.approx(float(wanted[name]), abs=allowed), line
            compared += 1
    assert compared == len(re.findall(r"^    test ", PAGE, re.MULTILINE)) > 5


@pytest.mark.long
def test_stage_2_gains_on_the_few_shot_classes_and_evaluate_repeats_its_line(walk):
    stage1, stage2, evaluated = (result(last_line(text)) for text in walk.said[:3])
    for name in ("overall", "few"):
        assert float(stage2[name]) > float(stage1[name])
    assert evaluated == stage2


@pytest.mark.long
def test_the_lines_quoted_from_the_output_are_printed(walk):
    quoted = re.findall(r"^    ((?:data |  █|model |label over-smoothing).*)$", PAGE, flags=re.MULTILINE)
    assert quoted and set(quoted) <= {line for text in walk.said for line in text.splitlines()}
    rate = re.compile(r"los, path 5: learning rate (\S+), from")
    found = rate.search(walk.output("--logit_gap"))[1]
    assert float(found) == pytest.approx(float(rate.search(PAGE)[1]), rel=0.5)


@pytest.mark.long
def test_every_file_that_the_page_names_exists(walk):
    endings = "csv|json|md|npy|png|pth|py|safetensors|txt"
    text = SNIPPET.sub("", PAGE)
    names = set(re.findall(rf"[\w./=<>-]+\.(?:{endings})\b", text))
    names |= set(re.findall(r"`((?:output|checkpoints)[\w./=<>-]*?)/?`", text))
    assert len(names) > 30
    for name in names:
        made = any(Path.cwd().rglob(name.replace("<time>", "*").removeprefix("../")))
        assert made or (PATH.parent / name).exists() or (ROOT / name).exists(), name
    stage1 = next(Path("output", "digits_lt_IR=50_stage1").iterdir())
    listed = re.findall(r"^    (\w+\.\w+)  ", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in stage1.iterdir())


@pytest.mark.long
def test_what_the_page_says_of_its_snippets_is_so(walk):
    *_, by_hand, _ = walk.printed  # no snippet behind the last text
    near, far = (float(value) for value in re.findall(r"prints `accuracy ([\d.]+)`", PAGE))
    [code] = [code for code in SNIPPET.findall(PAGE) if "range(50)" in code]
    longer = run_snippet(code.replace("range(50)", "range(100)"))
    short, long = (float(text.split()[1]) for text in (by_hand, longer))
    assert short == pytest.approx(near, abs=5) and long == pytest.approx(far, abs=5) and long < short


@pytest.mark.long
def test_the_tables_of_methods_and_of_the_sweep_are_those_of_the_runs(walk):
    found = pd.read_csv(next(Path("output", "methods").rglob("table.csv"))).set_index("method")
    for method, row in page_table(PAGE, "| method |").iterrows():
        for name, allowed in POINTS.items():
            assert float(row[name]) == pytest.approx(found[name][method], abs=allowed), (method, name)
        for name, column in (("LoMa (spread)", "loma"), ("RSD (spread)", "rsd")):
            assert float(row[name].split()[0]) == pytest.approx(found[column][method], rel=0.3), method
    assert found["overall"]["los"] > found["overall"]["ce"]
    assert found["loma_spread"]["los"] < found["loma_spread"]["stage1"]
    scores = pd.read_csv(next(Path("output", "sweep").rglob("search.csv")))
    for delta, row in page_table(PAGE, "| δ |").iterrows():
        for path, score in row.items():
            wanted = f"label_smooth={delta} path={path.split()[-1]}"
            [found] = scores[scores["setting"].str.endswith(wanted, na=False)]["score"]
            assert found == pytest.approx(float(score), abs=5)


@pytest.mark.long
def test_the_pictures_are_linked_small_drawn_by_the_page_and_show_what_it_says(walk):
    linked = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", PAGE, flags=re.MULTILINE)
    assert sorted(PATH.parent / name for name in linked) == sorted((PATH.parent / "tutorial").iterdir())
    for name in linked:
        assert (PATH.parent / name).stat().st_size < 60_000
        [drawn] = Path("output", "methods").rglob(f"plots/{Path(name).name}")
        with Image.open(PATH.parent / name) as image, Image.open(drawn) as other:
            assert other.size == image.size and image.format == "PNG"
    classes = pd.read_csv(next(Path("output", "methods").rglob("per_class.csv"))).set_index("class")
    stage1, los = (classes[classes["method"] == method] for method in ("stage1", "los"))
    drop = stage1["loma_per_sample"] - los["loma_per_sample"]
    assert stage1["loma_per_sample"].idxmax() == drop.idxmax() == 0 and drop[[7, 8, 9]].max() < 0
    assert stage1["rsd_per_sample"].idxmax() in (8, 9)


@pytest.mark.long
def test_own_images_and_own_features_go_the_whole_way(walk):
    assert walk.output("datasets.check").startswith("folder_my_images: 805 images, 0 problems")
    assert len(pd.read_csv("predictions.csv")) == 500
    stage2 = last_line(walk.output("main_stage2.py", "folder"))
    assert stage2 in walk.output("evaluate.py", "folder").splitlines()
    assert walk.output("pack").count("305 training") == 2


def test_the_other_pages_that_the_page_links_exist_and_its_lines_can_be_read():
    assert max(map(len, PAGE.splitlines())) <= 110
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (PATH.parent / target).is_file(), target
