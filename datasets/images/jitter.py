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
ON_CPU = 1  # images are worked on together there: its cache holds one


def jittered(images: Tensor, draws: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, H, W, 3] in [0, 1], changed in colour.

    `draws`, on the CPU, are rows of `draws.jitter_draws`: a factor an operation, and which of ORDERS it is.
    """
    number, height, width, _ = images.shape
    orders = torch.tensor(ORDERS)[draws[:, 3].long()]  # [N, 3]
    steps = [_weights(order, draws).to(images.device) for order in orders.unbind(dim=1)]
    together = ON_CPU if images.device.type == "cpu" else number
    # memory that is used again costs no page faults
    values, all_planes, all_grey = (
        torch.empty(shape, dtype=torch.float32, device=images.device)
        for shape in (images.shape, (together, 3, height, width), (together, 1, height, width))
    )
    for at in range(0, number, together):
        part = slice(at, min(at + together, number))
        planes, grey = all_planes[: part.stop - at], all_grey[: part.stop - at]
        planes.copy_(images[part].permute(0, 3, 1, 2)).div_(255)
        for weights, dark in zip(steps, (orders[part] == BRIGHTNESS).all(dim=0).tolist(), strict=True):
            _move_(planes, *weights[:, part], None if dark else grey)
        values[part] = planes.permute(0, 2, 3, 1)
    return values


def _weights(operation: Tensor, draws: Tensor) -> Tensor:
    """[3, N, 1, 1, 1]: of an image itself, of its mean grey, of its grey, where `operation` [N] is next."""
    factor = draws.gather(1, operation[:, None]).squeeze(1)
    rest = 1 - factor
    weights = torch.stack([factor, rest * (operation == CONTRAST), rest * (operation == SATURATION)])
    return weights[:, :, None, None, None]


def _move_(images: Tensor, own: Tensor, of_mean: Tensor, of_grey: Tensor, grey: Tensor | None) -> None:
    """Mix images [n, 3, H, W] in place with their grey, noted in `grey` [n, 1, H, W]; None: with black."""
    if grey is None:
        images.mul_(own).clamp_(0, 1)
        return
    red, green, blue = images.split(1, dim=1)
    torch.mul(red, 0.2989, out=grey).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    grey.mul_(of_grey).add_(mean.mul_(of_mean))
    images.mul_(own).add_(grey).clamp_(0, 1)
