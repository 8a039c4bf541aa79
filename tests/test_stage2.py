"""The stage-2 script with every method: what it publishes, what it selects, what it reports."""

import pandas as pd
import pytest
import torch

from datasets import build_data
from models import build_model
from tests.helpers import last_line, read_metrics, read_summary, run_evaluate, run_folder, run_stage2
from tests.stage2 import frozen_features, published, read_table, result_lines, settle, trained
from utils.heads.head import HeadRun
from utils.heads.outcome import choose, outcome
from utils.run import checkpoint
from utils.settings.methods import METHODS

# options away from what a head is made with
UNUSUAL = {
    "etf": ("--scale", "11"),
    "ldam": ("--scale", "12"),
    "la": ("--tau", "0.6"),
    "tau_norm": ("--tau", "1.7"),
}

# ---- publishing


@pytest.mark.parametrize("name", METHODS)
def test_a_published_head_is_what_evaluate_and_a_plain_load_make_of_it(tmp_path, digits, name):
    trained_words = ("--finetune_epoch", "2", "--finetune_lr", "0.02")  # far enough from stage 1
    words = (*(trained_words if METHODS[name].trained else ()), *UNUSUAL.get(name, ()))
    line = last_line(
        run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--seed", "0", *words, "--method", name)
    )
    said = run_evaluate(tmp_path, "--cur_stage", "stage2", "--predictions", tmp_path / "p.csv")
    assert last_line(said) == line and (name != "stage1" or line == last_line(digits.stage1_text))
    ours, theirs = (
        read_summary(run_folder(tmp_path, kind))["test"] for kind in ("stage2", "evaluate_stage2")
    )
    for key in ("balanced", "top5", "calibration_error", "loma_per_sample", "rsd_per_sample"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    before = checkpoint.read(digits.stage1)
    path = tmp_path / digits.stage2.relative_to(digits.root)
    after = checkpoint.read(path)
    kind = METHODS[name].head
    kind = "linear" if kind in ("los_step", "samn", "logreg") else kind
    assert after.facts["head"]["kind"] == kind and after.facts["method"] == name
    assert after.facts["stage1_digest"] == before.identity
    same = {key for key, value in after.state.items() if torch.equal(before.state[key], value)}
    moved = before.state.keys() - same
    assert moved <= {"fc.weight", "fc.bias"} and bool(moved) == (name != "stage1")
    assert ("head_state" in after.facts) == (kind != "linear")

    # as docs/tutorial.md teaches; a head whose logits are not affine in the features has no fc
    model = build_model("resnet8", num_classes=10, in_channels=1).eval()
    weights = torch.load(path, weights_only=True)["model"]
    if name in ("ncm", "ldam", "disalign", "etf"):
        with pytest.raises(RuntimeError, match=r"Missing key.*fc\.weight.*fc\.bias"):
            model.load_state_dict(weights)
        return
    model.load_state_dict(weights)
    images = (build_data("digits_lt", imb_ratio=50).test.images / 255 - 0.3) / 0.37
    with torch.no_grad():
        found = model(images).argmax(dim=1).tolist()
        model.load_state_dict(before.state)
        from_stage1 = model(images).argmax(dim=1).tolist()
    assert found == pd.read_csv(tmp_path / "p.csv")["predicted"].tolist()
    assert (found == from_stage1) == (name == "stage1")


def test_pictures_are_drawn_where_several_heads_are_named(tmp_path, digits, every_picture):
    start = ("--pretrained_pth", digits.stage1, "--finetune_epoch", "1", "--seed", "0")
    text = run_stage2(tmp_path, *start, "--method", "ce,stage1")
    folder = run_folder(tmp_path, "stage2")
    pictures = {path.name for path in (folder / "plots").iterdir()}
    assert {"accuracy.png", "loma.png", "rsd.png", "balance.png"} <= pictures
    assert f"table and {len(pictures)} pictures in {folder}" in text
    assert not (run_folder(digits.root, "stage2") / "plots").exists()
    assert f"python -m utils.plots {run_folder(digits.root, 'stage2')}" in digits.stage2_text


# ---- selection


def test_selection_on_validation_reports_the_best_epoch_and_says_so(tmp_path, digits):
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--select", "val", "--seed", "0")
    folder = run_folder(tmp_path, "stage2")
    rows, summary = read_metrics(folder).query("method == 'los'"), read_summary(folder)
    best = rows.loc[rows["val_balanced"].idxmax()]
    assert summary["epoch"] == best["epoch"] and summary["selected_on"] == "val"
    assert summary["setting"] == best["setting"]
    assert result_lines(text)[-1]["selected_on"] == "val"
    assert last_line(run_evaluate(tmp_path, "--cur_stage", "stage2")) == last_line(text)
    assert "test_overall" not in rows and "chosen on the test set" not in text


@pytest.fixture(scope="module")
def on_validation(tmp_path_factory, digits) -> tuple:
    """A run over two seeds in which validation chooses among candidates; its text and its folder."""
    root = tmp_path_factory.mktemp("selected")
    argv = ("--method", "los,la,ncm,crt", "--seeds", "0,1", "--finetune_epoch", "3", "--select", "val")
    text = run_stage2(root, "--pretrained_pth", digits.stage1, *argv, "--tau", "0,0.5,1,1.5")
    return text, run_folder(root, "stage2")


def test_validation_chooses_of_each_method_the_setting_that_is_best_on_average_over_the_seeds(on_validation):
    _, folder = on_validation
    search, table = read_table(folder, "search"), read_table(folder)
    for method, rows in search.groupby("method"):
        means = rows.groupby("setting", sort=False)["score"].mean()
        chosen = rows[rows["chosen"]]
        assert set(chosen["setting"]) == {means.idxmax()}
        assert len(chosen) == rows["seed"].nunique() == (2 if method in ("los", "crt") else 1)
        assert table.query("method == @method")["setting"].tolist() == [means.idxmax()]
    first = search.drop_duplicates("method").set_index("method")["chosen"]
    assert not first["los"] and not first["la"]  # the first setting is not simply taken
    assert set(table["selected_on"]) == {"val"}


def test_the_score_of_a_head_is_its_best_epoch_on_validation_and_test_is_looked_at_once(on_validation):
    text, folder = on_validation
    search, metrics = read_table(folder, "search"), read_table(folder, "metrics")
    assert not [column for column in metrics if column.startswith("test_")]
    keys = ["method", "setting", "seed"]
    assert search[keys].values.tolist() == list(map(list, metrics.groupby(keys, sort=False).groups))
    means = metrics.groupby(["method", "setting", "epoch"], sort=False)["val_balanced"].mean()
    own = metrics.set_index([*keys, "epoch"])["val_balanced"]
    for row in search.itertuples():
        assert row.epoch == means[row.method, row.setting].idxmax(), "one epoch for all seeds"
        assert row.score == own[row.method, row.setting, row.seed, row.epoch]
    best = own.groupby(level=[0, 1, 2], sort=False).max().tolist()
    assert search["score"].tolist() != best, "each seed's own best epoch is another, or this shows nothing"
    scored = read_table(folder, "per_class")[keys].drop_duplicates()
    assert scored.values.tolist() == search[search["chosen"]][keys].values.tolist()
    lines = result_lines(text)
    named = [("los", "0"), ("los", "1"), ("la", None), ("ncm", None), ("crt", "0"), ("crt", "1")]
    chosen = search[search["chosen"] & (search["method"] != "stage1")]
    best = chosen.groupby("method", sort=False)["score"].mean().idxmax()
    lead = next(place for place, (method, _) in enumerate(named) if method == best)
    assert [(line["method"], line.get("seed")) for line in lines] == [
        *named[:lead],
        *named[lead + 1 :],
        named[lead],
    ]
    assert best != "los", "or publishing the best would be publishing the first"
    assert {line["selected_on"] for line in lines} == {"val"}


def test_the_table_of_a_selection_has_its_scores_and_says_which_method_to_take(on_validation):
    text, folder = on_validation
    search, table = read_table(folder, "search"), read_table(folder)
    scores = search[search["chosen"]].groupby("method")["score"].mean()
    assert table.set_index("method")["val_score"].to_dict() == pytest.approx(scores.to_dict())
    assert table["val_score"][1:].is_monotonic_decreasing and table["method"][0] == "stage1"
    [best] = table[table["p_best"].isna()]["method"]
    assert best == table["method"][1]
    [advice] = [line for line in text.splitlines() if line.startswith("Take ")]
    second = table.sort_values("val_score", ascending=False, kind="stable").iloc[1]
    excludes = second["minus_best_high"] < 0 or second["minus_best_low"] > 0
    apart = second["p_best_holm"] < 0.05 and excludes
    assert advice.startswith(f"Take {best} (")
    assert f"{second['method']} is next" in advice and ("not told apart" in advice) == (not apart)
    assert "Classes with two or fewer validation images: " not in text
    edges = table.set_index("method")["at_edge"].fillna("")
    tau = {row.method: row.setting for row in table.itertuples()}["la"]
    assert ("tau" in edges["la"]) == (tau in ("tau=0", "tau=1.5"))
    for row in table.itertuples():
        if edges[row.method]:
            [line] = [shown for shown in text.splitlines() if shown.startswith(f"  {row.method}: ")]
            assert line.count("!") == len(edges[row.method].split())


@pytest.mark.parametrize("publish", ["best", "first"])
def test_the_method_that_does_best_is_published_and_its_epoch_is_in_best_pth_or_the_first(
    tmp_path, digits, publish
):
    argv = ("--method", "ce,la,crt", "--seeds", "0,1", "--finetune_epoch", "3", "--views", "0")
    argv = (*argv, "--select", "val", "--publish", publish)
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *argv)
    folder = run_folder(tmp_path, "stage2")
    search = read_table(folder, "search").query("chosen and method != 'stage1'")
    wanted = search.groupby("method")["score"].mean().idxmax() if publish == "best" else "ce"
    assert publish == "first" or wanted != "ce"
    best, final = checkpoint.read(folder / "best.pth"), checkpoint.read(published(tmp_path))
    own = search[search["method"] == wanted].iloc[0]
    for facts in (best.facts, final.facts):
        assert (facts["method"], facts["setting"], facts["epoch"]) == (wanted, own["setting"], own["epoch"])
    assert checkpoint.content_digest(best.state) == checkpoint.content_digest(final.state)
    assert result_lines(text)[-1]["method"] == wanted
    figures = last_line(run_evaluate(tmp_path, "--cur_stage", "stage2")).split()
    assert figures[1:] == last_line(text).split()[-len(figures) + 1 :]


