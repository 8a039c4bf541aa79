"""The grid runner on Digits-LT: runs, is cut off and goes on, skips what is done, tells what was not run."""

import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel

import main_stage1
import main_stage2
from tests.forking import Forked
from tests.helpers import call, refusal, wait_until
from tests.kills import alive, start
from tests.test_pack_arrays import Arrays
from utils.base.digest import file_digest
from utils.base.errors import UserError
from utils.base.pages import marked
from utils.base.signals import Stopped
from utils.packs.pack import read_pack
from utils.reproduce import __main__ as reproduce
from utils.reproduce import cell
from utils.reproduce.cell import Cell, read_rows
from utils.reproduce.grid import read_grid
from utils.reproduce.pages import COMMAND, measured_tables, methods_table, ratios_table, render
from utils.reproduce.published import own_table, published_table
from utils.run import checkpoint
from utils.run.lock import FolderLock

ROOT = Path(__file__).resolve().parent.parent
GRID = """
dataset = "digits_lt"
network = "resnet8"
imb_ratio = 50
seeds = [0, 1]
methods = ["los", "ce"]
stage2_seeds = [0, 1]
select = ["last", "val"]
views = 0
recipe = "--epochs {epochs}"
stage2 = "--finetune_epoch 2"

[[cells]]
"""
NAME = "digits_lt_IR=50_resnet8_epochs-10_0_finetune_epoch-2"
BEGUN = "out/reproduce/*_seed0/*/*/last.pth"


def words(root: Path, *more: object) -> list[object]:
    return ["--grid", root / "grid.toml", "--out", root / "out", "--results", root, "--device", "cpu", *more]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of the runs and the page, with size and time."""
    found = [path for path in [*(root / "out").rglob("*"), root / "RESULTS.md"] if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def told(root: Path) -> dict[str, list[dict]]:
    return {path.stem: read_rows(path, ()) for path in sorted((root / "results").glob("*.csv"))}


def cells(root: Path) -> list[Cell]:
    return read_grid(str(root / "grid.toml"), out=root / "out")


@pytest.fixture(scope="module", autouse=True)
def forks() -> Iterator[None]:
    """The runs of a grid that runs in this process have no start of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "subprocess", SimpleNamespace(Popen=Forked))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A grid at its end: one cell was run by the scripts themselves, the other was cut off by SIGTERM."""
    root = tmp_path_factory.mktemp("grid")
    (root / "grid.toml").write_text(GRID.format(epochs=10).replace("[0, 1]", "1", 1))
    [runs] = cells(root)
    call(main_stage1.main, *runs.stage1_words(), "--device", "cpu")
    for select in runs.selections:
        call(main_stage2.main, *runs.stage2_words(select, runs.stage1()), "--device", "cpu")
    before = snapshot(root / "out")
    (root / "grid.toml").write_text(GRID.format(epochs=10))

    def stop_it_once_begun() -> None:
        wait_until(lambda: list(root.glob(BEGUN)))
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop_it_once_begun)
    stopping.start()
    with redirect_stderr(io.StringIO()) as err, pytest.raises(Stopped) as stopped:
        call(reproduce.main, *words(root, "--jobs", "2"))
    stopping.join()
    assert stopped.value.code == 143
    assert "\nstopped by a signal" in err.getvalue() and "failed" not in err.getvalue(), err.getvalue()
    [begun] = root.glob(BEGUN)
    assert not list(root.glob("out/reproduce/*_seed0/**/summary.json"))
    said = call(reproduce.main, *words(root, "--jobs", "2"))
    assert said.endswith("RESULTS.md and 2 table(s): 12 rows, 0 of them not run\n")
    assert (begun.parent / "summary.json").exists(), "it went on in the same folder"
    assert snapshot(root / "out").items() >= before.items()
    return root


@pytest.fixture
def root(finished, tmp_path) -> Path:
    """A copy that a test may spoil; times stay."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def test_a_second_call_runs_nothing_and_lists_all_as_done(finished):
    before = snapshot(finished / "out")
    lines = call(reproduce.main, *words(finished, "--list")).splitlines()
    assert len(lines) == 6 and all(": done" in line for line in lines)
    call(reproduce.main, *words(finished))
    assert snapshot(finished / "out") == before


