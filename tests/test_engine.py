"""Epochs on the embedded digits: schedule, steps, losses, scores; prediction and frozen features."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F

import main_stage1
from datasets import ImageSet, build_data
from datasets.images.in_memory import DeviceImages
from losses import LOSSES, LabelOverSmooth
from models import build_model
from tests.helpers import call, read_metrics, refusal, run_folder, run_stage1, stopped_at_step
from utils.base.errors import UserError
from utils.base.seeding import epoch_order
from utils.engine.loop import Progress, cosine_lr, diverged, score_column, sgd, train_epoch
from utils.engine.scoring import predict
from utils.engine.step import DivergedError, TrainStep, training_loss
from utils.features.drifting import DriftingFeatures
from utils.features.logits import head_logits
from utils.features.views import FIRST_VIEW, TrainFeatures, eval_features
from utils.run import checkpoint
from utils.settings.config import resolve
from utils.settings.table import STAGE1

LOSS = LabelOverSmooth(0.9)
SHORT = ("--epochs", "2", "--seed", "0")
SOME = ("--epochs", "5", "--seed", "0", "--eval_every", "2")
SCORES = ["val_overall", "val_many", "val_medium", "val_few", "val_balanced"]


@pytest.fixture(scope="module")
def data():
    return build_data("digits_lt", imb_ratio=50)


@pytest.fixture(scope="module")
def train(data) -> DeviceImages:
    return DeviceImages(data.train, data.views)


@pytest.fixture(scope="module")
def test(data) -> DeviceImages:
    return DeviceImages(data.test, data.views)


@pytest.fixture(scope="module")
def trained(train) -> torch.nn.Module:
    """A resnet8 after two epochs, so that its batch-norm statistics mean something; copy it to change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet8", 10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = plain_sgd(model)
    model.train()
    for epoch in range(2):
        order = epoch_order(0, epoch, len(train))
        learn(model, train.augmented(order, 32, 0, epoch), optimizer, 0.05, LabelOverSmooth(0))
    return model


@pytest.fixture
def model(trained) -> torch.nn.Module:
    return copy.deepcopy(trained)


def learn(module, batches, optimizer, lr: float, loss_fn=LOSS) -> dict:
    return train_epoch(TrainStep(module, loss_fn, optimizer), batches, Progress(), lr)


def plain_sgd(module: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)


def state_of(module: torch.nn.Module) -> dict:
    return copy.deepcopy(module.state_dict())


def last(folder) -> checkpoint.Checkpoint:
    return checkpoint.read(folder / "last.pth")


def digest(folder, name: str = "last.pth") -> str:
    return checkpoint.content_digest(checkpoint.read(folder / name).state)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- the schedule ----