def test_the_best_epoch_is_scored_and_not_the_last(digits):
    argv = ("--finetune_lr", "0.005", "--finetune_epoch", "6", "--select", "test", "--views", "0")
    los = trained(settle(digits, *argv), frozen_features(digits, *argv))[-1]
    accuracies = [row["test_overall"] for row in los.progress.rows]
    assert los.chosen_epoch == 1 + accuracies.index(max(accuracies)) < 6
    assert max(accuracies) > accuracies[-1]
    assert outcome(los).figures["overall"] == max(accuracies)


def test_the_tables_show_the_epoch_that_was_chosen_and_best_pth_is_of_the_setting_that_was(tmp_path, digits):
    rates = ("--finetune_lr", "0.000001,0.01,0.02", "--finetune_epoch", "6", "--views", "0")
    argv = ("--method", "los,crt", "--seeds", "0,1", "--select", "val", "--publish", "first", *rates)
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *argv)
    folder = run_folder(tmp_path, "stage2")
    table = read_table(folder).set_index("method")
    chosen = table.loc[["los", "crt"], "chosen_epoch"].tolist()
    assert min(chosen) < 6, "an epoch that is not the last, or this shows nothing"
    for shown in (text, (folder / "table.md").read_text()):
        for name, epoch in zip(("los", "crt"), chosen, strict=True):
            starts = (f"| {name} |", f"  {name}: ")
            [row] = [line for line in shown.splitlines() if line.startswith(starts)]
            assert f" epoch={epoch}/6" in row, row
        assert "was chosen, by the mean over the seeds" in shown and "see search.csv" in shown
    search = read_table(folder, "search").query("chosen and method != 'stage1'")
    firsts = search.drop_duplicates("method").set_index("method")["epoch"]
    assert firsts.loc[["los", "crt"]].tolist() == chosen
    best, final = checkpoint.read(folder / "best.pth"), checkpoint.read(published(tmp_path))
    assert "finetune_lr=1e-06" not in final.facts["setting"]
    assert (best.facts["setting"], best.facts["epoch"]) == (final.facts["setting"], chosen[0])
    assert checkpoint.content_digest(best.state) == checkpoint.content_digest(final.state)