def test_results_are_the_runs_own_figures_and_the_page_comes_from_the_csv_files_alone(finished):
    tables = told(finished)
    assert list(tables) == [f"{NAME}_{select}" for select in ("last", "val")]
    for name, rows in tables.items():
        assert [row["stage1_seed"] for row in rows] == ["0"] * 3 + ["1"] * 3
        assert {row["method"] for row in rows} == {"stage1", "los", "ce"}
        for row in rows:
            place = f"*_seed{row['stage1_seed']}/{name.split('_')[-1]}_*/digits*/*"
            [folder] = finished.glob(f"out/reproduce/{place}")
            head = (row["method"], row["setting"])
            own = read_rows(folder / "table.csv", ())
            [own] = [line for line in own if (line["method"], line["setting"]) == head]
            assert own.items() <= row.items()
            assert row["stage1_digest"] == json.loads((folder / "summary.json").read_text())["stage1_digest"]
            assert (row["source"], row["torch"]) == ("trained", str(torch.__version__))
            assert "cpu" in row["hardware"]
            if row["stage1_seed"] == "0":  # the runner has seen how long it took
                assert float(row["hours"]) > 0 and float(row["stage1_hours"]) > 0
            assert row["n"] == ("1" if row["method"] == "stage1" else "2")
    pages = render(sorted((finished / "results").glob("*.csv")))
    assert {name: (finished / name).read_text() for name in pages} == pages and len(pages) == 3
    assert all(f"]({name})" in pages["RESULTS.md"] for name in pages if name != "RESULTS.md")
    assert "selected on val" in pages[f"results/{NAME}_val.md"]
    assert "Over 2 seeds of stage 1" in pages[f"results/{NAME}_last.md"]
    claims = [line for line in pages["RESULTS.md"].splitlines() if line.endswith("| - | none | 0 | 0 |")]
    assert len(claims) == 2, "LOS beside its control alone is a claim too"
    assert "## Not run" not in pages["RESULTS.md"], "the grids of CIFAR100-LT are not what was asked for"


