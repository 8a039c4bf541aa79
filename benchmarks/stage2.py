"""A whole stage 2 (20 epochs on CIFAR100-LT, IR 100) against the loop of the field's public code.

Nobody waits for whole runs: both loops are timed on some batches, in alternation, and the time of a stage 2
is put together from them by the printed formula. Both train on fresh crops every epoch and score the test
set, image and mirror image, after every epoch. Ours also encodes the validation images once, as
main_stage2.py does. From the same timings: two cached views, a further head over cached features, and how
fast images are scored with their mirror images.

Speed must not come from doing something else: the same batches through the whole network (in eval mode, since
drifting batch-norm statistics are a difference of protocol) must give the same classifier and test logits.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import chain, count, islice, repeat

import torch
from torch import Tensor, nn

from benchmarks import baselines, common
from benchmarks.common import SEED, WORKER_CHOICES, Bench, DiffersError, Findings, each, row
from benchmarks.heads import trained
from datasets import LongTailedData
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import THIN_NETWORKS
from utils.base.seeding import epoch_order
from utils.engine.device import LAYOUT
from utils.engine.loop import cosine_lr
from utils.engine.scoring import EVAL_BATCH
from utils.features.frozen import Representation, StoredViews
from utils.features.logits import head_logits
from utils.features.views import FIRST_VIEW, FeatureViews, TrainFeatures, eval_features
from utils.heads.plan import plan_heads
from utils.settings.config import resolve
from utils.settings.parse import STAGE2

CHECK_EPOCHS = 2
TOLERANCE = 3e-3  # largest difference of the two classifiers, as a share of the way they went
FRESH_TARGET, CACHED_TARGET, FURTHER_TARGET, VIEWS = 5.0, 25.0, 500.0, 2
SCORING_TARGETS = {"resnet32": 1.5, "resnet34": 1.05}
FORMULA = (
    "stage 2: plain = epochs x (train / training rate + test / test rate); fresh = epochs x (train / pass "
    "rate + head epoch) + once; cached = views x train / pass rate + epochs x head epoch + once; a further "
    "head = epochs x head epoch, scoring included; once = (test + val) / encoding rate; all in images"
)


class Contest:
    """Both loops of one network, ready to be compared and timed. The settings are the preset's."""

    def __init__(self, bench: Bench, network: str) -> None:
        # images of a training step's timing and of the check, and of a pass without gradients
        self.trained, self.encoded = (512, 1024) if network in THIN_NETWORKS else (128, EVAL_BATCH)
        batch = {}
        if bench.quick:
            self.trained, self.encoded, batch = 8, 8, {"batch_size": 8}
        self.data = data = bench.data
        words = {"network": network, "method": "los", "seed": SEED, "device": "cpu", "select": "test"}
        self.config = resolve(STAGE2, words | batch)
        self.plan = next(plan for plan in plan_heads(self.config)[0] if plan.named)
        self.loss_fn = build_loss("los", label_smooth=self.config.label_smooth)
        self.model = deepcopy(bench.model(network))
        # the backbone as main_stage2.py runs it
        self.frozen = deepcopy(self.model).to(memory_format=LAYOUT).eval().requires_grad_(False)
        self.test = DeviceImages(common.sample(data.test, self.encoded), data.views)

    def plain_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD on the classifier alone."""
        return torch.optim.SGD(model.fc.parameters(), self.plan.lr, self.config.momentum)

    def our_head(self, train: FeatureViews, test: Tensor, labels: Tensor, epochs: int) -> nn.Module:
        """The head of main_stage2.py over these features; `test` [V, N, D] is scored against `labels` [N]."""
        parts = Representation(self.frozen.fc, train, lambda name: test, {"test": labels}, self.data)
        [run] = trained([replace(self.plan, epochs=epochs)], parts, self.config, ["test"])
        return run.head

    def works(self) -> tuple[dict[str, Callable[[], object]], list[int]]:
        """What is timed, by name; with how many worker processes the plain loop trains and tests."""
        data, views, epochs = self.data, self.data.views, count()
        train, test = common.sample(data.train, self.trained), common.sample(data.test, self.encoded)
        batch, optimizer = self.config.batch_size, self.plain_optimizer(self.model)
        loaders = {}
        for n in WORKER_CHOICES:
            loaders["train", n] = baselines.loader(train, views, batch, n, shuffle=True)
            loaders["test", n] = baselines.loader(test, views, EVAL_BATCH, n)
        loaders = {name: chain.from_iterable(repeat(loader)) for name, loader in loaders.items()}

        def plain_train(workers: int) -> None:
            batches = islice(loaders["train", workers], self.trained // batch)
            baselines.train(self.model, batches, self.loss_fn, optimizer)

        def plain_test(workers: int) -> None:
            baselines.evaluate(self.model, islice(loaders["test", workers], -(-self.encoded // EVAL_BATCH)))

        seen = DeviceImages(common.sample(data.train, self.encoded), views)
        training = TrainFeatures(self.frozen, seen, SEED, None)
        # a head's time does not depend on its features, only on their number
        width = self.frozen.fc.in_features
        cached = StoredViews(torch.randn(1, len(data.train), width), data.train.labels)
        scored = torch.randn(2, len(data.test), width)
        workers = [
            common.fastest({n: lambda n=n, work=work: work(n) for n in WORKER_CHOICES})
            for work in (plain_train, plain_test)
        ]
        works = {
            "step": lambda: plain_train(workers[0]),
            "pass": lambda: training.of_epoch(next(epochs)),
            "plain test": lambda: plain_test(workers[1]),
            "encode": lambda: eval_features(self.frozen, self.test, mirror=True),
            "head": lambda: self.our_head(cached, scored, data.test.labels, epochs=1),
        }
        return works, workers


def check_same(contest: Contest) -> float:
    """Train the classifier of both kinds on the same batches; the largest difference over the way gone.

    Raises:
        DiffersError: the classifiers or their test logits differ by more than rounding.
    """
    part = common.sample(contest.data.train, contest.trained)
    images, batch_size = DeviceImages(part, contest.data.views), contest.config.batch_size
    test = eval_features(contest.frozen, contest.test, mirror=True)
    training = TrainFeatures(contest.frozen, images, SEED, None)
    head = contest.our_head(training, test, contest.test.labels, CHECK_EPOCHS)
    whole = deepcopy(contest.model)
    start, optimizer = whole.fc.weight.detach().clone(), contest.plain_optimizer(whole)
    for epoch in range(CHECK_EPOCHS):
        optimizer.param_groups[0]["lr"] = cosine_lr(contest.plan.lr, epoch, CHECK_EPOCHS)
        order = epoch_order(SEED, epoch, len(part))
        batches = images.augmented(order, batch_size, SEED, FIRST_VIEW + epoch)
        contiguous = ((inputs.contiguous(), labels) for inputs, labels in batches)
        baselines.train(whole, contiguous, contest.loss_fn, optimizer, drift=False)
    inputs, _ = next(contest.test.batches(EVAL_BATCH))
    logits = baselines.mirrored_logits(whole, inputs.contiguous())
    end, ours = whole.fc.weight.detach(), head.weight.detach()
    difference = float((end - ours).abs().max() / (end - start).abs().max())
    if not difference < TOLERANCE:
        raise DiffersError(f"the classifiers differ by {difference:.1e} of the way they went")
    if not torch.allclose(logits, head_logits(head, test)[: len(logits)], rtol=1e-4, atol=1e-4):
        raise DiffersError("the test logits differ")
    return difference


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The rows of one network."""
    contest = Contest(bench, network)
    difference = check_same(contest)
    works, workers = contest.works()
    seconds = common.alternate(works, turns)
    sizes = {"step": contest.trained, "head": 1}  # the others: images of a pass
    parts = {name: each(took, sizes.get(name, contest.encoded)) for name, took in seconds.items()}
    epochs = contest.plan.epochs
    note = (
        f"stage 2, {network}: on the same {CHECK_EPOCHS * contest.trained} images, backbone in eval mode, "
        f"the classifiers differ by {difference:.1e} of the way they went (tolerance {TOLERANCE:g}), the "
        f"test logits by less than 1e-4; whole runs are put together from {contest.trained} images trained "
        f"plainly, {contest.encoded} passed and encoded, and a head epoch; the plain loop is at its faster "
        f"with {workers[0]} worker process(es) in training, {workers[1]} in testing"
    )
    return Findings(rows(network, parts, bench.data, epochs), [note, FORMULA])


