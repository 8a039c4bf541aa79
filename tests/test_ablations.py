"""docs/ablations.md: its rows are heads of the ordinary path, its tables come from the csv files alone."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from utils.heads.crew import Crew

from docs import ablation_tables, ablations
from docs.ablation_statements import STATEMENTS, statement_rows, verdict
from docs.pages import put
from tests.helpers import call, refusal, run_folder, run_stage2
from tests.stage2 import read_table
from tests.test_pack_runs import save_pack
from tests.test_packs import tiny, with_val
from utils.base.errors import UserError, exit_cleanly
from utils.packs.pack import write_pack

MEASURED = ("packs", "heads", "gains", "methods")
PAGE = ablations.OUT.with_name("ablations.md")


@pytest.fixture(scope="module")
def pack(tmp_path_factory, digits) -> Path:
    """The digits' plain features; read-only for the tests."""
    return save_pack(tmp_path_factory.mktemp("pack"), digits.stage1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pack) -> ablation_tables.Tables:
    """The csv files of the whole command on that pack; read-only."""
    folder = tmp_path_factory.mktemp("made") / "ablations"
    call(ablations.main, "--packs", pack, "--out", folder)
    return ablation_tables.read(folder)


def same_accuracies(row: pd.Series, other: pd.Series, prefix: str = "test_", scale: float = 100) -> None:
    for name in ("overall", "many", "medium", "few", "balanced"):
        assert row[f"{prefix}{name}"] == pytest.approx(scale * other[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--method", "los", "--label_smooth", "0.5"), {"label_smooth": 0.5}),
        (("--method", "los", "--finetune_lr", "5e-4", "--finetune_epoch", "5"), {"lr": 5e-4, "epochs": 5}),
        (("--method", "ce"), {"label_smooth": 0.0}),
        (("--method", "stage1,la"), {"method": "stage1"}),
    ],
    ids=["a δ of the sweep", "a cell of the grid", "the control is cross-entropy", "stage 1"],
)
def test_a_row_of_the_heads_is_the_head_that_stage_2_trains(tmp_path, pack, made, words, wanted):
    run_stage2(tmp_path, "--features", pack, "--seed", "0", *words)
    table = read_table(run_folder(tmp_path, "stage2"))
    other = table[table["method"] == words[1].split(",")[0]].iloc[0]
    rows = made["heads"]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    same_accuracies(rows.iloc[0], other)
    for metric in ("loma", "rsd"):
        assert rows.iloc[0][f"test_{metric}_per_sample_all"] == pytest.approx(other[metric], rel=1e-4)


def test_a_row_of_the_methods_is_the_head_that_stage_2_trains(tmp_path, pack, made):
    run_stage2(tmp_path, "--features", pack, "--seed", "0", "--method", "lws")
    other = read_table(run_folder(tmp_path, "stage2")).set_index("method").loc["lws"]
    row = made["methods"].set_index("method").loc["lws"]
    same_accuracies(row, other, prefix="", scale=1)


def test_the_chosen_setting_is_the_best_on_validation_and_test_has_no_say(made):
    heads, chosen = made["heads"], made["gains"].set_index("chosen_by").loc["validation"]
    candidates = heads[heads["label_smooth"] > 0]
    assert chosen["val_los"] == candidates["val_balanced"].max()
    own = candidates[
        (candidates["label_smooth"] == chosen["label_smooth"])
        & (candidates["lr"] == chosen["lr"])
        & (candidates["epochs"] == chosen["epochs"])
    ].iloc[0]
    assert (own["val_balanced"], own["test_balanced"]) == (chosen["val_los"], chosen["test_los"])
    assert chosen["test_minus_ce"] == pytest.approx(chosen["test_los"] - chosen["test_ce"], abs=1e-3)


def test_the_gap_and_the_label_of_the_true_class_belong_to_the_delta(made):
    row = made["heads"].query("study == 'delta' and label_smooth == 0.5").iloc[0]
    assert row["logit_gap"] == pytest.approx(2.3979, rel=1e-4)  # log(1 + 10 · .5 / .5)
    assert row["label_times_classes"] == pytest.approx(5.5)


