"""Where the time of every stage goes, by kind of operation, beside what the machine can do.

    python -m benchmarks.profile [--networks resnet32,resnet34] [--steps 4] [--threads N] [--out FILE]

About three minutes on two idle cores. The loops are the scripts' own (train_epoch, the feature pass,
logit_batches), on CIFAR100-LT's images, under torch's profiler: the time of an operation is its own on the
calling thread, without the operations within it, with waiting for the other threads. The roofs are measured
in the same run: a float32 product of large matrices, one of the size that the network's middle stage has as a
convolution, and a copy of a large tensor for what only moves memory; what fits a cache moves faster than
that. Convolutions are counted without the products that fall on padding, which need not be computed: a tenth
to a seventh of all in networks for images of 32 x 32. CPU only: of a GPU see benchmarks.gpu.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from datasets import LongTailedData
from datasets.images.in_memory import DeviceImages
from losses import build_loss
from models import NETWORKS
from utils.base.seeding import epoch_order
from utils.engine.loop import Progress, sgd, train_epoch
from utils.engine.scoring import logit_batches
from utils.engine.step import TrainStep
from utils.features.frozen import StoredViews
from utils.features.views import FIRST_VIEW, feature_batches
from utils.metrics import predictions
from utils.settings.presets import preset_for

SEED, HEAD_STEPS, REPEATS, SHOWN = 0, 200, 5, 0.01
GEMM_SIDE, COPY_BYTES = 2048, 2**26
# an operation belongs to the first range that it lies in, else to the group that knows its name
RANGES = {"augmentation": "augmentation", "Optimizer.": "optimiser"}
GROUPS = {
    "convolutions": "mkldnn_convolution convolution_backward convolution _convolution",
    "batch-norm": "native_batch_norm native_batch_norm_backward batch_norm _batch_norm_impl_index "
    "_native_batch_norm_legit",
    "other elementwise": "relu relu_ clamp_min clamp_min_ threshold_backward add add_ mul mul_ div div_ mean "
    "sub sub_ avg_pool2d avg_pool2d_backward expand neg",
    "matrix products": "addmm mm matmul linear t transpose",
    "loss and scores": "_log_softmax log_softmax _log_softmax_backward_data nll_loss_forward nll_loss "
    "nll_loss_nd nll_loss_backward cross_entropy_loss logsumexp sum argmax eq ne abs max isfinite item "
    "_local_scalar_dense",
    "copies and layout": "copy_ clone contiguous cat flip to _to_copy index index_select slice split select "
    "narrow view reshape permute as_strided unflatten flatten resize_ empty empty_like empty_strided "
    "fill_ zero_ zeros zeros_like ones_like new_zeros new_empty detach detach_ unsqueeze stack",
}
MOVES_MEMORY = ("batch-norm", "other elementwise")
ORDER = (*list(GROUPS)[:4], "optimiser", "augmentation", *list(GROUPS)[4:], "other", "Python and idle")
Shape = Sequence[int]
GROUP_OF = {f"aten::{name}": group for group, names in GROUPS.items() for name in names.split()}


def convolution_flops(
    image: Shape, kernel: Shape, _: Shape | None, stride: Shape, padding: Shape, dilation: Shape, *rest, **out
) -> int:
    """A multiplication and an addition as two, without those that fall on padding; arguments as aten's."""
    ones = torch.ones(1, 1, *image[2:]), torch.ones(1, 1, *kernel[2:])
    within = functional.conv2d(*ones, None, stride, padding, dilation).sum()
    return 2 * image[0] * kernel[0] * kernel[1] * int(within)


def backward_flops(_: Shape, image: Shape, kernel: Shape, *rest, **out) -> int:
    """The same of a backward pass: as much as forward for each gradient, of the image and of the kernel."""
    *geometry, _, _, _, wanted = rest
    return sum(wanted[:2]) * convolution_flops(image, kernel, *geometry)


