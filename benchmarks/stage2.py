"""A whole stage 2 (20 epochs on CIFAR100-LT, IR 100) against the loop of the field's public code.

    python -m benchmarks.stage2 [--networks resnet32,resnet34] [--epochs 20] [--batches N] [--repeats R]

About 5 minutes on two idle cores, on the CPU only. Nobody waits for whole runs: both loops are timed on
`--batches` batches, in alternation, and the time of a stage 2 is put together from them by the printed
formula. Both train on fresh crops every epoch and score the test set, image and mirror image, after every
epoch. Ours also encodes the validation images once, as main_stage2.py does.

Speed must not come from doing something else: the same batches through the whole network (in eval mode, since
drifting batch-norm statistics are a difference of protocol) must give the same classifier and test logits.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import count, islice
from statistics import median

import torch
from torch import nn

from benchmarks import baselines, common
from datasets import ImageSet, LongTailedData
from datasets.loaders import DeviceImages
from losses import build_loss
from models import NETWORKS, THIN_NETWORKS
from utils.engine import EVAL_BATCH, train_epoch
from utils.features import FIRST_VIEW, TrainFeatures, eval_features, head_logits
from utils.presets import preset_for
from utils.seeding import epoch_order

SEED, CHECK_EPOCHS = 0, 2
BATCHES_WIDE, BATCHES_THIN = 4, 16  # of 64 images: whole batches of the feature pass
TOLERANCE = 1e-3  # largest difference of the two classifiers, as a share of the way they went
WORKER_CHOICES = (0, 1)


class Contest:
    """Both loops on `batches` batches of one network, ready to be timed. The settings are the preset's."""

    def __init__(self, network: str, data: LongTailedData, batches: int) -> None:
        self.preset = preset_for("cifar100_lt", network)
        self.batch_size = self.preset["batch_size"]
        self.num_images = batches * self.batch_size
        self.views = data.views
        self.train_part = common.sample(data.train, self.num_images)
        self.test_part = common.sample(data.test, self.num_images)
        self.loss_fn = build_loss("los", label_smooth=self.preset["label_smooth"])
        self._prepare_plain(common.fresh_model(network, data.train, data.views))
        self._prepare_ours(data)

    def _prepare_plain(self, model: nn.Module) -> None:
        self.model = model
        self.plain_optimizer = self.optimizer(self.model.fc)
        self.train_batches, self.test_batches = {}, {}
        for workers in WORKER_CHOICES:
            train = baselines.train_loader(self.train_part, self.views, self.batch_size, workers)
            test = baselines.test_loader(self.test_part, self.views, EVAL_BATCH, workers)
            self.train_batches[workers] = baselines.endless(train)
            self.test_batches[workers] = baselines.endless(test)

    def _prepare_ours(self, data: LongTailedData) -> None:
        self.frozen = deepcopy(self.model).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.head = self.frozen.fc.requires_grad_(True)
        self.our_optimizer = self.optimizer(self.head, fused=True)
        self.train_images = DeviceImages(self.train_part, self.views)
        self.test_images = DeviceImages(self.test_part, self.views)
        self.training = TrainFeatures(self.frozen, self.train_images, SEED, None)
        self.epochs = count()
        self.test_features = torch.randn(2, len(data.test), self.head.in_features)

    def optimizer(self, head: nn.Module, **options: bool) -> torch.optim.Optimizer:
        """SGD on the classifier alone."""
        return torch.optim.SGD(
            head.parameters(), self.preset["finetune_lr"], momentum=self.preset["momentum"], **options
        )

    def plain_train(self, workers: int) -> None:
        batches = islice(self.train_batches[workers], self.num_images // self.batch_size)
        baselines.train(self.model, batches, self.loss_fn, self.plain_optimizer)

    def plain_test(self, workers: int) -> None:
        batches = islice(self.test_batches[workers], -(-self.num_images // EVAL_BATCH))
        baselines.evaluate(self.model, batches)

    def our_train(self) -> None:
        """Feature pass and head epoch, as main_stage2.py runs them."""
        epoch = next(self.epochs)
        batches = self.training.batches(epoch_order(SEED, epoch, self.num_images), self.batch_size, epoch)
        train_epoch(self.head, batches, self.loss_fn, self.our_optimizer, self.preset["finetune_lr"])

    def our_encode(self) -> None:
        eval_features(self.frozen, self.test_images, mirror=True)

    def our_score(self) -> None:
        """Test logits of the whole test set from stored features."""
        with torch.no_grad():
            head_logits(self.head, self.test_features).argmax(dim=1)

    def faster_workers(self) -> tuple[int, int]:
        """Worker processes with which the plain loop trains, and tests, faster: chosen in its favour."""
        works = {("train", w): lambda w=w: self.plain_train(w) for w in WORKER_CHOICES}
        works |= {("test", w): lambda w=w: self.plain_test(w) for w in WORKER_CHOICES}
        seconds = common.alternate(works, repeats=1)
        return tuple(
            min(WORKER_CHOICES, key=lambda w, part=part: seconds[part, w][0]) for part in ("train", "test")
        )


def check_same(contest: Contest) -> float:
    """Train the classifier of both kinds on the same batches; the largest difference over the way gone.

    Raises:
        SystemExit: the classifiers or their test logits differ by more than rounding.
    """
    whole = deepcopy(contest.model).eval()
    start = whole.fc.weight.detach().clone()
    frozen = deepcopy(whole).to(memory_format=torch.channels_last).requires_grad_(False)
    head = frozen.fc.requires_grad_(True)
    training = TrainFeatures(frozen, contest.train_images, SEED, None)
    ours, plain = contest.optimizer(head, fused=True), contest.optimizer(whole.fc)
    lr = contest.preset["finetune_lr"]
    for epoch in range(CHECK_EPOCHS):
        order = epoch_order(SEED, epoch, contest.num_images)
        images = contest.train_images.augmented(order, contest.batch_size, SEED, FIRST_VIEW + epoch)
        batches = ((inputs.contiguous(), labels) for inputs, labels in images)
        train_epoch(whole, batches, contest.loss_fn, plain, lr)
        train_epoch(head, training.batches(order, contest.batch_size, epoch), contest.loss_fn, ours, lr)
    inputs, _ = next(contest.test_images.batches(EVAL_BATCH))
    with torch.no_grad():
        logits = (whole(inputs.contiguous()) + whole(inputs.flip(-1).contiguous())) / 2
        stored = head_logits(head, eval_features(frozen, contest.test_images, mirror=True))[: len(logits)]
    end, ours_end = whole.fc.weight.detach(), head.weight.detach()
    difference = float((end - ours_end).abs().max() / (end - start).abs().max())
    if not (difference < TOLERANCE and torch.allclose(logits, stored, rtol=1e-4, atol=1e-4)):
        raise SystemExit(
            f"ours is not the same training: the classifiers differ by {difference:.1e} of the way"
        )
    return difference


def measure(network: str, data: LongTailedData, epochs: int, batches: int, repeats: int) -> str:
    """The section of one network."""
    contest = Contest(network, data, batches)
    difference = check_same(contest)
    train_workers, test_workers = contest.faster_workers()
    seconds = common.alternate(
        {
            "plain train": lambda: contest.plain_train(train_workers),
            "our train": contest.our_train,
            "plain test": lambda: contest.plain_test(test_workers),
            "our encode": contest.our_encode,
            "our score": contest.our_score,
        },
        repeats,
    )
    plain, ours = whole_stage(seconds, contest.num_images, data, epochs)
    rows = [
        compared("training, images/s", seconds, "our train", "plain train", contest.num_images),
        compared("test images/s, with mirror image", seconds, "our encode", "plain test", contest.num_images),
        common.Row("scoring stored test features, ms an epoch", f"{median(seconds['our score']) * 1e3:.0f}"),
        common.Row(
            f"whole stage 2 of {epochs} epochs, minutes",
            *(f"{median(total) / 60:.2f}" for total in (ours, plain)),
            common.ratios(plain, ours),
        ),
    ]
    notes = (
        f"{contest.num_images} images a timing; the plain loop is at its faster with {train_workers} worker "
        f"process(es) in training and {test_workers} in testing.\nSame batches, backbone in eval mode: the "
        f"two classifiers differ by {difference:.1e} of the way they went; test logits agree."
    )
    return f"## Stage 2, {network}\n\n{common.table(rows)}\n\n{notes}"


def compared(what: str, seconds: dict[str, list[float]], ours: str, plain: str, images: int) -> common.Row:
    figures = (common.rate(images, seconds[name]) for name in (ours, plain))
    return common.Row(what, *figures, common.ratios(seconds[plain], seconds[ours]))


def whole_stage(
    seconds: dict[str, list[float]], images: int, data: LongTailedData, epochs: int
) -> tuple[list[float], list[float]]:
    """Seconds of a whole stage 2, plain and ours, one figure a repeat: `formula` in numbers."""
    train, test, val = (count_images(part) for part in (data.train, data.test, data.val))
    plain = [
        epochs * (train * step + test * evaluation) / images
        for step, evaluation in zip(seconds["plain train"], seconds["plain test"], strict=True)
    ]
    ours = [
        epochs * (train * step / images + score) + (test + val) * encoding / images
        for step, score, encoding in zip(
            seconds["our train"], seconds["our score"], seconds["our encode"], strict=True
        )
    ]
    return plain, ours


def formula(data: LongTailedData, epochs: int) -> str:
    train, test, val = (count_images(part) for part in (data.train, data.test, data.val))
    return (
        f"    plain = {epochs} x ({train} / training rate + {test} / test rate)\n"
        f"    ours  = {epochs} x ({train} / training rate + scoring) + ({test} + {val}) / test rate"
    )


def count_images(part: ImageSet | None) -> int:
    return 0 if part is None else len(part)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--networks", default="resnet32,resnet34", help="names with commas between")
    parser.add_argument("--epochs", type=common.positive, default=20, help="epochs of the stage 2")
    parser.add_argument(
        "--batches", type=common.positive, help=f"batches a timing ({BATCHES_THIN} thin, {BATCHES_WIDE} wide)"
    )
    parser.add_argument("--repeats", type=common.positive, default=5, help="timings of each loop")
    parser.add_argument("--threads", type=common.positive, help="torch's threads; default: torch's own")
    args = parser.parse_args(argv)
    networks = args.networks.split(",")
    if unknown := set(networks) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(unknown)}, known: {', '.join(NETWORKS)}")
    if args.threads:
        torch.set_num_threads(args.threads)

    data, what = common.load_cifar100_lt(args.data_dir)
    sections = [f"Stage 2 on {what}. The plain loop and ours in alternation; a whole stage is put together:"]
    sections.append(formula(data, args.epochs))
    for network in networks:
        batches = args.batches or (BATCHES_THIN if network in THIN_NETWORKS else BATCHES_WIDE)
        sections.append(measure(network, data, args.epochs, batches, args.repeats))
    common.publish(sections, args.out)


if __name__ == "__main__":
    main()
