"""The random draws of a view: functions of the generator (of a seed and a view) and the number of images.

Shapes: N images; the draws of image i are row i, whatever its file turns out to hold.
"""

import math

import torch
from torch import Tensor

from datasets.types import FileViews
from utils.base.seeding import generator_for

# torchvision's RandomResizedCrop: share of the area, width / height, attempts before the fallback
SCALE, RATIO, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
ORDERS = 6  # in which three operations can follow each other


def crop_draws(num_images: int, padding: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Crop offsets (top, left) int64, uniform on 0..2 padding, and fair flips bool, each [N]."""
    top, left = torch.randint(0, 2 * padding + 1, (2, num_images), generator=generator)
    return top, left, torch.rand(num_images, generator=generator) < 0.5


def resized_crop_draws(num_images: int, generator: torch.Generator) -> Tensor:
    """float32 [N, 23]: ten shares of the area, ten ratios width / height, two positions in [0, 1), flip.

    What torchvision's RandomResizedCrop draws, whether or not an attempt comes to be needed.
    """
    draws = torch.rand(num_images, 2 * ATTEMPTS + 3, generator=generator)
    areas, ratios, flips = draws[:, :ATTEMPTS], draws[:, ATTEMPTS : 2 * ATTEMPTS], draws[:, -1]
    areas.mul_(SCALE[1] - SCALE[0]).add_(SCALE[0])
    low, high = (math.log(ratio) for ratio in RATIO)
    ratios.mul_(high - low).add_(low).exp_()
    flips.copy_(flips < 0.5)
    return draws


def crop_box(row: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop that a row of `resized_crop_draws` takes from an image.

    The first of ten attempts that fits inside, else the middle, as near to the allowed ratios as can be.
    """
    for share, ratio in zip(row[:ATTEMPTS], row[ATTEMPTS : 2 * ATTEMPTS], strict=True):
        area = height * width * share
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            down, right = row[2 * ATTEMPTS : 2 * ATTEMPTS + 2]
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_draws(num_images: int, strength: float, generator: torch.Generator) -> Tensor:
    """float32 [N, 4]: factors of brightness, contrast and saturation, uniform on 1 ± strength, order 0..5."""
    draws = torch.rand(num_images, 4, generator=generator)
    low = max(0.0, 1 - strength)
    draws[:, :3].mul_(1 + strength - low).add_(low)
    draws[:, 3].mul_(ORDERS).floor_()
    return draws


def crop_rows(views: FileViews, num_images: int, seed: int, view: int) -> Tensor | None:
    """What a loader needs to draw training view `view`: float32 [N, columns], None where nothing is random.

    The last column says whether to flip. `pad_crop` has top and left before it: the draws of DeviceImages.
    """
    generator = generator_for(seed, "view", view)
    if views.augment == "plain":
        return None
    if views.augment == "pad_crop":
        rows = torch.stack([draw.float() for draw in crop_draws(num_images, views.padding, generator)], dim=1)
    else:
        rows = resized_crop_draws(num_images, generator)
    if not views.mirror:
        rows[:, -1] = 0
    return rows


def jitter_rows(views: FileViews, num_images: int, seed: int, view: int) -> Tensor | None:
    """`jitter_draws` of training view `view`; None without jitter."""
    if not views.jitter or views.augment == "plain":
        return None
    return jitter_draws(num_images, views.jitter, generator_for(seed, "jitter", view))
