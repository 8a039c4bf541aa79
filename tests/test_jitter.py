"""The colour jitter of a batch is torchvision's of every image, with the image's own factors and order."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from datasets.images.draws import jitter_draws
from datasets.images.in_memory import Normalise
from datasets.images.jitter import BRIGHTNESS, CONTRAST, ORDERS, SATURATION, jittered
from tests.odd_images import picture
from utils.base.seeding import generator_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADJUST = {BRIGHTNESS: tv.adjust_brightness, CONTRAST: tv.adjust_contrast, SATURATION: tv.adjust_saturation}
EXACT = 1e-6  # of values in [0, 1]


def pictures(count: int = 12) -> torch.Tensor:
    """uint8 [N, H, W, 3]"""
    return torch.from_numpy(np.stack([np.asarray(picture(i, 40, 30)) for i in range(count)]))


def planes(count: int = 12) -> torch.Tensor:
    """float32 [N, 3, H, W] in [0, 1]"""
    return pictures(count).permute(0, 3, 1, 2).float().div(255)


def changed(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """float32 [N, 3, H, W] of uint8 [N, H, W, 3]"""
    return jittered(images, draws).permute(0, 3, 1, 2)


def by_torchvision(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    out = []
    for image, row in zip(images, draws.tolist(), strict=True):
        out.append(image)
        for operation in ORDERS[int(row[3])]:
            out[-1] = ADJUST[operation](out[-1], row[operation])
    return torch.stack(out)


def draws(count: int = 12, strength: float = 0.4, seed: int = 0) -> torch.Tensor:
    return jitter_draws(count, strength, generator_for(seed, "jitter", 0))


@pytest.mark.parametrize("strength", [0.4, 0.9])
def test_a_batch_equals_torchvision_image_by_image(strength):
    images, rows = planes(60), draws(60, strength)
    assert rows[:, 3].unique().tolist() == [0, 1, 2, 3, 4, 5]
    expected = by_torchvision(images, rows)
    assert (expected - images).abs().mean() > 0.02
    assert (changed(pictures(60), rows) - expected).abs().max() < EXACT


def test_values_are_clamped_after_every_operation():
    one = pictures(1).repeat(6, 1, 1, 1)
    rows = torch.tensor([[1.9, 0.2, 1.0, order] for order in range(6)])
    assert one.max() / 255 * 1.9 > 1.5  # so that clamping in between has an effect
    ours = changed(one, rows)
    assert (ours - by_torchvision(planes(1).repeat(6, 1, 1, 1), rows)).abs().max() < EXACT
    assert ours.min() >= 0 and ours.max() <= 1


def test_an_image_is_changed_alike_alone_and_in_a_batch():
    rows, normalise = draws(), Normalise(MEAN, STD, 40, "cpu")
    together = normalise(pictures(), rows)
    for i in range(12):
        assert torch.equal(normalise(pictures()[i : i + 1], rows[i : i + 1])[0], together[i])


def test_normalising_after_the_jitter_gives_channels_last_and_torchvisions_values():
    rows = draws()
    ours = Normalise(MEAN, STD, 40, "cpu")(pictures(), rows)
    expected = tv.normalize(by_torchvision(planes(), rows), MEAN, STD)
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    assert (ours - expected).abs().max() < 1e-5
