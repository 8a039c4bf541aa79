"""Many heads over one representation: alone or among others, class-balanced order, divergence, selection."""

import pytest
import torch

import main_stage2
from losses import class_balanced, max_norm_limit
from models.heads.los_path import los_path_lr, path_strength
from tests.helpers import last_line, places, refusal, run_evaluate, run_folder, run_stage2
from tests.stage2 import frozen_features, read_table, result_lines, same_state, settle, trained
from utils.base.seeding import balanced_order
from utils.engine.loop import cosine_lr
from utils.features.frozen import Representation
from utils.heads.epochs import stacks_of, start_heads
from utils.heads.head import HeadRun
from utils.heads.outcome import outcome, outcomes
from utils.heads.plan import plan_heads
from utils.heads.stack import Stack, run_epoch
from utils.run import checkpoint
from utils.run.checkpoint import Checkpoint
from utils.settings.methods import METHODS

TRAINED = [name for name, method in METHODS.items() if method.trained]


@pytest.fixture(scope="module")
def frozen(digits) -> Representation:
    """Three augmented views, reused in turn."""
    return frozen_features(digits, "--views", "3")


@pytest.fixture(scope="module")
def together(digits, frozen) -> dict[tuple[str, int], HeadRun]:
    """Every method for 3 epochs with two seeds, all in one run, by method and seed."""
    config = settle(digits, "--method", "all", "--finetune_epoch", "3", "--seeds", "0,1")
    return {(head.plan.method.name, head.plan.seed): head for head in trained(config, frozen)}


# ---- alone and among others


@pytest.mark.parametrize("name", TRAINED)
def test_a_head_among_others_has_the_bits_of_the_same_head_alone(digits, frozen, together, name):
    config = settle(digits, "--method", name, "--finetune_epoch", "3")
    among, other = together[name, 1], together[name, 0]
    assert not among.failed and among.progress.epoch == 3
    [alone] = trained(config, frozen, [among.plan])
    assert same_state(alone, among) and alone.progress.rows == among.progress.rows
    assert alone.lr == among.lr
    assert not same_state(HeadRun(among.plan, frozen, config), among)
    assert not same_state(other, among) and not other.failed


def test_the_script_publishes_the_same_head_whatever_runs_beside_it(tmp_path, digits):
    def published(methods: str) -> Checkpoint:
        start = ("--pretrained_pth", digits.stage1, "--finetune_epoch", "2", "--seed", "0", "--quiet")
        run_stage2(tmp_path / methods, *start, "--method", methods)
        return checkpoint.read(tmp_path / methods / digits.stage2.relative_to(digits.root))

    one, other = published("label_aware"), published("label_aware,crt,ncm")
    assert one.facts["method"] == other.facts["method"] == "label_aware"
    for key in ("head", "head_state", "progress", "setting"):
        ours, theirs = ({"": file.facts.get(key)} for file in (one, other))
        assert checkpoint.content_digest(ours) == checkpoint.content_digest(theirs)
    assert checkpoint.content_digest(one.state) == checkpoint.content_digest(other.state)


# ---- class-balanced order


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    """305 labels in mixed order, 110 down to 2 a class."""
    counts = torch.tensor([110, 71, 46, 29, 19, 12, 8, 5, 3, 2])
    in_order = torch.arange(10).repeat_interleave(counts)
    return in_order[torch.randperm(305, generator=torch.Generator().manual_seed(0))]


def test_a_balanced_order_draws_every_class_equally_often_and_every_image_of_a_class_too(labels):
    epochs = 100
    drawn = torch.stack([balanced_order(0, epoch, labels, 10) for epoch in range(epochs)])
    assert drawn.shape == (epochs, 305) and drawn.dtype == torch.int64
    by_class = labels[drawn].flatten().bincount(minlength=10).double()
    expected = epochs * 305 / 10
    assert ((by_class - expected).square() / expected).sum() < 27.9  # chi-square, 9 degrees: p = .001
    by_image = drawn.flatten().bincount(minlength=305).double()
    assert by_image.min() > 0
    for label in range(10):
        found = by_image[labels == label]
        deviation = (found - found.mean()).square().sum() / found.mean()
        freedom = len(found) - 1
        assert deviation < freedom + 4 * (2 * freedom) ** 0.5


