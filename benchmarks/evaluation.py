"""Scoring images, image and mirror image, as the scripts do after an epoch, against the plain loop.

Checks first that both give the same logits.
"""

from collections.abc import Iterable
from copy import deepcopy
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks import baselines, common
from benchmarks.common import Bench, DiffersError
from benchmarks.stage1 import WORKER_CHOICES
from benchmarks.table import Findings, each, row
from datasets.images.in_memory import DeviceImages
from datasets.images.open import Images
from models import THIN_NETWORKS
from utils.engine.device import LAYOUT
from utils.engine.scoring import EVAL_BATCH, predict, predict_classes

TARGETS = {"resnet32": 1.5, "resnet34": 1.05}
TOLERANCE = 1e-3  # of a logit


def images_of(bench: Bench, network: str) -> int:
    """Images of a timing: whole batches, but where it is quick."""
    return 8 if bench.quick else EVAL_BATCH * (4 if network in THIN_NETWORKS else 1)


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The row of one network."""
    data, count = bench.data, images_of(bench, network)
    part = common.sample(data.test, count)
    images = DeviceImages(part, data.views)
    plain = deepcopy(bench.model(network)).eval()
    ours = in_our_layout(plain)
    loaders = {
        workers: baselines.endless(baselines.test_loader(part, data.views, EVAL_BATCH, workers))
        for workers in WORKER_CHOICES
    }
    difference = check_same(ours, images, plain, baselines.test_loader(part, data.views, EVAL_BATCH))

    def run_plain(workers: int) -> None:
        baselines.evaluate(plain, islice(loaders[workers], -(-count // EVAL_BATCH)))

    chosen = common.fastest({workers: lambda w=workers: run_plain(w) for workers in WORKER_CHOICES})
    works = {"ours": lambda: predict_classes(ours, images, mirror=True), "plain": lambda: run_plain(chosen)}
    seconds = common.alternate(works, turns, bench.tick)
    ratio = row(
        f"evaluation with mirror image, {network}",
        "plain loop",
        "images/s",
        *(each(seconds[name], count) for name in ("ours", "plain")),
        TARGETS[network],
    )
    note = (
        f"evaluation, {network}: logits of {count} test images differ by {difference:.1e} at most (tolerance "
        f"{TOLERANCE:g}); the plain loop is at its faster with {chosen} worker process(es)"
    )
    return Findings([ratio], [note])


def in_our_layout(model: nn.Module) -> nn.Module:
    """The network as the scripts evaluate it."""
    return deepcopy(model).to(memory_format=LAYOUT)


def check_same(
    ours: nn.Module, images: Images, plain: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """The largest difference of a logit.

    Raises:
        DiffersError: more than rounding.
    """
    expected = torch.cat([baselines.mirrored_logits(plain, inputs) for inputs, _ in batches])
    difference = float((predict(ours, images, mirror=True) - expected).abs().max())
    if not difference < TOLERANCE:
        raise DiffersError(f"test logits differ by {difference:.1e} from the plain loop's")
    return difference
