"""docs/ablations.md and docs/large_sets.md: rows are heads of the ordinary path, tables are computed."""

import shutil
from pathlib import Path

import pytest

from benchmarks.studies import ablations, own_features, points, scale, tables
from tests.helpers import call, refusal, run_folder, run_stage2
from tests.stage2 import read_table
from tests.test_pack_runs import save_pack
from tests.test_packs import tiny, with_val
from utils.base.errors import UserError
from utils.base.pages import put
from utils.packs.pack import write_pack
from utils.settings.methods import METHODS

PAGE = ablations.OUT.with_name("ablations.md")


@pytest.fixture(scope="module")
def pack(tmp_path_factory, digits) -> Path:
    """The digits' plain features; read-only for the tests."""
    return save_pack(tmp_path_factory.mktemp("pack"), digits.stage1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pack) -> tables.Tables:
    """The csv files of the whole command on that pack; read-only."""
    folder = tmp_path_factory.mktemp("made") / "ablations"
    call(ablations.main, "--packs", pack, "--out", folder)
    return tables.read(folder)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--method", "los", "--label_smooth", "0.5"), {"label_smooth": 0.5}),
        (("--method", "los", "--finetune_lr", "5e-4", "--finetune_epoch", "5"), {"lr": 5e-4, "epochs": 5}),
        (("--method", "ce"), {"label_smooth": 0.0}),
        (("--method", "stage1,la"), {"method": "stage1"}),
        (("--method", "lws"), None),
    ],
    ids=["a δ of the sweep", "a cell of the grid", "the control is cross-entropy", "stage 1", "a method"],
)
def test_a_row_is_the_head_that_stage_2_trains(tmp_path, pack, made, words, wanted):
    run_stage2(tmp_path, "--features", pack, "--seed", "0", *words)
    table = read_table(run_folder(tmp_path, "stage2"))
    method = words[1].split(",")[0]
    other = table[table["method"] == method].iloc[0]
    rows, prefix = made["heads"], "test_"
    if wanted is None:
        rows, prefix, wanted = made["methods"], "", {"method": method}
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    for name in ("overall", "many", "medium", "few", "balanced"):
        assert rows.iloc[0][f"{prefix}{name}"] == pytest.approx(other[name], rel=1e-5), name
    for metric in ("loma", "rsd"):
        column = f"test_{metric}_per_sample_all" if prefix else metric
        assert rows.iloc[0][column] == pytest.approx(other[metric], rel=1e-4)


def test_the_chosen_setting_is_the_best_on_validation_and_test_has_no_say(made):
    heads, chosen = made["heads"], made["gains"].set_index("chosen_by").loc["validation"]
    candidates = heads[heads["label_smooth"] > 0]
    assert chosen["val_los"] == candidates["val_balanced"].max()
    setting = ["label_smooth", "lr", "epochs"]
    own = candidates[(candidates[setting] == chosen[setting]).all(axis=1)].iloc[0]
    assert (own["val_balanced"], own["test_balanced"]) == (chosen["val_los"], chosen["test_los"])
    assert chosen["test_minus_ce"] == pytest.approx(chosen["test_los"] - chosen["test_ce"], abs=1e-3)


def test_the_gap_and_the_label_of_the_true_class_belong_to_the_delta(made):
    row = made["heads"].query("study == 'delta' and label_smooth == 0.5").iloc[0]
    assert row["logit_gap"] == pytest.approx(2.3979, rel=1e-4)  # log(1 + 10 · .5 / .5)
    assert row["label_times_classes"] == pytest.approx(5.5)


def test_the_page_holds_the_tables_and_pictures_that_its_csv_files_make(tmp_path):
    shutil.copytree(ablations.OUT, tmp_path / "ablations")
    committed = PAGE.read_text(encoding="utf-8")
    page = tmp_path / "ablations.md"
    page.write_text(committed, encoding="utf-8")
    for name in tables.TABLES:
        put(page, name, tables.COMMAND, "")
    assert page.read_text(encoding="utf-8").count("\n") < committed.count("\n")
    said = call(ablations.main, "--report_only", "--out", tmp_path / "ablations")
    assert page.read_text(encoding="utf-8") == committed
    for path in map(Path, said.splitlines()[:-1]):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 120_000
        assert f"](ablations/{path.name})" in committed