def test_a_balanced_order_draws_with_replacement_and_reaches_every_class_in_each_epoch(labels):
    for epoch in range(5):
        order = balanced_order(3, epoch, labels, 10)
        assert len(order.unique()) < 305
        counts = labels[order].bincount(minlength=10)
        assert counts.min() >= 10 and counts.max() <= 60  # 30.5 on average, deviation 5.2


def test_a_balanced_order_depends_on_seed_and_epoch_alone(labels):
    first = balanced_order(0, 1, labels, 10)
    torch.rand(3)
    assert torch.equal(balanced_order(0, 1, labels, 10), first)
    assert not torch.equal(balanced_order(1, 1, labels, 10), first)
    assert not torch.equal(balanced_order(0, 2, labels, 10), first)


def test_a_class_with_a_single_image_is_drawn_as_often_as_a_large_one():
    labels = torch.tensor([1] * 500 + [0])
    share = (balanced_order(0, 0, labels, 2) == 500).double().mean()
    assert 0.4 < share < 0.6


def test_methods_that_ask_for_balanced_sampling_get_it_and_the_others_see_each_image_once(digits, frozen):
    for name in TRAINED:
        config = settle(digits, "--method", name)
        stack = Stack([HeadRun(plan_heads(config)[0][-1], frozen, config)])
        seen = torch.cat([features[0] for features, _ in stack.batches(0, skip=0)])
        once = len(seen) == 305 and len(seen.unique(dim=0)) == len(frozen.train.of_epoch(0).unique(dim=0))
        assert once == (METHODS[name].sampler == "natural")


# ---- heads that end


def test_a_head_that_diverges_ends_alone_is_named_with_its_reason_and_the_rest_goes_on(tmp_path, digits):
    start = ("--pretrained_pth", digits.stage1, "--seed", "0", "--finetune_epoch", "3")
    text = run_stage2(tmp_path, *start, "--method", "los,ce,ncm", "--finetune_lr", "1e38,0.001")
    folder = run_folder(tmp_path, "stage2")
    warnings = [line for line in text.splitlines() if line.startswith("warning")]
    assert [line.partition(" ended: ")[0] for line in warnings] == [
        "warning: los (finetune_lr=1e+38 finetune_epoch=3 label_smooth=0.9)",
        "warning: ce (finetune_lr=1e+38 finetune_epoch=3)",
    ]
    assert all(line in (folder / "log.txt").read_text() for line in warnings)
    table = read_table(folder)
    assert table["failed"].notna().tolist() == [False] * 4 + [True] * 2
    for row, line in zip(table[4:].itertuples(), warnings, strict=True):
        assert "finetune_lr=1e+38" in row.setting and row.n == 0 and row.overall != row.overall
        assert row.failed == line.partition(" ended: ")[2] and "the loss is" in row.failed
        assert f"failed: {row.failed}" in (folder / "table.md").read_text()
    lines = result_lines(text)
    told = [(line["method"], line.get("finetune_lr")) for line in lines]
    assert told == [("ce", None), ("ncm", None), ("los", None)]
    assert last_line(run_evaluate(tmp_path, "--cur_stage", "stage2")).split()[1:] == [
        word for word in last_line(text).split()[1:] if not word.startswith("method=")
    ]
    start = (*start, "--method", "los", "--finetune_lr", "0.001")
    alone = run_stage2(tmp_path / "alone", *start)
    assert result_lines(alone)[0].items() <= lines[-1].items()


def test_a_head_that_cannot_start_ends_alone_too(tmp_path, digits):
    start = ("--pretrained_pth", digits.stage1, "--finetune_epoch", "1")
    text = run_stage2(tmp_path, *start, "--method", "los,ncm", "--label_smooth", "0", "--path", "2")
    head = "los (finetune_epoch=1 label_smooth=0 path=2)"
    assert f"warning: {head} ended: --path has no meaning at δ = 0" in text
    assert [line.get("method") for line in result_lines(text)] == [None]
    assert checkpoint.read(tmp_path / digits.stage2.relative_to(digits.root)).facts["method"] == "ncm"


