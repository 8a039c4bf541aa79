"""The orders in which a head visits the training images, as functions of seed and epoch.

Shapes: N images.
"""

import torch
from torch import Tensor

from utils.base.seeding import epoch_order, generator_for


def order_of(seed: int, sampler: str, epoch: int, labels: Tensor, num_classes: int) -> Tensor:
    """The order of an epoch, int64 [N]: every image once, or where `sampler` is balanced see below."""
    if sampler == "balanced":
        return balanced_order(seed, epoch, labels, num_classes)
    return epoch_order(seed, epoch, len(labels))


def balanced_order(seed: int, epoch: int, labels: Tensor, num_classes: int) -> Tensor:
    """N draws with replacement: a class, each equally likely, then an image of it; int64 [N].

    Source: class-balanced sampling, as in Kang et al. 2020; `labels` int64 [N], every class with an image.
    """
    generator = generator_for(seed, "balanced order", epoch)
    by_class = labels.cpu().argsort(stable=True)
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    first = counts.cumsum(0) - counts
    drawn = torch.randint(num_classes, (len(labels),), generator=generator)
    place = torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[drawn]
    return by_class[first[drawn] + place.long()]