def test_the_page_holds_the_tables_that_its_csv_files_make(tmp_path):
    shutil.copytree(ablations.OUT, tmp_path / "ablations")
    committed = PAGE.read_text(encoding="utf-8")
    (tmp_path / "ablations.md").write_text(committed, encoding="utf-8")
    for name in ablation_tables.TABLES:
        put(tmp_path / "ablations.md", name, ablation_tables.COMMAND, "")
    assert (tmp_path / "ablations.md").read_text(encoding="utf-8").count("\n") < committed.count("\n")
    call(ablations.main, "--report_only", "--out", tmp_path / "ablations")
    assert (tmp_path / "ablations.md").read_text(encoding="utf-8") == committed


def test_the_figures_on_the_statements_are_those_that_the_other_csv_files_make(tmp_path):
    tables = ablation_tables.read(ablations.OUT, MEASURED)
    ablations.write_csv(tmp_path / "statements.csv", pd.DataFrame(statement_rows(tables)))
    committed = ablation_tables.read(ablations.OUT, ("statements",))["statements"]
    found = ablation_tables.read(tmp_path, ("statements",))["statements"]
    pd.testing.assert_frame_equal(found, committed, rtol=1e-3)


def test_the_pictures_are_there_and_small():
    for name in ("delta", "grid", "gain", "balance", "size"):
        picture = ablations.OUT / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 120_000
        assert f"](ablations/{name}.png)" in PAGE.read_text(encoding="utf-8")


def test_a_pack_without_validation_images_or_with_seen_ones_is_refused(tmp_path):
    write_pack(tmp_path / "none.pack", tiny())
    write_pack(tmp_path / "seen.pack", with_val(tiny()))
    words = ("--out", tmp_path / "ablations", "--packs")
    assert "none.pack holds no validation images" in refusal(ablations.main, *words, tmp_path / "none.pack")
    assert "may have seen the validation images" in refusal(ablations.main, *words, tmp_path / "seen.pack")
    assert not (tmp_path / "ablations").exists()


def test_an_unknown_pack_is_one_line_and_status_2(tmp_path, capsys):
    words = ["--packs", str(tmp_path / "nowhere"), "--out", str(tmp_path / "ablations")]
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: ablations.main(words))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'} does not exist\n"


def test_released_packs_are_found_by_their_names(tmp_path):
    names = ["a/x_features.safetensors", "b/y_features.safetensors"]
    for name in [*names, "b/z_stage1.pth", "a/x_features.safetensors.bak"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = [tmp_path / "a" / "x_features.safetensors", tmp_path / "b" / "y_features.safetensors"]
    assert ablations.released_packs(tmp_path) == wanted


def test_packs_of_one_network_and_ratio_are_told_apart(pack, tmp_path):
    shutil.copy(pack, tmp_path / "other.pack")
    names = [bench.name for bench in ablations.open_benches([pack, tmp_path / "other.pack"], Crew(1))]
    assert names == ["resnet8 IR=50 (digits.pack)", "resnet8 IR=50 (other.pack)"]


def test_a_page_keeps_what_stands_around_its_tables_and_needs_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: make a -->\nold\n<!-- end of a -->\nafter\n")
    put(page, "a", "make a", "new\n")
    assert page.read_text() == "before\n<!-- a: make a -->\nnew\n<!-- end of a -->\nafter\n"
    with pytest.raises(UserError, match="lacks the lines"):
        put(page, "b", "make b", "new\n")


def even_heads(accuracies: list[float]) -> pd.DataFrame:
    """Heads of LOS with one LoMa for all groups, larger from head to head, and these accuracies."""
    rows = []
    for size, accuracy in enumerate(accuracies, start=1):
        row = {"pack": "p", "setting": f"{size}", "label_smooth": 0.9, "test_balanced": accuracy}
        row |= {f"test_loma_per_sample_{name}": size for name in ("all", "many", "medium", "few")}
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("accuracies", "holds"),
    [([5, 4, 3, 2, 1], True), ([1, 2, 3, 4, 5], False), ([3, 5, 1, 4, 2], False), ([4, 3, 2, 1], None)],
)
def test_a_smaller_loma_helps_where_accuracy_falls_with_it_in_enough_even_heads(accuracies, holds):
    small = next(one for one in STATEMENTS if one.name == "small")
    [(pack, found, _)] = small.find({"heads": even_heads(accuracies)})
    assert (pack, found) == ("p", holds)


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ([True, True], "confirmed"),
        ([False, False], "not confirmed"),
        ([True, False], "confirmed on 1 of 2 packs"),
        ([True, None], "confirmed; not testable on 1"),
        ([None], "not testable"),
    ],
)
def test_a_verdict_counts_the_packs(holds, told):
    assert verdict(pd.Series(holds, dtype=object)) == told