def test_a_run_whose_every_head_diverged_is_refused_and_publishes_nothing(tmp_path, digits):
    start = ("--dataset", "digits_lt", *places(tmp_path), "--pretrained_pth", digits.stage1)
    message = refusal(main_stage2.main, *start, "--method", "los,ce", "--finetune_lr", "1e38")
    assert message.startswith("no method is left of 2 heads; los: the loss is")
    assert "lower learning rate" in message
    assert not (tmp_path / "ckpt").exists()


def test_weights_that_overflow_in_the_last_step_count_as_divergence(digits):
    frozen = frozen_features(digits, "--val_source", "none", "--views", "0")
    argv = ("--val_source", "none", "--method", "ce,crt", "--finetune_lr", "1e39,0.1", "--batch_size", "305")
    heads = trained(settle(digits, *argv, "--finetune_epoch", "1"), frozen)
    finite = [all(value.isfinite().all() for value in head.head.state_dict().values()) for head in heads]
    assert finite == [True, False, True, False, True]
    assert [head.failed for head in heads] == [False, True, False, True, False]


# ---- what a head is trained with


def test_the_rows_of_wb_stay_within_their_limit_after_every_epoch_and_all_of_it_decays(digits, frozen):
    config = settle(digits, "--method", "wb", "--finetune_lr", "1")
    head = HeadRun(plan_heads(config)[0][-1], frozen, config)
    norms = frozen.fc.weight.detach().norm(dim=1)
    limit = float(norms.min() + 0.1 * (norms.max() - norms.min()))
    assert max_norm_limit(frozen.fc.weight, 0.1) == pytest.approx(limit) and (norms > limit).sum() > 2
    for epoch in range(4):
        run_epoch([head], epoch, [])
        after = head.head.weight.norm(dim=1)
        assert after.max() <= limit * (1 + 1e-6) and after.min() > 0 and not head.failed
    assert head.plan.wd == 0.1 and head.momentum.keys() == {"weight", "bias"}


def test_losses_and_priors_count_the_images_that_train_and_shot_groups_those_of_the_data_set(digits):
    heldout = ("--val_source", "heldout", "--val_fraction", "0.2")
    frozen = frozen_features(digits, *heldout, "--views", "0")
    assert frozen.class_counts == [110, 71, 46, 29, 19, 12, 8, 5, 3, 2]
    assert frozen.train_counts == frozen.train.labels.bincount().tolist() and frozen.train_counts[0] < 100
    argv = (*heldout, "--method", "cb,la", "--finetune_epoch", "1", "--beta", "0.99")
    _, cb, la = trained(settle(digits, *argv), frozen)
    assert torch.equal(cb.loss_fn.weights, class_balanced(frozen.train_counts, 0.99).weights)
    assert not torch.allclose(cb.loss_fn.weights, class_balanced(frozen.class_counts, 0.99).weights)
    shares = torch.tensor(frozen.train_counts) / sum(frozen.train_counts)
    torch.testing.assert_close(la.head.adjustment, shares.log())
    figures = outcome(cb).figures
    assert figures["many"] == figures["classes"]["accuracy"][0]  # 110 images in the data set, 88 that train


def test_a_path_sets_the_learning_rate_of_los_and_the_control_takes_it_over(digits, frozen):
    config = settle(digits, "--method", "los,ce,los_step", "--path", "1.5", "--finetune_epoch", "7")
    _, los, ce, step = trained(config, frozen)
    features, labels = frozen.train.plain(), frozen.train.labels
    schedule = 5 * sum(cosine_lr(1.0, epoch, 7) for epoch in range(7))
    lr = los_path_lr(path_strength(1.5, features, labels, 10), 0.9, schedule, 0.9)
    assert los.lr == pytest.approx(lr) and ce.lr == los.lr
    assert los.progress.rows[0]["lr"] == los.lr
    assert step.head.strength == pytest.approx(path_strength(1.5, features, labels, 10))