def test_the_committed_pages_come_from_the_committed_csv_files():
    pages = render(sorted((ROOT / "results").glob("*.csv")))
    assert pages == {name: (ROOT / name).read_text(encoding="utf-8") for name in pages}
    assert len(pages["RESULTS.md"].encode()) <= 12_000
    for page in ("README.md", "docs/methods.md"):
        [table] = re.findall("<!-- methods: .*\n([^!]*)<!-- end", (ROOT / page).read_text(encoding="utf-8"))
        names = re.findall(r"^\| `(\w+)`", table, re.M)
        assert table == methods_table(ROOT / "results", names) and "los" in names
    assert ratios_table(sorted((ROOT / "results").glob("*.csv"))) in (ROOT / "docs/methods.md").read_text()
    assert published_table(ROOT / "results", brief=True) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert own_table(ROOT / "results") in (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    found = list(measured_tables(ROOT / "docs"))
    assert {page.stem for page, _, _ in found} == {"features", "methods", "own_data", "speed"}
    for page, name, table in found:
        assert marked(name, COMMAND, table) in page.read_text(encoding="utf-8"), name


def test_the_figures_beside_the_published_ones_are_those_of_the_files_that_they_name():
    lines = [line.split(" | ") for line in published_table(ROOT / "results").splitlines()[2:]]
    ours = [line for line in lines if line[0].startswith("| ours")]
    assert {line[0] for line in lines} - {line[0] for line in ours} and "UNKNOWN" in lines[0]
    for _, network, *cells, n, _, source in ours:
        assert network in ("ResNet-34", "ResNet-32")
        for ratio, cell_, count in zip((100, 50, 10), cells, n.split("/"), strict=True):
            path = ROOT / source.removesuffix(" |").replace("*", str(ratio))
            if cell_ == "not run":
                assert count == "-" and (not path.exists() or "points" in source)
                continue
            rows = pd.read_csv(path).query("method == 'los'")
            if "points" in source:
                rows = rows.query("chosen == 'test' and views == 'plain'")
                figure, seeds = rows["overall"].mean(), len(rows)
            else:
                [(figure, seeds)] = zip(rows["overall"], rows["n"], strict=True)
            assert cell_.startswith(f"{figure:.2f}") and count == str(seeds)


def test_what_is_missing_unfinished_or_of_another_configuration_is_told_as_not_run(root):
    [unfinished] = root.glob("out/reproduce/*_seed1/val_*/digits*/*")
    (unfinished / "summary.json").unlink()
    [other] = root.glob("out/reproduce/*_seed1/last_*/digits*/*")
    edited(other / "config.json", '"finetune_epoch": 2', '"finetune_epoch": 3')
    shutil.rmtree(next(root.glob("out/reproduce/*_seed0/val_*")))
    said = call(reproduce.main, *words(root, "--report_only"))
    assert said.endswith("2 table(s): 9 rows, 6 of them not run\n")
    rows = [row for table in told(root).values() for row in table]
    missing = [(row["stage1_seed"], row["selected_on"], row["method"]) for row in rows if not row["overall"]]
    assert missing == [
        *(("1", "last", "los"), ("1", "last", "ce")),
        *((seed, "val", name) for seed in "01" for name in ("los", "ce")),
    ]
    assert {row["status"] for row in rows} == {"done", "not run"}
    overview = (root / "RESULTS.md").read_text()
    assert "| 1 of 2 | not run |" in overview and "| 0 of 2 | not run |" in overview
    page = "".join(path.read_text() for path in (root / "results").glob("*.md"))
    assert page.count("| not run |") == 8 and "Stage 2: not run." in page and "1 of 2" in page
    lines = call(reproduce.main, *words(root, "--list")).splitlines()
    assert [line.endswith("not run") for line in lines] == [False, False, True, False, True, True]


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def test_a_failing_cell_is_named_and_the_others_go_on_with_a_stage_1_that_was_replaced_or_is_gone(
    root, capfd
):
    [other, path] = sorted(root.glob("out/reproduce/*/checkpoints/*/*/*_stage1.pth"))
    weights = checkpoint.content_digest(checkpoint.read(path).state)
    shutil.copy2(other, path)
    assert f"{path} is not the model that" in refusal(reproduce.main, *words(root, "--report_only"))
    path.unlink()
    place = next(root.glob("out/reproduce/*_seed0")) / "last_0_finetune_epoch-2"
    shutil.rmtree(place)
    place.write_text("in the way of the run's folders")
    with pytest.raises(SystemExit) as ended:
        call(reproduce.main, *words(root))
    assert ended.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"failed: {place.parent.name}: {place.name} ended with status 2: error: "), last
    assert [row["status"] for row in told(root)[f"{NAME}_last"]] == ["not run"] * 2 + ["done"] * 3
    assert checkpoint.content_digest(checkpoint.read(path).state) == weights


def with_table(folder: Path, old: str, new: str) -> None:
    """Change table.csv, and the digest of it in summary.json."""
    edited(folder / "table.csv", old, new)
    digest = file_digest(folder / "table.csv")
    edited(folder / "summary.json", '"table_digest": "[0-9a-f]+', f'"table_digest": "{digest}')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: edited(f / "table.csv", r"0\.\d+", "0.99"), "table.csv was changed after the run"),
        (lambda f: (f / "table.csv").unlink(), "table.csv cannot be read: No such file"),
        (lambda f: edited(f / "summary.json", '"table_digest"', '"x"'), "summary.json has no table_digest"),
        (lambda f: edited(f / "summary.json", '"test":', '"val":'), "tells of validation images: a grid"),
        (lambda f: (f / "summary.json").write_text("{"), "summary.json cannot be read"),
        (lambda f: with_table(f, "method", "x"), "table.csv has no column method"),
        (lambda f: with_table(f, ",accuracies", ",share"), "table.csv has no column accuracies: an older"),
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read: No such file"),
        (
            lambda f: edited(f / "summary.json", '"stage1_digest": "....', '"stage1_digest": "0000'),
            r"is a stage 2 of another stage 1 \(0000",
        ),
    ],
)
def test_a_run_folder_that_was_spoilt_is_named_and_nothing_is_run_or_written(root, spoil, said):
    [folder] = root.glob("out/reproduce/*_seed1/last_*/digits*/*")
    spoil(folder)
    before = snapshot(root)
    for more in ([], ["--report_only"], ["--list"]):
        message = refusal(reproduce.main, *words(root, *more))
        assert str(folder) in message and re.search(said, message), message
    assert snapshot(root) == before