CONVOLUTION_FLOPS = {
    torch.ops.aten.convolution: convolution_flops,
    torch.ops.aten.convolution_backward: backward_flops,
}


class Profiled:
    """Seconds of one stretch of work by group; `unknown`: seconds of operations that no group has."""

    def __init__(self, work: Callable[[], object]) -> None:
        work()
        with FlopCounterMode(display=False, custom_mapping=CONVOLUTION_FLOPS) as counter:
            work()
        counts = counter.get_flop_counts().get("Global", {})
        self.flops = sum(value for op, value in counts.items() if "convolution" in str(op))
        started = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            work()
            self.wall = time.perf_counter() - started
        self.seconds, self.unknown = Counter(), Counter()
        self.bytes = 0
        for event in profiler.events():
            group = group_of(event)
            own = event.self_cpu_time_total / 1e6
            self.seconds[group] += own
            if group == "other":
                self.unknown[event.name] += own
            elif group in MOVES_MEMORY:
                self.bytes += least_traffic(event.input_shapes)
        self.seconds["Python and idle"] += self.wall - sum(self.seconds.values())

    def share(self, group: str) -> float:
        return self.seconds[group] / self.wall

    def cells(self, product: float, copy: float) -> list[str]:
        """Shares of the wall time in percent, and what the two kinds of work reach of their roofs."""
        moving = sum(self.seconds[group] for group in MOVES_MEMORY)
        convolving = self.seconds["convolutions"]
        computed = self.flops / convolving if self.flops else None
        moved = self.bytes / moving if self.flops else None
        return [
            *(f"{100 * self.share(group):.1f}" for group in ORDER),
            "-" if computed is None else f"{computed / 1e9:.0f} ({100 * computed / product:.0f} %)",
            "-" if moved is None else f"{moved / 1e9:.1f} ({100 * moved / copy:.0f} %)",
        ]


def group_of(event: FunctionEvent) -> str:
    """Where an operation's own time is counted."""
    outer = event
    while outer is not None:
        for begin, group in RANGES.items():
            if outer.name.startswith(begin):
                return group
        outer = outer.cpu_parent
    if event.name.startswith(("autograd::", "torch::autograd::")) or event.name.endswith("Backward0"):
        return "Python and idle"  # autograd's own work around the operations
    return GROUP_OF.get(event.name, "other")


def least_traffic(shapes: Sequence[Sequence[int]]) -> int:
    """Bytes of float32 that an operation must move: its large inputs once, and one output."""
    sizes = [prod(shape) for shape in shapes if shape]
    largest = max(sizes, default=0)
    return 4 * (largest * sizes.count(largest) + largest)


def watched(batches: Iterable) -> Iterator:
    """The batches, each made within a range that the profile knows."""
    source = iter(batches)
    while True:
        with record_function("augmentation"):
            batch = next(source, None)
        if batch is None:
            return
        yield batch


def works(network: str, data: LongTailedData, steps: int) -> dict[str, Callable[[], object]]:
    """A stretch of each stage's own loop, by name."""
    preset = preset_for("cifar100_lt", network)
    batch = preset["batch_size"]
    model = common.fresh_model(network, data.train, data.views).to(memory_format=torch.channels_last)
    learner, frozen = deepcopy(model), deepcopy(model).eval().requires_grad_(False)
    images = DeviceImages(common.sample(data.train, steps * batch), data.views)
    optimizer = sgd(learner.parameters(), preset["lr"], preset["momentum"], preset["wd"], nesterov=False)
    order = epoch_order(SEED, 0, len(images))

    def stage1() -> None:
        learner.train()
        batches = watched(images.augmented(order, batch, SEED, 0))
        train_epoch(TrainStep(learner, build_loss("ce"), optimizer), batches, Progress(), preset["lr"])

    def feature_pass() -> None:
        list(feature_batches(frozen, images, (SEED, FIRST_VIEW), watch=lambda batches, *_: watched(batches)))

    def evaluation() -> None:
        for logits in logit_batches(frozen, images, mirror=True):
            predictions(logits)

    return {
        "stage 1, training step": stage1,
        "stage 2, feature pass": feature_pass,
        "stage 2, head epoch (los)": head_epoch(model.fc, preset),
        "evaluation, with mirror image": evaluation,
    }