def test_the_path_of_a_setting_does_not_depend_on_the_others_of_its_sweep(digits, frozen):
    """δ = 0 has no path of its own: it may fail or take over a δ, but not by the order of the values."""

    def rates(deltas: str) -> dict[float, float | str]:
        argv = ("--label_smooth", deltas, "--path", "2", "--finetune_epoch", "1")
        heads = trained(settle(digits, *argv), frozen)[1:]
        return {head.plan.options["label_smooth"]: head.failure or head.lr for head in heads}

    assert rates("0.9,0.5,0") == rates("0,0.5,0.9") == rates("0.5,0.9,0")


def test_an_epoch_that_is_cut_off_counts_in_the_seconds_of_its_head(digits, frozen):
    config = settle(digits, "--finetune_epoch", "2")
    los = start_heads(plan_heads(config)[0], frozen, ["val"], config)[-1]
    saved = []

    def after_step() -> None:
        saved.append(los.state()["seconds"])
        if los.step == 3:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_epoch([los], 0, ["val"], after_step)
    assert len(saved) == 3 and 0 < saved[0] < saved[1] < saved[2] < los.seconds


def test_cached_plain_and_fresh_views_train_on_what_they_say(digits):
    def state(*views: str) -> HeadRun:
        frozen = frozen_features(digits, *views)
        return trained(settle(digits, *views, "--finetune_epoch", "3"), frozen)[-1]

    fresh, three, one, plain = state(), state("--views", "3"), state("--views", "1"), state("--views", "0")
    assert same_state(fresh, three)
    assert not any(same_state(a, b) for a, b in ((fresh, one), (one, plain), (fresh, plain)))


def test_fresh_views_come_in_turn_after_twenty_where_a_head_has_more_epochs(digits):
    few, many = (frozen_features(digits, epochs=epochs).train for epochs in (20, 21))
    assert torch.equal(few.of_epoch(19), many.of_epoch(19))
    assert torch.equal(many.of_epoch(20), many.of_epoch(0))
    assert not torch.equal(few.of_epoch(20), few.of_epoch(0))


def test_drifting_batch_norm_trains_one_head_and_scores_what_the_backbone_has_become(digits):
    drift = ("--bn_mode", "train", "--finetune_epoch", "2")
    frozen = frozen_features(digits, *drift)
    before = frozen.part("test").clone()
    los = trained(settle(digits, *drift), frozen)[-1]
    steady = trained(settle(digits, *drift), frozen_features(digits))[-1]
    assert not los.failed and los.progress.epoch == 2 and not same_state(los, steady)
    after = frozen.part("test")
    assert not torch.equal(before, after)
    with torch.no_grad():
        predicted = los.head(after[0]).argmax(dim=1)
    assert torch.equal(outcome(los).predicted, predicted)


def test_heads_that_share_a_drifting_backbone_are_to_the_bit_those_that_have_it_alone(digits):
    """Of two samplers and seeds, with epochs of their own: each is scored by its own statistics."""
    words = ("--bn_mode", "train")
    together = ("--method", "los,ce,wb,crt,la", "--seeds", "0,1", *words)
    heads = trained(settle(digits, *together), frozen_features(digits, *together))
    assert [len(stack) for stack in stacks_of(heads)] == [3, 3, 1, 1, 1]
    for head, shared in zip(heads, outcomes(heads), strict=True):
        own = ("--method", head.plan.method.name, "--budget", "source", *words)
        config = settle(digits, *own, "--seeds", head.plan.seed)
        [alone] = trained(config, frozen_features(digits, *own))
        [single] = outcomes([alone])
        assert same_state(head, alone)
        assert torch.equal(shared.predicted, single.predicted) and shared.figures == single.figures
        assert shared.train_groups == single.train_groups


def test_wb_crt_and_lws_step_their_cosine_before_the_first_epoch_but_not_before_the_only_one(digits):
    def rates(method: str, epochs: int) -> list[float]:
        config = settle(digits, "--method", method, "--finetune_lr", "0.4", "--finetune_epoch", epochs)
        return [row["lr"] for row in trained(config, frozen_features(digits))[-1].progress.rows]

    for method in ("wb", "crt", "lws"):
        assert rates(method, 3) == pytest.approx([0.3, 0.1, 0])
        assert rates(method, 1) == [0.4]
    assert rates("los", 3) == pytest.approx([0.4, 0.3, 0.1])
