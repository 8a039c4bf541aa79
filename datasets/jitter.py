"""Colour jitter of a batch on its device, with draws of its own for every image.

The operations are torchvision's adjust_brightness, adjust_contrast and adjust_saturation for floating-point
images. Each of them moves an image away from something by a factor: from black, its mean grey, its grey.

Shapes: N images, H, W.
"""

from itertools import permutations

import torch
from torch import Tensor

OPERATIONS = BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations(OPERATIONS))


def jitter_(images: Tensor, draws: Tensor) -> None:
    """Change float images [N, 3, H, W] of values in [0, 1] in place.

    `draws`, on the CPU, are rows of `draws.jitter_draws`: a factor an operation, and which of ORDERS it is.
    """
    orders = torch.tensor(ORDERS)[draws[:, 3].long()]  # [N, 3]
    for operation in orders.unbind(dim=1):
        _adjust_(images, operation, draws.gather(1, operation[:, None]).squeeze(1))


def _adjust_(images: Tensor, operation: Tensor, factor: Tensor) -> None:
    """One operation and its factor an image, both [N] on the CPU: what is the same for all costs least."""
    factor, contrast, rest = (
        column.to(images.device, non_blocking=True)[:, None, None, None]
        for column in (factor, operation == CONTRAST, (1 - factor) * (operation != BRIGHTNESS))
    )
    if (operation == BRIGHTNESS).all():
        images.mul_(factor).clamp_(0, 1)
        return
    red, green, blue = images.split(1, dim=1)
    grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    away_from = torch.where(contrast, mean, grey).mul_(rest)
    images.mul_(factor).add_(away_from).clamp_(0, 1)