def test_a_figure_of_a_run_that_is_none_is_named_before_anything_is_written(root):
    [folder] = root.glob("out/reproduce/*_seed1/last_*/digits*/*")
    with_table(folder, r",2,", ",two,")
    before = snapshot(root)
    message = refusal(reproduce.main, *words(root, "--report_only"))
    assert message.startswith(f"{folder}/table.csv has a figure that is none: ") and "'two'" in message
    assert snapshot(root) == before


def test_without_a_single_run_the_page_is_made_of_the_csv_files_that_are_there(root):
    shutil.rmtree(root / "out")
    before = told(root)
    (root / "RESULTS.md").unlink()
    assert "no run of this grid is here" in call(reproduce.main, *words(root, "--report_only"))
    assert told(root) == before and (root / "RESULTS.md").exists()
    shutil.rmtree(root / "results")
    assert "and no csv file in" in refusal(reproduce.main, *words(root, "--report_only"))


@pytest.mark.parametrize(("recorded", "done"), [({}, True), ({"mixup": 0.2}, False)])
def test_a_finished_stage_1_of_code_that_did_not_know_an_argument_is_done(root, recorded, done):
    [place] = root.glob("out/reproduce/*_seed0/digits*_stage1/*/config.json")
    record = json.loads(place.read_text())
    del record["config"]["mixup"]
    record["config"] |= recorded
    place.write_text(json.dumps(record))
    assert (cells(root)[0].stage1() is not None) == done


def with_values(path: Path, **columns: str) -> str:
    """A csv file with the same value in the whole of a column."""
    return pd.read_csv(path, dtype=str).assign(**columns).to_csv(index=False)


def test_the_first_figures_of_several_stage_1_are_paired_and_tested_over_them(finished):
    [path] = (finished / "results").glob("*_last.csv")
    rows = pd.read_csv(path)
    to_ce, to_los = (rows[rows["method"] == m][f"minus_{o}"] for m, o in (("los", "ce"), ("ce", "los")))
    page = render([path])[f"results/{path.stem}.md"].splitlines()
    header = next(line for line in page if line.startswith("| method | stage-1 seeds |"))
    assert header.startswith("| method | stage-1 seeds | to ce | to los | overall |")
    [los] = [line for line in page if line.startswith("| los | 2 of 2 |")]
    accuracies = [rows[rows["method"] == name]["overall"].to_numpy() for name in ("los", "ce")]
    test = ttest_rel(*accuracies)
    spread = f"{to_ce.mean():+.2f} ± {to_ce.std():.2f}"
    assert f"| {spread} (n 2, t {test.statistic:.3g}, p {test.pvalue:.2g}) | - |" in los
    assert to_los.tolist() == (-to_ce).tolist()


def not_run(frame: pd.DataFrame, rows: pd.Series, status: str) -> None:
    """Take the figures of these rows away."""
    frame.loc[rows, frame.columns[frame.columns.get_loc("n") + 1 :]] = ""
    frame.loc[rows, ["n", "status", "accuracies"]] = ["0", status, "percent"]