@pytest.fixture
def searched(digits) -> list[HeadRun]:
    """Learning rates around that of ce, with two seeds; the stage-1 head before them."""
    argv = ("--method", "ce", "--seeds", "0,1", "--finetune_epoch", "2", "--select", "val")
    return trained(settle(digits, *argv), frozen_features(digits, "--views", "0"))


def test_a_setting_is_chosen_by_its_mean_over_the_seeds_the_first_of_equals(searched):
    _, *heads = searched
    for head in heads:
        head.progress.best_score = 0.5
    assert choose(searched, "val")[1:] == heads[:2]
    heads[2].progress.best_score = 0.7  # the best seed of all, but not the best pair
    heads[3].progress.best_score = 0.4
    heads[4].progress.best_score = heads[5].progress.best_score = 0.6
    assert choose(searched, "val") == [searched[0], *heads[4:6]]


def test_a_setting_with_a_failed_seed_is_not_chosen(searched):
    _, first, second = choose(searched, "val")
    assert first.plan.setting == second.plan.setting and {first.plan.seed, second.plan.seed} == {0, 1}
    second.failure = "the loss is inf"
    _, *others = choose(searched, "val")
    assert len(others) == 2 and all(other.plan.setting != first.plan.setting for other in others)
    assert choose(searched, "last") == [head for head in searched if head is not second]


