"""Passes over images that do not train: logits, classes, scores.

Shapes: N images, C channels, H, W, K classes, V views of an image.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from datasets.images.on_disk import Images
from utils.base.distributed import ALONE, World
from utils.metrics.accuracy import Scores, predictions

EVAL_BATCH = 256
# rows of a forward pass without gradients on a CPU, whose caches hold the activations of few images
CPU_ROWS = 64


def predict(model: nn.Module, images: Images, mirror: bool, batch_size: int = EVAL_BATCH) -> Tensor:
    """Logits [N, K] of every image, once; with `mirror` the mean of the image's and its mirror image's."""
    return torch.cat(list(logit_batches(model, images, mirror, batch_size)))


def logit_batches(
    model: nn.Module, images: Images, mirror: bool, batch_size: int = EVAL_BATCH, world: World = ALONE
) -> Iterator[Tensor]:
    """The same a batch [n, K] at a time, in file order; of several processes each takes its block."""
    model.eval()
    for inputs, _ in images.batches(batch_size, *world.block(len(images))):
        with torch.inference_mode():
            logits = forward_views(model, inputs, mirror).mean(dim=0)
        yield logits


def forward_views(forward: Callable[[Tensor], Tensor], inputs: Tensor, mirror: bool) -> Tensor:
    """What `forward` gives of images [N, C, H, W], and with `mirror` of their mirror images: [V, N, ...].

    Both go through together, on a CPU few at a time: a fixed number, since it may decide the last bits.
    """
    views = 2 if mirror else 1
    rows = CPU_ROWS // views if inputs.device.type == "cpu" else max(len(inputs), 1)
    parts = [torch.cat([part, part.flip(-1)]) if mirror else part for part in inputs.split(rows)]
    return torch.cat([forward(part).unflatten(0, (views, -1)) for part in parts], dim=1)


def predict_classes(model: nn.Module, images: Images, mirror: bool, world: World = ALONE) -> Tensor:
    """Predicted classes int64 [N] of every image, in all processes."""
    own = [predictions(logits) for logits in logit_batches(model, images, mirror, world=world)]
    return world.gather(torch.cat(own) if own else images.labels[:0])


def score(
    batches: Iterable[Tensor], labels: Tensor, num_classes: int, world: World = ALONE, **options: object
) -> Scores:
    """The scores of logits [n, K], batch by batch in file order, against `labels` [N] of all of them.

    Of several processes each brings the logits of its block, and gets the scores of all. `options` are those
    of `Scores`.
    """
    scores = Scores(labels, num_classes, first=world.block(len(labels))[0], **options)
    for logits in batches:
        scores.add(logits)
    return scores.of_all(world)
