"""Stage 1 and the feature pass of stage 2 on one CUDA device.

    python -m benchmarks.gpu [--epochs 5] [--data_dir data] [--out FILE]

ResNet-34, batches of 64, CIFAR100-LT at ratio 100 (random images of the same numbers where the files are not
here): plain steps and steps in CUDA graphs, in TF32 and bf16. Times are whole epochs, augmentation and the
end of the epoch included, after as many as it takes to record both graphs.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median

import torch
from torch import nn

from benchmarks import common
from benchmarks.common import SEED
from datasets import LongTailedData
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import build_model
from utils.base.errors import UserError, exit_cleanly
from utils.base.seeding import epoch_order
from utils.engine.device import LAYOUT
from utils.engine.graphs import WARM_STEPS, CudaCapture, GraphedSteps
from utils.engine.loop import Progress, sgd, train_epoch
from utils.engine.precision import speed_up
from utils.engine.scoring import predict
from utils.engine.step import TrainStep
from utils.features.views import TrainFeatures
from utils.report.table import markdown_lines
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE1

PRECISIONS = {"off": "TF32", "bf16": "bf16"}
HEADER = [
    *("precision", "steps", "stage 1, images/s", "epoch, s, min / median / max"),
    *("200 epochs, scored once, s", "stage-2 feature pass, images/s"),
]


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one unmeasured."""
    return common.alternate({"work": work}, repeats)["work"]


def measure(
    train: DeviceImages, config: Config, epochs: int, capture: CudaCapture | None, channels: int = 3
) -> tuple[nn.Module, list[float], list[float]]:
    """Train a network for some epochs unmeasured, by graphs where there is a capture.

    Returns it, the seconds of `epochs` more, and those of as many feature passes of stage 2.
    """
    torch.manual_seed(SEED)
    model = build_model(config.network, config.num_class, channels).to(train.device, memory_format=LAYOUT)
    speed_up(model, config, train.device)
    done, views, features = count(), count(), TrainFeatures(model, train, SEED, None)
    optimizer = sgd(model.parameters(), config.lr, config.momentum, config.wd, config.nesterov)
    step = TrainStep(model, build_loss("ce"), optimizer)
    step = GraphedSteps(step, capture, sys.exit) if capture else step

    def epoch() -> None:
        number = next(done)
        model.train()
        order = epoch_order(SEED, number, len(train))
        batches = train.augmented(order, config.batch_size, SEED, number)
        train_epoch(step, batches, Progress(), config.lr)

    for _ in range(WARM_STEPS if capture else 0):
        epoch()
    seconds = timed(epoch, epochs)
    model.eval()
    return model, seconds, timed(lambda: features.of_epoch(next(views)), epochs)


def table(data: LongTailedData, device: torch.device, epochs: int) -> list[list[str]]:
    """A line each precision and kind of steps, below the header."""
    train, test = (DeviceImages(part, data.views, device) for part in (data.train, data.test))
    lines = [HEADER]
    for amp, name in PRECISIONS.items():
        config = resolve(STAGE1, {"amp": amp, "seed": SEED})
        for steps, capture in (("plain", None), ("graphs", CudaCapture())):
            model, seconds, passes = measure(train, config, epochs, capture)
            [scoring] = timed(lambda model=model: predict(model, test, mirror=True), 1)
            middle = median(seconds)
            rates = [f"{len(train) / own:.0f}" for own in (middle, median(passes))]
            spread = f"{min(seconds):.3f} / {middle:.3f} / {max(seconds):.3f}"
            lines.append([name, steps, rates[0], spread, f"{config.epochs * middle + scoring:.0f}", rates[1]])
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The whole table.

    Raises:
        UserError: there is no CUDA device.
    """
    parser = common.arguments(__doc__)
    parser.add_argument("--epochs", type=common.positive, default=5, help="measured epochs of each way")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(f"benchmarks.gpu needs a CUDA device, torch {torch.__version__} sees none here")
    data, what = common.load_cifar100_lt(args.data_dir)
    device = torch.device("cuda")
    lines = table(data, device, args.epochs)
    title = f"ResNet-34 on {torch.cuda.get_device_name(device)}, {what}, n = {args.epochs}"
    common.publish([title, markdown_lines(lines)], args.out)


if __name__ == "__main__":
    exit_cleanly(main)