def test_the_published_protocol_chooses_on_test_and_marks_every_line(tmp_path, digits):
    argv = ("--method", "los,crt,ncm", "--label_smooth", "0.5,0.9", "--finetune_epoch", "3", "--seed", "0")
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--select", "test", *argv)
    lines, folder = result_lines(text), run_folder(tmp_path, "stage2")
    assert [line["method"] for line in lines] == ["crt", "ncm", "los"]
    assert {line["selected_on"] for line in lines} == {"test"}
    table, metrics = read_table(folder), read_table(folder, "metrics")
    assert set(table["selected_on"]) == {"test"} and table["method"].is_unique
    for row in table.itertuples():  # of each method the best of all settings and epochs
        assert row.overall == metrics.query("method == @row.method")["test_overall"].max()
    assert "chosen on the test images themselves (published protocol): optimistic" in text
    assert "chosen on the test set" in text


def test_without_selection_every_setting_is_reported_at_its_last_epoch(tmp_path, digits):
    argv = ("--method", "ce,la", "--finetune_lr", "0.1,0.001", "--tau", "1,2", "--finetune_epoch", "3")
    run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *argv)
    folder = run_folder(tmp_path, "stage2")
    table = read_table(folder)
    assert table["method"].value_counts().to_dict() == {"ce": 2, "la": 2, "stage1": 1}
    assert table.set_index("method")["chosen_epoch"]["ce"].tolist() == [3, 3]
    assert not (folder / "search.csv").exists() and set(table["selected_on"]) == {"last"}


def test_the_best_epoch_of_a_drifting_backbone_is_published_with_its_own_statistics(tmp_path, digits):
    start = ("--pretrained_pth", digits.stage1, "--seed", "0", "--bn_mode", "train", "--select", "test")
    line = last_line(run_stage2(tmp_path, *start, "--finetune_epoch", "6", "--finetune_lr", "0.03"))
    rows, summary = (read(run_folder(tmp_path, "stage2")) for read in (read_metrics, read_summary))
    best = rows.loc[rows["test_overall"].idxmax()]
    assert summary["epoch"] == best["epoch"] < len(rows) and summary["selected_on"] == "test"
    assert f"overall={rows['test_overall'].max():.2f}" in line
    assert last_line(run_evaluate(tmp_path, "--cur_stage", "stage2")) == line


def test_known_class_shares_correct_the_logits_in_the_table_and_in_evaluate(tmp_path, digits):
    argv = ("--finetune_epoch", "1", "--views", "0", "--seed", "0", "--target_prior", "known")
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *argv)
    evaluated = run_evaluate(tmp_path, "--cur_stage", "stage2", "--target_prior", "known")
    lines = [line for line in text.splitlines() if line.startswith("under other class shares")]
    assert len(lines) == 1 and lines[0] in evaluated.splitlines()
    los = read_table(run_folder(tmp_path, "stage2")).set_index("method").loc["los"]
    assert f"backward_50 {los.backward_50:.2f} > {los.backward_50_known:.2f}" in lines[0]
    assert (
        los.backward_50 != los.backward_50_known and 0 < los.calibration_error_scaled != los.calibration_error
    )
    assert "forward_2_known" not in read_table(run_folder(digits.root, "stage2"))
