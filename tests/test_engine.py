"""The loops on the embedded digits: schedule, divergence, prediction, frozen features."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from datasets import ImageSet, build_data
from datasets.images.in_memory import DeviceImages
from losses import LabelOverSmooth
from models import build_model
from utils.base.seeding import epoch_order
from utils.engine.loop import DivergedError, cosine_lr, sgd, train_epoch
from utils.engine.scoring import predict
from utils.features.views import FIRST_VIEW, DriftingFeatures, TrainFeatures, eval_features, head_logits

LOSS = LabelOverSmooth(0.9)


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
        train_epoch(model, train.augmented(order, 32, 0, epoch), LabelOverSmooth(0), optimizer, 0.05)
    return model


@pytest.fixture
def model(trained) -> torch.nn.Module:
    return copy.deepcopy(trained)


def plain_sgd(module: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)


def state_of(module: torch.nn.Module) -> dict:
    return copy.deepcopy(module.state_dict())


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- the schedule ----


@pytest.mark.parametrize("epochs", [1, 2, 20, 200])
def test_the_schedule_without_warm_up_is_torchs_cosine(epochs):
    optimizer = plain_sgd(torch.nn.Linear(1, 1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        assert cosine_lr(1.0, epoch, epochs) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_schedule_starts_at_the_peak_is_half_in_the_middle_and_ends_just_above_zero():
    assert cosine_lr(0.4, 0, 20) == 0.4
    assert cosine_lr(0.4, 10, 20) == pytest.approx(0.2)
    assert cosine_lr(0.4, 19, 20) == pytest.approx(0.2 * (1 + math.cos(math.pi * 19 / 20)))
    assert 0 < cosine_lr(0.4, 19, 20) < 0.01


def test_the_warm_up_is_linear_to_the_peak_and_the_cosine_spans_the_rest():
    rates = [cosine_lr(0.3, epoch, 13, warmup_epochs=3) for epoch in range(13)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[3:] == pytest.approx([cosine_lr(0.3, epoch, 10) for epoch in range(10)])


# ---- training ----


def test_an_epoch_reports_the_mean_loss_and_accuracy_over_images(train, model):
    model.eval()
    frozen = sgd(model.parameters(), lr=0.0, momentum=0.0, weight_decay=0.0, nesterov=False)
    row = train_epoch(model, train.batches(64), LOSS, frozen, 0.0)  # 305 images: the last batch has 49
    logits = predict(model, train, mirror=False)
    assert row["train_loss"] == pytest.approx(float(LOSS(logits, train.labels)), rel=1e-5)
    hits = int((logits.argmax(1) == train.labels).sum())
    assert row["train_accuracy"] == hits / len(train) and 0 < hits < len(train)


def test_an_epoch_applies_its_learning_rate_to_every_group(train, model):
    groups = [{"params": model.fc.parameters()}, {"params": model.layer1.parameters(), "lr": 7.0}]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    train_epoch(model, train.batches(305), LOSS, optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_training_lowers_the_loss(train, model):
    model.train()
    optimizer, order = plain_sgd(model), torch.arange(len(train))
    losses = [
        train_epoch(model, train.augmented(order, 64, 0, 9), LOSS, optimizer, 0.01)["train_loss"]
        for _ in range(5)
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_its_update(train, model, bad):
    batches = list(train.batches(32))
    poisoned = batches[1][0].clone()
    poisoned[3, 0, 4, 4] = bad
    reference = copy.deepcopy(model)
    steps = {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": False}
    optimizer, expected = sgd(model.parameters(), **steps), sgd(reference.parameters(), **steps)
    train_epoch(reference.train(), batches[:1], LOSS, expected, 0.1)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step 2"):
        train_epoch(
            model.train(), [batches[0], (poisoned, batches[1][1]), *batches[2:]], LOSS, optimizer, 0.1
        )
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
        train_epoch(module.eval(), train.batches(64), LOSS, optimizer, 0.01)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


# ---- prediction ----


def test_prediction_scores_every_image_once_in_file_order(test, model):
    logits = predict(model, test, mirror=False, batch_size=64)
    assert logits.shape == (500, 10)
    for index in (0, 63, 64, 499):
        with torch.no_grad():
            alone = model(test.plain(torch.tensor([index])))[0]
        torch.testing.assert_close(logits[index], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 499, 500, 1000])
def test_prediction_does_not_depend_on_the_batch_size(test, model, batch_size):
    usual = predict(model, test, mirror=True)
    torch.testing.assert_close(predict(model, test, True, batch_size), usual, rtol=0, atol=1e-5)


def test_prediction_does_not_depend_on_the_order_of_the_images(data, test, model):
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    shuffled = DeviceImages(ImageSet(data.test.images[order], data.test.labels[order]), data.views)
    usual = predict(model, test, mirror=False)
    torch.testing.assert_close(predict(model, shuffled, False)[order.argsort()], usual, rtol=0, atol=1e-5)


def test_the_mirror_prediction_is_the_mean_of_the_image_and_its_mirror_image(data, test, model):
    mirrored = DeviceImages(ImageSet(data.test.images.flip(-1), data.test.labels), data.views)
    one, other = predict(model, test, mirror=False), predict(model, mirrored, mirror=False)
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(predict(model, test, mirror=True), (one + other) / 2, rtol=1e-5, atol=1e-5)


def test_prediction_uses_and_keeps_the_stored_batch_norm_statistics(test, model):
    before = state_of(model)
    predict(model.train(), test, mirror=True)
    assert same(model.state_dict(), before) and not model.training


@pytest.mark.parametrize("mirror", [False, True])
def test_the_head_on_stored_features_gives_the_prediction_of_the_whole_network(test, model, mirror):
    features = eval_features(model, test, mirror)
    assert features.shape == (2 if mirror else 1, 500, 64) and not features.requires_grad
    logits = head_logits(model.fc, features)
    torch.testing.assert_close(logits, predict(model, test, mirror), rtol=1e-5, atol=1e-5)


# ---- frozen features ----


def test_fresh_views_differ_from_epoch_to_epoch_and_come_again(train, model):
    features = TrainFeatures(model, train, seed=3, count=None)
    first, second = features.of_epoch(0), features.of_epoch(1)
    assert first.shape == (len(train), 64) and not torch.equal(first, second)
    assert torch.equal(TrainFeatures(model, train, seed=3, count=None).of_epoch(1), second)
    assert not torch.equal(TrainFeatures(model, train, seed=4, count=None).of_epoch(0), first)


def test_a_number_of_views_is_reused_in_turn(train, model):
    fresh = TrainFeatures(model, train, seed=3, count=None)
    features = TrainFeatures(model, train, seed=3, count=2)
    views = [features.of_epoch(epoch) for epoch in range(5)]
    assert torch.equal(views[0], fresh.of_epoch(0)) and torch.equal(views[1], fresh.of_epoch(1))
    assert all(views[epoch] is views[epoch % 2] for epoch in range(5))


def test_no_views_means_the_plain_images_every_epoch(train, model):
    features = TrainFeatures(model, train, seed=3, count=0)
    assert torch.equal(features.of_epoch(0), eval_features(model, train, mirror=False)[0])
    assert torch.equal(features.of_epoch(7), features.of_epoch(0))


def test_feature_batches_follow_the_order_with_their_labels(train, model):
    features, order = TrainFeatures(model, train, seed=3, count=None), epoch_order(1, 0, len(train))
    batches = list(features.batches(order, 64, epoch=2))
    assert [len(labels) for _, labels in batches] == [64, 64, 64, 64, 49]
    assert torch.equal(torch.cat([x for x, _ in batches]), features.of_epoch(2)[order])
    assert torch.equal(torch.cat([labels for _, labels in batches]), train.labels[order])


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
        batches = features.batches(epoch_order(5, epoch, len(train)), 64, epoch)
        train_epoch(model.fc, batches, LOSS, optimizer, cosine_lr(0.05, epoch, epochs))
    assert (model.fc.weight - before["fc.weight"]).abs().max() > 0.01
    torch.testing.assert_close(model.fc.weight, whole.fc.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fc.bias, whole.fc.bias, rtol=1e-4, atol=1e-5)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight", "fc.bias"]


def test_drifting_batches_move_the_batch_norm_statistics_and_no_weight(train, model):
    before, order = state_of(model), epoch_order(1, 0, len(train))
    reference = copy.deepcopy(model).train()
    drifting = DriftingFeatures(model, train, seed=3, count=None)
    drifted = list(drifting.batches(order, 64, epoch=2))
    with torch.no_grad():
        images = train.augmented(order, 64, seed=3, view=FIRST_VIEW + 2)
        expected = [(reference.forward_features(inputs), labels) for inputs, labels in images]
    for (ours, labels), (theirs, same_labels) in zip(drifted, expected, strict=True):
        assert torch.equal(ours, theirs) and torch.equal(labels, same_labels) and not ours.requires_grad
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "running_" in key or "num_batches" in key} != set()
    plain = eval_features(model, train, mirror=False)[0]
    assert torch.equal(drifting.plain(), plain)
    list(drifting.batches(order, 64, epoch=3))
    assert not torch.equal(drifting.plain(), plain)  # no features of the statistics before are kept