def test_a_control_that_failed_on_one_stage_1_leaves_the_differences_of_the_others(tmp_path):
    [path] = (ROOT / "results").glob("*IR=10_resnet32_epochs-60_fresh_last.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    own = frame["stage1_seed"] == "1"
    frame.loc[own, [name for name in frame if re.match("(minus|p)_ce", name)]] = ""
    not_run(frame, own & (frame["method"] == "ce"), "failed")
    frame.to_csv(tmp_path / path.name, index=False)
    assert "(n 2, t " in render([tmp_path / path.name])["RESULTS.md"]


def test_the_table_of_methods_says_what_was_not_run(tmp_path):
    for path in (ROOT / "results").glob("cifar100_lt_IR=100_*_pack_*.csv"):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "resnet34" in path.name:
            not_run(frame, frame["method"] != "none", "not run")
        frame.to_csv(tmp_path / path.name, index=False)
    [_, _, line, *_] = methods_table(tmp_path, ["los"]).splitlines()
    assert line.startswith("| `los` | not run | not run | 39.77")


def test_a_csv_file_that_is_none_or_of_two_protocols_is_one_line(root):
    path = root / "results" / f"{NAME}_val.csv"
    whole = path.read_text()
    for text, said in (
        (whole.partition("\n")[0], "has no row"),
        (whole.replace("stage1_digest", "digest"), "has no column stage1_digest"),
        (whole.replace(",seconds", ",time"), "has no column seconds"),
        (whole.replace(",accuracies", ",share"), "has no column accuracies: an older version wrote it"),
        (whole.replace(",percent", ",share", 1), "different protocols: accuracies is 'share' and 'percent'"),
        (with_values(path, learned="1e999"), "has a figure that is none: .*infinity"),
        (re.sub(r",0\.\d+", ",much", whole, count=1), "has a figure that is none: .*much"),
        (whole + whole.splitlines()[1] + "\n", "has several settings of stage1 on one stage 1"),
        (whole + "digits_lt,50", "would mix different protocols: network is 'resnet8' and ''"),
        (
            "test".join(whole.rsplit("val", 1)),
            "would mix different protocols: selected_on is 'val' and 'test'",
        ),
        (whole + ",x" * 200, "cannot be read: .*Expected"),
        (with_values(path, overall=""), "tells of runs and has nothing in its column overall"),
        (whole.replace("stage1,", '"stage1,', 1), "cannot be read|has"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            render([path])


def test_a_released_model_of_the_cell_saves_its_stage_1(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "RELEASED", tmp_path / "checkpoints" / "released")
    [path] = finished.glob("out/reproduce/*_seed0/checkpoints/*/*/*_stage1.pth")
    released = tmp_path / "checkpoints" / "released" / "digits_lt" / "IR=50" / path.name
    released.parent.mkdir(parents=True)
    shutil.copy2(path, released)
    shutil.copy2(finished / "grid.toml", tmp_path)
    first, second = cells(tmp_path)
    stage1 = first.stage1(look=True)
    assert stage1.source == "checkpoints/released/digits_lt/IR=50/resnet8_stage1.pth"
    assert stage1.model.digest == checkpoint.read(path).digest
    assert second.stage1(look=True) is None, "another seed"
    source = checkpoint.read(released)
    checkpoint.save(released, source.facts | {"model": source.state, "train_digest": "0" * 64})
    assert first.stage1(look=True) is None, "other images"


def runs_once(root: Path, *more: object) -> list[dict]:
    """Run the grid, see that a second call runs nothing; the rows of its first table."""
    assert "0 of them not run" in call(reproduce.main, *words(root, *more))
    before = snapshot(root / "out")
    call(reproduce.main, *words(root, *more))
    assert snapshot(root / "out") == before
    return next(iter(told(root).values()))


def test_a_grid_of_packs_runs_stage_2_on_their_features_and_asks_for_no_images(digits, tmp_path):
    pack, line = tmp_path / "digits.safetensors", ("--method", "stage1", "--views", "0", "--seed", "0")
    line = (*line, "--dataset", "digits_lt", "--pretrained_pth", digits.stage1, "--save_features", pack)
    call(main_stage2.main, *line, "--out", tmp_path / "made", "--ckpt_dir", tmp_path / "made")
    grid = GRID.format(epochs=6).replace("views = 0", 'views = "pack"').replace("[0, 1]", "0", 1)
    grid = grid.replace('["last", "val"]', '"last"')
    (tmp_path / "grid.toml").write_text(f"{grid}features = '{pack}'\n")
    rows = {row["method"]: row for row in runs_once(tmp_path)}
    assert next(iter(told(tmp_path))) == "digits_lt_IR=50_resnet8_epochs-6_pack_finetune_epoch-2_last"
    assert rows["los"]["source"] == str(pack)
    assert rows["los"]["stage1_digest"] == checkpoint.read(digits.stage1).identity
    assert "the fixed training features of a pack" in next((tmp_path / "results").glob("*.md")).read_text()
    (tmp_path / "grid.toml").write_text(f"{grid}features = '{pack}'\nimb_ratio = 10\n")
    assert "was made with --imb_ratio 50.0" in refusal(reproduce.main, *words(tmp_path, "--list"))
    (tmp_path / "grid.toml").write_text(f"{grid}features = '{pack}'\n")
    pack.write_bytes(pack.read_bytes()[:-1])
    assert f"{pack} is damaged" in refusal(reproduce.main, *words(tmp_path))


def test_a_grid_runs_on_a_pack_that_a_user_made(tmp_path):
    given = Arrays(tmp_path)
    given.pack("--name", "list_of_words")
    keys = "methods = ['la', 'ce']\nstage2_seeds = 0\nselect = 'last'\nviews = 'pack'\n"
    grid = f"{keys}stage2 = '--finetune_epoch 2'\nfeatures = '{given.out}'\n[[cells]]\n"
    (tmp_path / "grid.toml").write_text(grid)
    elsewhere = ("--data_dir", tmp_path / "elsewhere")
    rows = runs_once(tmp_path, *elsewhere)
    named = [(row["dataset"], row["network"], row["imb_ratio"]) for row in rows]
    assert named == [("list_of_words", "features", "")] * 3
    assert {row["stage1_digest"] for row in rows} == {read_pack(given.out).digest}
    assert "a pack of its own)" in next((tmp_path / "results").glob("*.md")).read_text()
    given.pack("--name", "list_of_words", "--dtype", "fp16")
    assert "is a stage 2 of another stage 1" in refusal(reproduce.main, *words(tmp_path, *elsewhere))
    for line, said in (
        ("network = 'resnet8'", "--network features, but --network resnet8"),
        ("views = 0", "belong"),
    ):
        (tmp_path / "grid.toml").write_text(grid.replace("[[cells]]", f"[[cells]]\n{line}"))
        assert said in refusal(reproduce.main, *words(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_where_it_is_killed_its_runs_save_and_end_and_nobody_begins_before(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID.format(epochs=100_000).replace("[0, 1]", "0", 1))
    first = start([sys.executable, "-m", "utils.reproduce", *words(tmp_path)])
    wait_until(lambda: list(tmp_path.glob(BEGUN)), over=lambda: first.poll() is not None)
    tasks = Path(f"/proc/{first.pid}/task").glob("*/children")
    [run] = [int(number) for task in tasks for number in task.read_text().split()]
    os.kill(run, signal.SIGSTOP)  # it has heard of the end and cannot save yet
    first.kill()
    first.communicate()
    refused = f"another run is writing to {tmp_path / 'out' / 'reproduce'}: let it end, or take another --out"
    assert refusal(reproduce.main, *words(tmp_path)).startswith(refused)
    os.kill(run, signal.SIGCONT)
    wait_until(lambda: not alive(run))
    [log] = tmp_path.glob("out/reproduce/*/stage1.log")
    assert "stopped by a signal" in log.read_text().splitlines()[-1]
    FolderLock(tmp_path / "out" / "reproduce").release()


def test_the_table_of_ratios_says_what_was_not_run(tmp_path):
    files = {}
    for select in ("last", "val"):
        name = f"cifar100_lt_IR=10_resnet32_epochs-60_fresh_{select}.csv"
        files[select] = tmp_path / name
        frame = pd.read_csv(ROOT / "results" / name, dtype=str, keep_default_na=False)
        if select == "val":
            figures = frame.columns[frame.columns.get_loc("n") :]
            frame = frame.assign(n="0", status="not run", setting="", **dict.fromkeys(figures[1:], ""))
        frame.to_csv(files[select], index=False)
    *_, line = ratios_table([*files.values()]).splitlines()
    assert re.search(r"\| 57\.62 ± 0\.26 \| -2\.24 ± 0\.64 .* \| not run \|$", line)
