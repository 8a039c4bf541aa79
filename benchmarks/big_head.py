"""A stage-2 step at iNaturalist's size (K = 8142, D = 2048, batch 512): the share outside its two products.

    python -m benchmarks.big_head [--steps 20] [--repeats 5] [--out FOLDER]

The step is the whole of it: rows gathered from mapped fp16 features, the LOS loss, backward, SGD. Beside it
the two matrix products that no linear head can do without, logits = x Wᵀ and the gradient of W, alone.
Random features: the time does not depend on them.
"""

import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.table import spread
from losses import LabelOverSmooth, label_smooth_for_gap
from utils.engine.loop import Progress, sgd, train_epoch
from utils.engine.step import TrainStep
from utils.features.frozen import StoredViews

WIDTH, CLASSES, BATCH, ROWS = 2048, 8142, 512, 32_768
GAP = 1.11


def mapped_features(folder: str) -> Tensor:
    """float16 [1, ROWS, WIDTH] in a mapped file."""
    features = torch.from_file(f"{folder}/train.bin", shared=True, size=ROWS * WIDTH, dtype=torch.float16)
    return features.copy_(torch.randn(ROWS * WIDTH)).view(1, ROWS, WIDTH)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=common.positive, default=20, help="steps a timing")
    parser.add_argument("--repeats", type=common.positive, default=5, help="pairs of timings")
    given = parser.parse_args(argv)
    labels = torch.arange(ROWS) % CLASSES
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))[: given.steps * BATCH]
    head, loss_fn = nn.Linear(WIDTH, CLASSES), LabelOverSmooth(label_smooth_for_gap(GAP, CLASSES))
    optimizer = sgd(head.parameters(), 1e-3, momentum=0.9, weight_decay=0.0, nesterov=False)
    step = TrainStep(head, loss_fn, optimizer)
    x, gradient = torch.randn(BATCH, WIDTH), torch.randn(BATCH, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        views = StoredViews(mapped_features(folder), labels)

        def steps() -> None:
            train_epoch(step, views.batches(order, BATCH, 0), Progress(), 1e-3)

        def products() -> None:
            for _ in range(given.steps):
                torch.mm(x, head.weight.detach().T)
                torch.mm(gradient.T, x)

        seconds = common.alternate({"steps": steps, "products": products}, given.repeats)
    shares = [1 - b / a for a, b in zip(seconds["steps"], seconds["products"], strict=True)]
    milliseconds = [f"{1000 * min(values) / given.steps:.0f}" for values in seconds.values()]
    lines = [
        f"stage-2 step, K = {CLASSES}, D = {WIDTH}, batch {BATCH}: {milliseconds[0]} ms, its two products "
        f"alone {milliseconds[1]} ms (minima)",
        f"share of the step outside the two products: {spread(shares)} (min / median / max, "
        f"n = {len(shares)}; goal below 0.3)",
    ]
    common.publish(["\n".join(lines)], given.out)


if __name__ == "__main__":
    main()