def test_packs_that_are_broken_or_have_no_clean_validation_images_are_refused(tmp_path):
    write_pack(tmp_path / "none.pack", tiny())
    write_pack(tmp_path / "seen.pack", with_val(tiny()))
    for name, said in (
        ("none.pack", "none.pack holds no validation images"),
        ("seen.pack", "may have seen the validation images"),
        ("nowhere", "nowhere does not exist"),
    ):
        words = ("--out", tmp_path / "ablations", "--packs", tmp_path / name)
        assert said in refusal(ablations.main, *words)
    assert not (tmp_path / "ablations").exists()


def test_packs_of_one_network_and_ratio_are_told_apart(pack, tmp_path):
    shutil.copy(pack, tmp_path / "other.pack")
    names = [bench.name for bench in ablations.open_benches([pack, tmp_path / "other.pack"])]
    assert names == ["resnet8 IR=50 (digits.pack)", "resnet8 IR=50 (other.pack)"]


def test_a_page_keeps_what_stands_around_its_tables_and_needs_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: make a -->\nold\n<!-- end of a -->\nafter\n")
    put(page, "a", "make a", "new | 1\n")
    assert page.read_text() == "before\n<!-- a: make a -->\nnew | 1\n<!-- end of a -->\nafter\n"
    with pytest.raises(UserError, match="lacks the lines"):
        put(page, "b", "make b", "new\n")


def test_the_table_of_costs_is_the_one_that_is_computed():
    assert "\n".join(scale.rows()) in scale.PAGE.read_text(encoding="utf-8")


def test_every_way_to_choose_the_epoch_is_what_a_run_of_its_own_reports(pack, tmp_path):
    words = ("--method", "los,crt,la", "--budget", "source", "--finetune_lr", "0.5", "--finetune_epoch", "6")
    found = {}
    for select in ("last", "test"):
        root = tmp_path / select
        run_stage2(root, "--features", pack, "--seeds", "0,1", "--select", select, *words)
        folder = run_folder(root, "stage2")
        found[select] = read_table(folder).query("method != 'stage1'").set_index("method")
    (tmp_path / "plain").symlink_to(folder.parent.parent)
    made = points.rows(tmp_path).query("method != 'stage1'")
    assert set(made["views"]) == {"plain"} and set(made["batch_norm"]) == {"eval"}
    for (method, way), own in made.groupby(["method", "chosen"]):
        if way != "val":
            assert len(own) == (1 if method == "la" else 2)
            assert own["overall"].mean() == pytest.approx(found[way]["overall"][method])
    assert len(set(made.query("method == 'los'")["epoch"])) > 1


@pytest.mark.parametrize("network", ["resnet32", "resnet34"])
def test_the_table_of_where_the_points_come_from_is_that_of_its_csv_file(tmp_path, network):
    page = tmp_path / "methods.md"
    page.write_bytes(points.ROOT.joinpath("docs", "methods.md").read_bytes())
    put(page, f"points of {network}", f"{points.COMMAND} --network {network}", "")
    call(points.main, "--network", network, "--cells", "--out", tmp_path, "--page", page)
    assert page.read_bytes() == points.ROOT.joinpath("docs", "methods.md").read_bytes()


@pytest.mark.long
def test_every_method_on_own_features_is_a_row_and_is_not_run_again(tmp_path):
    words = ("--sets", "digits", "--out", tmp_path, "--csv", tmp_path / "made.csv")
    call(own_features.main, *words)
    made = (tmp_path / "made.csv").read_text()
    assert made.startswith("method,digits\n") and made.count("\n") == 1 + len(METHODS)
    (run,) = tmp_path.glob("digits/*_stage2/*")
    call(own_features.main, *words)
    assert [*tmp_path.glob("digits/*_stage2/*")] == [run] and (tmp_path / "made.csv").read_text() == made
