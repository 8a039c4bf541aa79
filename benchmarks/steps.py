"""Images a second of a few real steps of both stages, as main_stage1.py and main_stage2.py run them.

    python -m benchmarks.steps [--network resnet34] [--steps 4] [--repeats 3] [--threads N] [--plain]

About a minute on two idle cores with the default ResNet-34, twice that with `--plain`, which times the plain
loop beside ours, in alternation. On the CPU only. Stage 1 trains everything; stage 2's work is the feature
pass over the augmented images, since its head costs next to nothing.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import count, islice

import torch
from torch import nn

from benchmarks import baselines, common
from datasets import LongTailedData
from datasets.loaders import DeviceImages
from losses import build_loss
from models import NETWORKS
from utils.engine import train_epoch
from utils.features import TrainFeatures
from utils.presets import preset_for
from utils.seeding import epoch_order

SEED = 0


def our_steps(model: nn.Module, data: LongTailedData, preset: dict, images: int) -> dict[str, Callable]:
    """Stage 1 on `images` images of an epoch, and the feature pass of stage 2 over as many."""
    learner = deepcopy(model).to(memory_format=torch.channels_last)
    frozen = deepcopy(learner).eval().requires_grad_(False)
    train = DeviceImages(data.train, data.views)
    part = DeviceImages(common.sample(data.train, images), data.views)
    features = TrainFeatures(frozen, part, SEED, None)
    optimizer, loss_fn, epochs = stage1_optimizer(learner, preset, fused=True), build_loss("ce"), count()

    def stage1() -> None:
        epoch = next(epochs)
        learner.train()
        order = epoch_order(SEED, epoch, len(train))[:images]
        batches = train.augmented(order, preset["batch_size"], SEED, epoch)
        train_epoch(learner, batches, loss_fn, optimizer, preset["lr"])

    return {"stage 1": stage1, "stage 2": lambda: features.of_epoch(next(epochs))}


def plain_steps(model: nn.Module, data: LongTailedData, preset: dict, images: int) -> dict[str, Callable]:
    """The steps of the plain loops: stage 2 goes through the whole network, forward and backward."""
    first, second = deepcopy(model), deepcopy(model)
    batches = baselines.endless(baselines.train_loader(data.train, data.views, preset["batch_size"]))
    steps = images // preset["batch_size"]
    everything, last_layer = stage1_optimizer(first, preset), stage2_optimizer(second, preset)
    ce, los = build_loss("ce"), build_loss("los", label_smooth=preset["label_smooth"])
    return {
        "plain stage 1": lambda: baselines.train(first, islice(batches, steps), ce, everything),
        "plain stage 2": lambda: baselines.train(second, islice(batches, steps), los, last_layer),
    }


def stage1_optimizer(model: nn.Module, preset: dict, **options: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), preset["lr"], preset["momentum"], weight_decay=preset["wd"], **options
    )


def stage2_optimizer(model: nn.Module, preset: dict) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.fc.parameters(), preset["finetune_lr"], preset["momentum"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--network", default="resnet34", choices=tuple(NETWORKS))
    parser.add_argument("--steps", type=common.positive, default=4, help="steps a timing, of 64 images")
    parser.add_argument("--repeats", type=common.positive, default=3, help="timings of each stage")
    parser.add_argument("--threads", type=common.positive, help="torch's threads; default: torch's own")
    parser.add_argument("--plain", action="store_true", help="time the plain loops too")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    data, what = common.load_cifar100_lt(args.data_dir)
    preset = preset_for("cifar100_lt", args.network)
    images = args.steps * preset["batch_size"]
    model = common.fresh_model(args.network, data.train, data.views)
    works = our_steps(model, data, preset, images)
    if args.plain:
        works |= plain_steps(model, data, preset, images)
    seconds = common.alternate(works, args.repeats)
    rows = [row(stage, seconds, images) for stage in ("stage 1", "stage 2")]
    title = f"## Steps of {args.network}, batches of {preset['batch_size']}, {what}"
    note = f"Median of {args.repeats} timings of {images} images each, after one unmeasured."
    common.publish([title, common.table(rows), note], args.out)


def row(stage: str, seconds: dict[str, list[float]], images: int) -> common.Row:
    ours, plain = seconds[stage], seconds.get(f"plain {stage}")
    if plain is None:
        return common.Row(f"{stage}, images/s", common.rate(images, ours))
    ratios = common.ratios(plain, ours)
    return common.Row(f"{stage}, images/s", common.rate(images, ours), common.rate(images, plain), ratios)


if __name__ == "__main__":
    main()