def head_epoch(fc: nn.Linear, preset: dict) -> Callable[[], None]:
    """Steps of the classifier on stored features, on one thread as in stage 2."""
    head, batch = deepcopy(fc), preset["batch_size"]
    generator = torch.Generator().manual_seed(SEED)
    features = torch.randn(1, HEAD_STEPS * batch, head.in_features, generator=generator)
    labels = torch.randint(head.out_features, (len(features[0]),), generator=generator)
    views, order = StoredViews(features, labels), torch.randperm(len(labels), generator=generator)
    loss_fn = build_loss("los", label_smooth=preset["label_smooth"])
    optimizer = sgd(head.parameters(), preset["finetune_lr"], preset["momentum"], 0.0, nesterov=False)

    def epoch() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        batches = watched(views.batches(order, batch, 0))
        train_epoch(TrainStep(head, loss_fn, optimizer), batches, Progress(), preset["finetune_lr"])
        torch.set_num_threads(before)

    return epoch


def best_rate(work: Callable[[], Tensor], amount: float) -> float:
    """`amount` a second, at the shortest of a few times."""
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return amount / min(seconds)


def roofs(network: str, data: LongTailedData, batch: int = 64) -> tuple[float, float, float]:
    """FLOP/s of large products and of one of the middle stage's 3x3 convolution's size, bytes/s of a copy."""
    model = common.fresh_model(network, data.train, data.views)
    kernels = [tuple(weight.shape[:2]) for weight in model.parameters() if weight.ndim == 4]
    width, depth = kernels[len(kernels) // 2]
    pixels = batch * (data.train.images.shape[-1] // 2) ** 2
    a, b = torch.randn(pixels, 9 * depth), torch.randn(9 * depth, width)
    source = torch.randn(COPY_BYTES // 4)
    target = torch.empty_like(source)
    square = torch.randn(GEMM_SIDE, GEMM_SIDE)
    return (
        best_rate(lambda: square @ square, 2 * GEMM_SIDE**3),
        best_rate(lambda: a @ b, 2 * pixels * 9 * depth * width),
        best_rate(lambda: target.copy_(source), 2 * COPY_BYTES),
    )


def section(network: str, data: LongTailedData, steps: int) -> str:
    """The table of a network: a column a stretch of work."""
    large, same, copy = roofs(network, data)
    stretches = works(network, data, steps)
    for work in stretches.values():  # the profiler's first sessions set it up, on a thread of its own
        Profiled(work)
    profiled = {name: Profiled(work) for name, work in stretches.items()}
    names = [f"{group}, %" for group in ORDER]
    names += ["convolutions, GFLOP/s (of the roof)", "batch-norm and elementwise, GB/s (of the roof)"]
    columns = [one.cells(large, copy) for one in profiled.values()]
    lines = [["", *profiled], ["---"] * (len(profiled) + 1)]
    lines += [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    told = (
        f"Roofs: product of large matrices {large / 1e9:.0f} GFLOP/s, of a convolution's size "
        f"{same / 1e9:.0f}; copy {copy / 1e9:.1f} GB/s, read and written."
    )
    unknown = {
        f"{op} {100 * seconds / one.wall:.1f} % ({name})"
        for name, one in profiled.items()
        for op, seconds in one.unknown.items()
        if seconds / one.wall > SHOWN
    }
    listed = f" Above 1 % and in no group: {', '.join(sorted(unknown))}." if unknown else ""
    return f"## {network}\n\n{rows}\n\n{told}{listed}"


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
    title = f"Shares of the wall time in percent, {what}, batches of 64 ({args.steps} of them)."
    common.publish([title, *(section(network, data, args.steps) for network in networks)], args.out)


if __name__ == "__main__":
    main()
