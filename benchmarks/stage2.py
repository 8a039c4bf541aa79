"""A whole stage 2 (20 epochs on CIFAR100-LT, IR 100) against the loop of the field's public code.

Nobody waits for whole runs: both loops are timed on some batches, in alternation, and the time of a stage 2
is put together from them by the printed formula. Both train on fresh crops every epoch and score the test
set, image and mirror image, after every epoch. Ours also encodes the validation images once, as
main_stage2.py does. From the same timings: two cached views, and a further head over cached features.

Speed must not come from doing something else: the same batches through the whole network (in eval mode, since
drifting batch-norm statistics are a difference of protocol) must give the same classifier and test logits.
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import baselines, common
from benchmarks.common import SEED, Bench, DiffersError
from benchmarks.stage1 import WORKER_CHOICES
from benchmarks.table import Findings, Row, each, row
from datasets import ImageSet, LongTailedData
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import THIN_NETWORKS
from utils.base.seeding import epoch_order
from utils.engine.device import LAYOUT
from utils.engine.loop import cosine_lr
from utils.engine.scoring import EVAL_BATCH
from utils.features.frozen import Representation, StoredViews
from utils.features.views import FIRST_VIEW, FeatureViews, TrainFeatures, eval_features, head_logits
from utils.heads.head import HeadRun
from utils.heads.plan import plan_heads
from utils.heads.stack import threads_for
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE2

CHECK_EPOCHS = 2
TOLERANCE = 1e-3  # largest difference of the two classifiers, as a share of the way they went
FRESH_TARGET, CACHED_TARGET, FURTHER_TARGET, VIEWS = 5.0, 25.0, 500.0, 2


class Size(NamedTuple):
    """Images of a training step's timing, of a pass without gradients, of the check; in a batch."""

    trained: int
    encoded: int
    checked: int
    batch_size: int


def size_of(bench: Bench, network: str) -> Size:
    if bench.quick:
        return Size(8, 8, 8, 8)
    return Size(512, 1024, 512, 64) if network in THIN_NETWORKS else Size(128, EVAL_BATCH, 128, 64)