def rows(network: str, parts: dict[str, list[float]], data: LongTailedData, epochs: int) -> list[dict]:
    """Whole runs, one figure a turn: FORMULA in numbers. `parts`: seconds of an image, of a head epoch."""
    train, test, val = (0 if part is None else len(part) for part in (data.train, data.test, data.val))
    plain, fresh, cached, further = [], [], [], []
    for step, a_pass, plain_test, encode, head in zip(*parts.values(), strict=True):
        plain.append(epochs * (train * step + test * plain_test))
        once = (test + val) * encode
        fresh.append(epochs * (train * a_pass + head) + once)
        cached.append(VIEWS * train * a_pass + epochs * head + once)
        further.append(epochs * head)
    what, against = f"stage 2, {epochs} epochs, {network}", "plain whole-model loop"
    scoring = (f"evaluation with mirror image, {network}", "plain loop", "images/s")
    return [
        row(*scoring, parts["encode"], parts["plain test"], SCORING_TARGETS[network]),
        row(f"{what}, fresh views", against, "minutes", fresh, plain, FRESH_TARGET),
        row(f"{what}, {VIEWS} cached views", against, "minutes", cached, plain, CACHED_TARGET),
        row(f"{what}, a further head", against, "s", further, plain, FURTHER_TARGET),
    ]
