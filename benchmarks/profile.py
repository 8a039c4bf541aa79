"""Which operations take the time of every stage: torch's own table, one for each.

    python -m benchmarks.profile [--networks resnet32,resnet34] [--steps 4] [--threads N] [--out FILE]

About two minutes on two idle cores. The loops are the scripts' own (train_epoch, the feature pass,
logit_batches, a head's epoch), on CIFAR100-LT's images. The time of an operation ("Self CPU") is its own on
the calling thread, with waiting for the other threads. CPU only: of a GPU see benchmarks.gpu.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.common import SEED
from datasets import LongTailedData
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import NETWORKS
from utils.base.seeding import epoch_order
from utils.engine.loop import Progress, sgd, train_epoch
from utils.engine.scoring import logit_batches
from utils.engine.step import TrainStep
from utils.features.views import feature_batches
from utils.metrics import predictions
from utils.settings.presets import preset_for

HEAD_STEPS, SHOWN = 200, 12


def works(network: str, data: LongTailedData, steps: int) -> dict[str, Callable[[], object]]:
    """A stretch of each stage's own loop, by name."""
    preset = preset_for("cifar100_lt", network)
    batch, momentum = preset["batch_size"], preset["momentum"]
    model = common.fresh_model(network, data).to(memory_format=torch.channels_last)
    learner, frozen, head = deepcopy(model), deepcopy(model).eval().requires_grad_(False), deepcopy(model.fc)
    images = DeviceImages(common.sample(data.train, steps * batch), data.views)
    optimizer = sgd(learner.parameters(), preset["lr"], momentum, preset["wd"], nesterov=False)
    order = epoch_order(SEED, 0, len(images))
    los, head_lr = build_loss("los", label_smooth=preset["label_smooth"]), preset["finetune_lr"] or 1e-4
    head_optimizer = sgd(head.parameters(), head_lr, momentum, 0.0, nesterov=False)
    generator = torch.Generator().manual_seed(SEED)
    features = torch.randn(HEAD_STEPS * batch, head.in_features, generator=generator)
    labels = torch.randint(head.out_features, (len(features),), generator=generator)

    def stage1() -> None:
        learner.train()
        batches = images.augmented(order, batch, SEED, 0)
        train_epoch(TrainStep(learner, build_loss("ce"), optimizer), batches, Progress(), preset["lr"])

    def feature_pass() -> None:
        list(feature_batches(frozen, images, (SEED, 0)))

    def head_epoch() -> None:
        with common.threads(1):  # as in stage 2
            batches = zip(features.split(batch), labels.split(batch), strict=True)
            train_epoch(TrainStep(head, los, head_optimizer), batches, Progress(), head_lr)

    def evaluation() -> None:
        for logits in logit_batches(frozen, images, mirror=True):
            predictions(logits)

    return {
        "stage 1, training step": stage1,
        "stage 2, feature pass": feature_pass,
        "stage 2, head epoch (los)": head_epoch,
        "evaluation, with mirror image": evaluation,
    }


def table(work: Callable[[], object]) -> str:
    """Torch's table of the operations of one stretch of work, the longest first."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=SHOWN)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--networks", default="resnet32,resnet34", help="names with commas between")
    parser.add_argument("--steps", type=common.positive, default=4, help="batches of 64 images a stretch")
    parser.add_argument("--threads", type=common.positive, help="torch's threads; default: torch's own")
    args = parser.parse_args(argv)
    networks = args.networks.split(",")
    if unknown := set(networks) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(unknown)}, known: {', '.join(NETWORKS)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    data, what = common.load_cifar100_lt(args.data_dir)
    sections = [f"{what}, batches of 64 ({args.steps} of them)."]
    for network in networks:
        for name, work in works(network, data, args.steps).items():
            sections.append(f"## {network}: {name}\n\n{table(work)}")
    common.publish(sections, args.out)


if __name__ == "__main__":
    main()