class Contest:
    """Both loops of one network, ready to be compared and timed. The settings are the preset's."""

    def __init__(self, bench: Bench, network: str) -> None:
        self.data, self.size = bench.data, size_of(bench, network)
        given = {"network": network, "method": "los", "seed": SEED, "device": "cpu", "select": "test"}
        self.preset = resolve(STAGE2, given)
        self.config = resolve(STAGE2, given | {"batch_size": self.size.batch_size})
        self.plan = next(plan for plan in plan_heads(self.config)[0] if plan.named)
        self.loss_fn = build_loss("los", label_smooth=self.config.label_smooth)
        self.model = deepcopy(bench.model(network))
        self.optimizer = self.plain_optimizer(self.model)
        self.frozen = frozen_copy(self.model)
        self.epochs, self.head_epochs = count(), count()
        self.encoded = DeviceImages(common.sample(self.data.test, self.size.encoded), self.data.views)
        seen = DeviceImages(common.sample(self.data.train, self.size.encoded), self.data.views)
        self.training = TrainFeatures(self.frozen, seen, SEED, None)
        self.head = self._cached_head()
        self.train_batches, self.test_batches = {}, {}
        for workers in WORKER_CHOICES:
            part = common.sample(self.data.train, self.size.trained)
            train = baselines.train_loader(part, self.data.views, self.size.batch_size, workers)
            part = common.sample(self.data.test, self.size.encoded)
            test = baselines.test_loader(part, self.data.views, EVAL_BATCH, workers)
            self.train_batches[workers] = baselines.endless(train)
            self.test_batches[workers] = baselines.endless(test)

    def plain_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD on the classifier alone."""
        return torch.optim.SGD(model.fc.parameters(), self.plan.lr, self.config.momentum)

    def our_head(self, train: FeatureViews, test: Tensor, labels: Tensor, config: Config) -> HeadRun:
        """The head of main_stage2.py over these features; `test` [V, N, D] is scored against `labels` [N]."""
        parts = Representation(self.frozen.fc, train, lambda name: test, {"test": labels}, self.data)
        return HeadRun(self.plan, parts, config)

    def _cached_head(self) -> HeadRun:
        """A head over as many features as the data set has images; random: time does not depend on them."""
        width = self.frozen.fc.in_features
        train = StoredViews(torch.randn(1, len(self.data.train), width), self.data.train.labels)
        test = torch.randn(2, len(self.data.test), width)
        return self.our_head(train, test, self.data.test.labels, self.preset)

    def plain_train(self, workers: int) -> None:
        steps = self.size.trained // self.size.batch_size
        batches = islice(self.train_batches[workers], steps)
        baselines.train(self.model, batches, self.loss_fn, self.optimizer)

    def plain_test(self, workers: int) -> None:
        batches = islice(self.test_batches[workers], -(-self.size.encoded // EVAL_BATCH))
        baselines.evaluate(self.model, batches)

    def our_head_epoch(self) -> None:
        """All training images once, and the test set scored."""
        next_epoch = next(self.head_epochs)
        with threads_for(self.head.frozen):
            self.head.run_epoch(next_epoch % self.plan.epochs, ["test"])

    def works(self, train_workers: int, test_workers: int) -> dict[str, Callable[[], object]]:
        """What is timed, by name."""
        return {
            "plain train": lambda: self.plain_train(train_workers),
            "pass": lambda: self.training.of_epoch(next(self.epochs)),
            "plain test": lambda: self.plain_test(test_workers),
            "encode": lambda: eval_features(self.frozen, self.encoded, mirror=True),
            "head": self.our_head_epoch,
        }


def frozen_copy(model: nn.Module) -> nn.Module:
    """The backbone as main_stage2.py runs it."""
    return deepcopy(model).to(memory_format=LAYOUT).eval().requires_grad_(False)


def check_same(contest: Contest) -> float:
    """Train the classifier of both kinds on the same batches; the largest difference over the way gone.

    Raises:
        DiffersError: the classifiers or their test logits differ by more than rounding.
    """
    part = common.sample(contest.data.train, contest.size.checked)
    images = DeviceImages(part, contest.data.views)
    test = eval_features(contest.frozen, contest.encoded, mirror=True)
    training = TrainFeatures(contest.frozen, images, SEED, None)
    head = contest.our_head(training, test, contest.encoded.labels, contest.config)
    whole = deepcopy(contest.model)
    start, optimizer = whole.fc.weight.detach().clone(), contest.plain_optimizer(whole)
    for epoch in range(CHECK_EPOCHS):
        head.run_epoch(epoch, ["test"])
        optimizer.param_groups[0]["lr"] = cosine_lr(contest.plan.lr, epoch, contest.plan.epochs)
        order = epoch_order(SEED, epoch, len(part))
        batches = images.augmented(order, contest.size.batch_size, SEED, FIRST_VIEW + epoch)
        contiguous = ((inputs.contiguous(), labels) for inputs, labels in batches)
        baselines.train(whole, contiguous, contest.loss_fn, optimizer, drift=False)
    if head.failed:
        raise DiffersError(f"our head failed: {head.failure}")
    inputs, _ = next(contest.encoded.batches(EVAL_BATCH))
    logits = baselines.mirrored_logits(whole, inputs.contiguous())
    end, ours = whole.fc.weight.detach(), head.head.weight.detach()
    difference = float((end - ours).abs().max() / (end - start).abs().max())
    if not difference < TOLERANCE:
        raise DiffersError(f"the classifiers differ by {difference:.1e} of the way they went")
    if not torch.allclose(logits, head_logits(head.head, test)[: len(logits)], rtol=1e-4, atol=1e-4):
        raise DiffersError("the test logits differ")
    return difference


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The rows of one network."""
    contest = Contest(bench, network)
    difference = check_same(contest)
    workers = [
        common.fastest({w: lambda w=w, work=work: work(w) for w in WORKER_CHOICES})
        for work in (contest.plain_train, contest.plain_test)
    ]
    seconds = common.alternate(contest.works(*workers), turns, bench.tick)
    if contest.head.failed:
        raise DiffersError(f"our head failed: {contest.head.failure}")
    size = contest.size
    by_image = {"plain train": size.trained, "pass": size.encoded}
    by_image |= {"plain test": size.encoded, "encode": size.encoded, "head": 1}
    parts = {name: each(seconds[name], images) for name, images in by_image.items()}
    epochs = contest.plan.epochs
    note = (
        f"stage 2, {network}: on the same {CHECK_EPOCHS * size.checked} images, backbone in eval mode, the "
        f"classifiers differ by {difference:.1e} of the way they went (tolerance {TOLERANCE:g}), the test "
        f"logits by less than 1e-4; whole runs are put together from {size.trained} images trained plainly, "
        f"{size.encoded} passed and encoded, and a head epoch; the plain loop is at its faster with "
        f"{workers[0]} worker process(es) in training, {workers[1]} in testing"
    )
    return Findings(rows(network, parts, bench.data, epochs), [note, formula(bench.data, epochs)])


def rows(network: str, parts: dict[str, list[float]], data: LongTailedData, epochs: int) -> list[Row]:
    """Whole runs, one figure a turn: `formula` in numbers. `parts`: seconds of an image, of a head epoch."""
    train, test, val = (count_images(part) for part in (data.train, data.test, data.val))
    plain, fresh, cached, further = [], [], [], []
    for step, a_pass, plain_test, encode, head in zip(*parts.values(), strict=True):
        plain.append(epochs * (train * step + test * plain_test))
        once = (test + val) * encode
        fresh.append(epochs * (train * a_pass + head) + once)
        cached.append(VIEWS * train * a_pass + epochs * head + once)
        further.append(epochs * head)
    what, against = f"stage 2, {epochs} epochs, {network}", "plain whole-model loop"
    return [
        row(f"{what}, fresh views", against, "minutes", fresh, plain, FRESH_TARGET),
        row(f"{what}, {VIEWS} cached views", against, "minutes", cached, plain, CACHED_TARGET),
        row(f"{what}, a further head", against, "s", further, plain, FURTHER_TARGET),
    ]


def formula(data: LongTailedData, epochs: int) -> str:
    train, test, val = (count_images(part) for part in (data.train, data.test, data.val))
    encoded = f"({test} + {val}) / encoding rate"
    return (
        f"stage 2: plain = {epochs} x ({train} / training rate + {test} / test rate); fresh = {epochs} x "
        f"({train} / pass rate + head epoch) + {encoded}; {VIEWS} cached = {VIEWS} x {train} / pass rate + "
        f"{epochs} x head epoch + {encoded}; a further head = {epochs} x head epoch, scoring included"
    )


def count_images(part: ImageSet | None) -> int:
    return 0 if part is None else len(part)
