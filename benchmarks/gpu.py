"""Stage 1 and the feature pass of stage 2 on one CUDA device, against the roof of a matrix product.

    python -m benchmarks.gpu [--epochs 5] [--data_dir data] [--out FILE]

ResNet-34, batches of 64, CIFAR100-LT at ratio 100 (random images of the same numbers where the files are not
here): plain steps and steps in CUDA graphs, in TF32 and bf16. Times are whole epochs, augmentation and the
end of the epoch included, after as many as it takes to record both graphs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median

import torch
from torch import nn

from benchmarks import common
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
from utils.settings.config import Config, resolve
from utils.settings.parse import STAGE1

SEED = 0
GFLOP_AN_IMAGE = 6.95  # ResNet-34 at 32 x 32 pixels, forward and backward, a multiply-add as two
GEMM_SIDE, GEMM_REPEATS = 8192, 10
PRECISIONS = {"off": ("TF32", torch.float32), "bf16": ("bf16", torch.bfloat16)}


@dataclass(frozen=True)
class Epochs:
    """What was measured of one way to train: seconds of each epoch of `images`, the roof in FLOP/s."""

    seconds: list[float]
    images: int
    roof: float

    @property
    def rate(self) -> float:
        """Images a second at the median time."""
        return self.images / median(self.seconds)

    @property
    def share(self) -> float:
        """Part of the roof that the convolutions' arithmetic comes to."""
        return self.rate * GFLOP_AN_IMAGE * 1e9 / self.roof

    def whole_run(self, epochs: int, scoring: float) -> float:
        """Seconds of a run of `epochs` that is scored once, in `scoring` seconds."""
        return epochs * median(self.seconds) + scoring


def timed(work: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of `repeats` calls, the device waited for before and after."""
    seconds = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32_products() -> Iterator[None]:
    """Within, float32 products take TF32 too, as convolutions do by torch's default."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def gemm_roof(device: torch.device, dtype: torch.dtype, side: int = GEMM_SIDE) -> float:
    """FLOP/s of the product of two square matrices; of float32 ones in TF32."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    with tf32_products():
        timed(lambda: a @ b, 3, device)
        return 2 * side**3 / min(timed(lambda: a @ b, GEMM_REPEATS, device))


def network(config: Config, channels: int, device: torch.device) -> nn.Module:
    torch.manual_seed(SEED)
    model = build_model(config.network, config.num_class, channels).to(device, memory_format=LAYOUT)
    speed_up(model, config, device)
    return model


def trainer(
    model: nn.Module, train: DeviceImages, config: Config, capture: CudaCapture | None
) -> Callable[[], None]:
    """What trains `model` for one more epoch, by graphs where there is a capture."""
    optimizer = sgd(model.parameters(), config.lr, config.momentum, config.wd, config.nesterov)
    step = TrainStep(model, build_loss("ce"), optimizer)
    step = GraphedSteps(step, capture) if capture else step
    done = 0

    def epoch() -> None:
        nonlocal done
        model.train()
        batches = train.augmented(epoch_order(SEED, done, len(train)), config.batch_size, SEED, done)
        train_epoch(step, batches, Progress(), config.lr)
        done += 1

    return epoch


def measure(
    train: DeviceImages,
    config: Config,
    roof: float,
    epochs: int,
    capture: CudaCapture | None,
    channels: int = 3,
) -> tuple[nn.Module, Epochs]:
    """Train for some epochs unmeasured, then for `epochs` measured ones."""
    device = train.device
    model = network(config, channels, device)
    epoch = trainer(model, train, config, capture)
    timed(epoch, WARM_STEPS + 1 if capture else 1, device)
    return model, Epochs(timed(epoch, epochs, device), len(train), roof)


def feature_rate(model: nn.Module, train: DeviceImages, repeats: int) -> float:
    """Images a second of a view's feature pass in stage 2."""
    features, views = TrainFeatures(model.eval(), train, SEED, None), count()

    def one_pass() -> None:
        features.of_epoch(next(views))

    timed(one_pass, 1, train.device)
    return len(train) / median(timed(one_pass, repeats, train.device))


def row(precision: str, steps: str, epochs: Epochs, run_epochs: int, scoring: float, features: float) -> str:
    cells = (
        precision,
        steps,
        f"{epochs.rate:.0f}",
        f"{min(epochs.seconds):.3f} / {median(epochs.seconds):.3f} / {max(epochs.seconds):.3f}",
        f"{100 * epochs.share:.1f} %",
        f"{epochs.whole_run(run_epochs, scoring):.0f}",
        f"{features:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def report(data: LongTailedData, what: str, device: torch.device, epochs: int) -> Iterator[str]:
    """Lines of a Markdown table, one as soon as it is measured."""
    train, test = (DeviceImages(part, data.views, device) for part in (data.train, data.test))
    name = torch.cuda.get_device_name(device)
    yield f"ResNet-34 on {name}, torch {torch.__version__}, {what}, n = {epochs}"
    yield (
        "\n| precision | steps | stage 1, images/s | epoch, s, min / median / max | share of the roof | "
        "200 epochs, scored once, s | stage-2 feature pass, images/s |\n" + "|---" * 7 + "|"
    )
    roofs = {}
    for amp, (name, dtype) in PRECISIONS.items():
        roof = roofs[name] = gemm_roof(device, dtype)
        config = resolve(STAGE1, {"amp": amp, "seed": SEED})
        for steps, capture in (("plain", None), ("graphs", CudaCapture())):
            model, figures = measure(train, config, roof, epochs, capture)
            scoring = timed(lambda model=model: predict(model, test, mirror=True), 2, device)[-1]
            rate = feature_rate(model, train, epochs)
            yield row(name, steps, figures, config.epochs, scoring, rate)
    told = ", ".join(f"{name} {roof / 1e12:.0f} TFLOP/s" for name, roof in roofs.items())
    yield f"\nRoof: a product of {GEMM_SIDE} x {GEMM_SIDE} matrices: {told}."


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
    lines = []
    for line in report(data, what, torch.device("cuda"), args.epochs):
        print(line, flush=True)
        lines.append(line)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    exit_cleanly(main)