@pytest.mark.parametrize("epochs", [1, 2, 20])
def test_the_schedule_is_torchs_cosine_after_a_linear_warm_up_to_the_peak(epochs):
    optimizer = plain_sgd(torch.nn.Linear(1, 1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        for warm_up in (0, 3):
            rate = cosine_lr(1.0, epoch + warm_up, epochs + warm_up, warm_up)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert [cosine_lr(0.3, epoch, epochs + 3, 3) for epoch in range(3)] == pytest.approx([0.1, 0.2, 0.3])


# ---- training ----


def test_an_epoch_reports_the_mean_loss_and_accuracy_over_images(train, model):
    model.eval()
    frozen = sgd(model.parameters(), lr=0.0, momentum=0.0, weight_decay=0.0, nesterov=False)
    row = learn(model, train.batches(64), frozen, 0.0)  # 305 images: the last batch has 49
    logits = predict(model, train, mirror=False)
    assert row["train_loss"] == pytest.approx(float(LOSS(logits, train.labels)), rel=1e-5)
    hits = int((logits.argmax(1) == train.labels).sum())
    assert row["train_accuracy"] == hits / len(train) and 0 < hits < len(train)


def test_a_loss_that_is_not_finite_stops_before_its_update(train, model):
    batches = list(train.batches(32))
    poisoned = batches[1][0].clone()
    poisoned[3, 0, 4, 4] = math.inf
    reference = copy.deepcopy(model)
    steps = {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": False}
    optimizer, expected = sgd(model.parameters(), **steps), sgd(reference.parameters(), **steps)
    learn(reference.train(), batches[:1], expected, 0.1)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step 2"):
        learn(model.train(), [batches[0], (poisoned, batches[1][1]), *batches[2:]], optimizer, 0.1)
    assert same(dict(model.named_parameters()), dict(reference.named_parameters()))
    momenta = [[state["momentum_buffer"] for state in o.state.values()] for o in (optimizer, expected)]
    assert len(momenta[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_projects_sgd_follows_torchs_plain_one(train, model, nesterov):
    other = copy.deepcopy(model)
    options = {"momentum": 0.9, "weight_decay": 5e-3, "nesterov": nesterov}
    for module, optimizer in (
        (model, sgd(model.parameters(), lr=9.0, **options)),
        (other, torch.optim.SGD(other.parameters(), lr=9.0, foreach=False, fused=False, **options)),
    ):
        learn(module.eval(), train.batches(64), optimizer, 0.01)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_run_that_diverges_says_where_and_what_is_kept():
    line = str(diverged(DivergedError("the loss is nan at step 4"), 2))
    assert line.startswith("the loss is nan at step 4 in epoch 3: ") and "saved before is as it was" in line


# ---- the epochs of a run ----


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.2, 0.5, 0.4, 0.5, 0.1], [1, 2]),  # the earlier of equals
        ([0.0, 0.0], [1]),
        ([None, 0.3, None, 0.2, 0.4], [2, 5]),  # epochs that are not scored
        (None, []),
    ],
)
def test_the_best_epoch_is_the_first_of_the_highest_score(scores, best):
    progress, found = Progress(), []
    for epoch, score in enumerate(scores or [0.1, 0.2], start=1):
        progress.add(torch.tensor(1.0), torch.tensor(1), 2)
        if progress.record({"epoch": epoch, "score": score}, "score" if scores else None):
            found.append(epoch)
        assert (progress.epoch, progress.step, progress.images, progress.loss) == (epoch, 0, 0, 0)
    assert found == best
    expected = (best[-1], scores[best[-1] - 1]) if best else (None, None)
    assert (progress.best_epoch, progress.best_score) == expected
    assert Progress(**progress.as_dict()) == progress


def test_the_test_set_picks_an_epoch_only_where_it_is_asked_to():
    for has_val, column in ((True, "val_balanced"), (False, None)):
        assert score_column("last", has_val) == column and score_column("test", has_val) == "test_overall"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that scores every epoch, one that scores every second, and what it printed."""
    every, some = (tmp_path_factory.mktemp(name) for name in ("every", "some"))
    run_stage1(every, *SOME[:4])
    text = run_stage1(some, *SOME)
    return run_folder(every, "stage1"), run_folder(some, "stage1"), text


def test_epochs_that_are_not_scored_have_empty_cells_and_all_else_is_the_same(runs):
    every, some, text = runs
    full, ours = read_metrics(every), read_metrics(some)
    assert list(full) == list(ours) and set(SCORES) <= set(ours)
    empty = ours["epoch"].isin([1, 3])
    assert ours[SCORES].isna().all(axis=1).tolist() == empty.tolist()
    assert ours.drop(columns=SCORES).equals(full.drop(columns=SCORES))
    assert ours[~empty].equals(full[~empty]) and digest(some) == digest(every)
    lines = re.findall(r"^epoch \d/5, .*train \d.*eta.*$", text, flags=re.MULTILINE)
    scored = [bool(re.search(r", val [\d.]+ \([\d.]+/[\d.]+/[\d.]+\), ", line)) for line in lines]
    assert scored == [False, True, False, True, True]
    best, scored = checkpoint.read(some / "best.pth").facts["epoch"], ours[~empty]
    assert best == scored["epoch"][scored["val_balanced"].idxmax()] in (2, 4, 5)


def test_a_large_number_scores_the_last_epoch_alone_which_the_test_set_then_selects(tmp_path):
    run_stage1(tmp_path, *SHORT, "--eval_every", "99", "--select", "test")
    folder = run_folder(tmp_path, "stage1")
    assert read_metrics(folder)["test_overall"].notna().tolist() == [False, True]
    assert checkpoint.read(folder / "best.pth").facts["epoch"] == 2


def test_a_run_that_is_stopped_resumes_to_the_same_rows_and_bits(tmp_path, runs):
    stopped_at_step(tmp_path, 12, lambda: run_stage1(tmp_path, *SOME))
    folder = run_folder(tmp_path, "stage1")
    message = refusal(main_stage1.main, "--resume", folder, "--eval_every", "3")
    assert message.startswith("--eval_every 3, the run to resume has --eval_every 2: leave the argument out")
    call(main_stage1.main, "--resume", folder)
    assert (folder / "metrics.csv").read_bytes() == (runs[1] / "metrics.csv").read_bytes()
    assert last(folder).facts["progress"] == last(runs[1]).facts["progress"]
    for name in ("last.pth", "best.pth"):
        assert digest(folder, name) == digest(runs[1], name)


# ---- the loss of stage 1 ----


def test_another_loss_trains_as_the_plain_loop_does_and_is_recorded(tmp_path, data, train):
    for name in ("ce", "bsce"):
        text = run_stage1(tmp_path / name, *SHORT, "--loss", name)
        assert ("loss bsce: BalancedSoftmax(" in text) == (name == "bsce")
    ours, other = (last(run_folder(tmp_path / name, "stage1")) for name in ("bsce", "ce"))
    assert (ours.facts["args"]["loss"], other.facts["args"]["loss"]) == ("bsce", "ce")
    torch.manual_seed(0)
    model = build_model("resnet8", 10, in_channels=1).to(memory_format=torch.channels_last).train()
    prior = torch.tensor(data.train_counts).div(sum(data.train_counts)).log()
    args = ours.facts["args"]
    optimizer = sgd(model.parameters(), 1.0, args["momentum"], args["wd"], nesterov=False)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = cosine_lr(args["lr"], epoch, 2, args["warmup_epochs"])
        for images, labels in train.augmented(epoch_order(0, epoch, len(train)), 64, 0, epoch):
            F.cross_entropy(model(images) + prior, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    apart = {}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.state[name], value, rtol=1e-4, atol=1e-5)
        apart[name] = float((other.state[name] - value).abs().max())
    assert apart["fc.weight"] > 1e-3


@pytest.mark.parametrize("name", sorted({*LOSSES} - {"ce", "bsce"}))
def test_every_loss_trains_stage_1_with_options_of_its_own(data, train, model, name):
    loss = training_loss(resolve(STAGE1, {"dataset": "digits_lt", "loss": name}), data.train_counts)
    optimizer = sgd(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-3, nesterov=False)
    before, row = state_of(model), learn(model.train(), train.batches(64), optimizer, 0.001, loss)
    assert math.isfinite(row["train_loss"]) and not same(before, model.state_dict())


def test_a_loss_of_stage_1_has_the_options_that_its_method_has_at_the_ratio():
    given = {"loss": "label_aware", "imb_ratio": 10.0}
    smoothing = training_loss(resolve(STAGE1, given), [500, 50]).eps
    assert smoothing.tolist() == pytest.approx([0.2, 0.0])
    one, other = (
        training_loss(resolve(STAGE1, {"loss": "los_weighted"} | words), [500, 50]).eps
        for words in ({"label_smooth": 0.5}, {})
    )
    assert (one < other).all(), "the preset has 0.98"


def test_a_loss_that_weighs_images_against_each_other_takes_no_parts_of_a_step():
    counts = [500, 50]
    logits, targets = torch.randn(8, 2, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 0, 1, 0])
    for name in sorted(LOSSES):
        config = resolve(STAGE1, {"loss": name})
        loss_fn = training_loss(config, counts).double()
        parts = (loss_fn(logits[:4], targets[:4]) + loss_fn(logits[4:], targets[4:])) / 2
        if torch.allclose(parts, loss_fn(logits, targets)):
            assert training_loss(config, counts, parts=2)
        else:
            with pytest.raises(UserError, match=f"--loss {name} weighs .* one process and no --accum"):
                training_loss(config, counts, parts=2)


def test_the_margins_of_ldam_in_stage_1_are_those_of_logits():
    loss_fn = training_loss(resolve(STAGE1, {"loss": "ldam"}), [500, 50])
    assert loss_fn.margins.max() == 0.5


# ---- prediction ----


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_prediction_scores_every_image_once_in_file_order_whatever_the_batch_size(test, model, batch_size):
    before = state_of(model)
    logits = predict(model.train(), test, False, batch_size)
    assert logits.shape == (500, 10) and same(model.state_dict(), before) and not model.training
    for index in (0, 63, 64, 499):
        with torch.no_grad():
            alone = model(test.plain(torch.tensor([index])))[0]
        torch.testing.assert_close(logits[index], alone, rtol=1e-5, atol=1e-5)


def test_the_mirror_prediction_is_the_mean_of_the_image_and_its_mirror_image(data, test, model):
    mirrored = DeviceImages(ImageSet(data.test.images.flip(-1), data.test.labels), data.views)
    one, other = predict(model, test, mirror=False), predict(model, mirrored, mirror=False)
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(predict(model, test, mirror=True), (one + other) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_head_on_stored_features_gives_the_prediction_of_the_whole_network(test, model, mirror):
    features = eval_features(model, test, mirror)
    assert features.shape == (2 if mirror else 1, 500, 64) and not features.requires_grad
    logits = head_logits(model.fc, features)
    torch.testing.assert_close(logits, predict(model, test, mirror), rtol=1e-5, atol=1e-5)


# ---- frozen features ----


def test_fresh_views_differ_from_epoch_to_epoch_and_a_number_of_them_is_reused_in_turn(train, model):
    fresh, other = (TrainFeatures(model, train, seed=seed, count=None) for seed in (3, 4))
    first, second = fresh.of_epoch(0), fresh.of_epoch(1)
    assert first.shape == (len(train), 64) and not torch.equal(first, second)
    assert not torch.equal(other.of_epoch(0), first)
    two = TrainFeatures(model, train, seed=3, count=2)
    views = [two.of_epoch(epoch) for epoch in range(5)]
    assert torch.equal(views[0], first) and torch.equal(views[1], second)
    assert all(views[epoch] is views[epoch % 2] for epoch in range(5))
    plain = TrainFeatures(model, train, seed=3, count=0)
    assert torch.equal(plain.of_epoch(0), eval_features(model, train, mirror=False)[0])
    assert torch.equal(plain.of_epoch(7), plain.of_epoch(0))


def test_training_the_head_on_features_equals_training_the_whole_network_with_a_frozen_backbone(train, model):
    whole, before, epochs = copy.deepcopy(model), state_of(model), 3
    options = {"lr": 0.05, "momentum": 0.9}
    # the straightforward way: the whole network on each batch of images, only fc given to the optimiser
    optimizer = torch.optim.SGD(whole.fc.parameters(), **options)
    whole.eval()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = cosine_lr(0.05, epoch, epochs)
        order = epoch_order(5, epoch, len(train))
        for inputs, labels in train.augmented(order, 64, seed=8, view=FIRST_VIEW + epoch):
            loss = F.cross_entropy(whole(inputs), labels, label_smoothing=0.9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    features = TrainFeatures(model, train, seed=8, count=None)
    optimizer = torch.optim.SGD(model.fc.parameters(), **options)
    for epoch in range(epochs):
        parts = epoch_order(5, epoch, len(train)).split(64)
        batches = [(features.of_epoch(epoch)[part], train.labels[part]) for part in parts]
        learn(model.fc, batches, optimizer, cosine_lr(0.05, epoch, epochs))
    assert (model.fc.weight - before["fc.weight"]).abs().max() > 0.01
    torch.testing.assert_close(model.fc.weight, whole.fc.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fc.bias, whole.fc.bias, rtol=1e-4, atol=1e-5)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight", "fc.bias"]


def test_of_a_drifting_backbone_no_features_of_the_statistics_before_are_kept(train, model):
    drifting = DriftingFeatures(model, train, seed=3, count=None)
    before = drifting.plain()
    assert not any(features.requires_grad for features, _ in drifting.batches(torch.arange(300), 64, epoch=2))
    assert not torch.equal(drifting.plain(), before)
    assert torch.equal(drifting.plain(), eval_features(model, train, mirror=False)[0])
