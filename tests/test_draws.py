"""Draws of a view have the law of torchvision's, and jitter is torchvision's of every image of a batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torchvision import transforms
from torchvision.transforms import transforms as torchvision_transforms

from datasets import CHANNELS
from datasets.images import jitter
from datasets.images.draws import (
    crop_box,
    crop_draws,
    crop_rows,
    jitter_draws,
    jitter_rows,
    resized_crop_draws,
)
from datasets.images.in_memory import Normalise
from datasets.images.jitter import BRIGHTNESS, CONTRAST, ORDERS, SATURATION, jittered
from datasets.types import FileViews
from tests.odd_images import picture
from utils.base.seeding import generator_for

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(375, 500), (32, 32), (20, 400), (400, 20), (3, 5), (1, 1), (1, 900)]
VIEWS_224 = FileViews(*CHANNELS["imagenet"], jitter=0.4)
FEW, MANY = 300, 6000


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return resized_crop_draws(count, generator_for(seed, "view", 0))


def boxes(height: int, width: int, count: int = MANY) -> torch.Tensor:
    """Our crops (top, left, height, width) of an image."""
    return torch.tensor([crop_box(row, height, width) for row in draws(count).tolist()])


class Replay:
    """Stands for torch in torchvision's code and hands it the draws of a row in place of random numbers."""

    def __init__(self, row: list[float]) -> None:
        attempts = zip(row[:10], row[10:20], strict=True)
        self.values = iter([value for attempt in attempts for value in attempt])
        self.positions = iter(row[20:22])
        self.log, self.tensor = torch.log, torch.tensor

    def empty(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(uniform_=lambda low, high: torch.tensor(next(self.values)))

    def exp(self, value: torch.Tensor) -> torch.Tensor:
        return value  # rows hold the ratio, not its logarithm

    def randint(self, low: int, high: int, size: tuple) -> torch.Tensor:
        return torch.tensor(low + int(next(self.positions) * (high - low)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_row_gives_the_crop_that_torchvision_makes_of_the_same_draws(monkeypatch, height, width):
    image = torch.empty(3, height, width)
    for row in draws(FEW).tolist():
        monkeypatch.setattr(torchvision_transforms, "torch", Replay(row))
        expected = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
        assert crop_box(row, height, width) == tuple(expected)


def test_areas_and_log_ratios_are_uniform_as_torchvision_draws_them():
    rows = draws(2000).double()
    for attempt in range(10):
        assert stats.kstest(rows[:, attempt], stats.uniform(0.08, 0.92).cdf).pvalue > 1e-3
        low = torch.log(torch.tensor(RATIO[0])).item()
        assert stats.kstest(rows[:, 10 + attempt].log(), stats.uniform(low, -2 * low).cdf).pvalue > 1e-3
    correlations = torch.corrcoef(rows.T) - torch.eye(23, dtype=torch.double)
    assert correlations.abs().max() < 5 / 2000**0.5


def test_positions_are_uniform_from_the_first_to_the_last():
    _, left, _, width = boxes(40, 40).T
    counts = torch.bincount(left[width == 20], minlength=21)
    assert len(counts) == 21 and (counts > 0).all()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_where_no_attempt_fits_the_middle_is_taken_within_the_allowed_ratios():
    shares = [1.0] * 10 + [1.0] * 10 + [0.99, 0.99, 1.0]
    assert crop_box(shares, 10, 1000) == (0, 493, 10, 13)  # 4 : 3
    assert crop_box(shares, 1000, 9) == (494, 0, 12, 9)  # 3 : 4
    too_wide = [1.0] * 10 + [4 / 3] * 10 + [0.99, 0.99, 1.0]
    assert crop_box(too_wide, 100, 101) == (0, 0, 100, 101)  # an allowed ratio: the whole image


def test_flips_are_fair_and_independent_of_neighbours():
    flips = draws(MANY)[:, -1]
    assert set(flips.tolist()) == {0.0, 1.0}
    assert abs(int(flips.sum()) - MANY / 2) < 5 * (MANY / 4) ** 0.5
    assert abs(int((flips[1:] == flips[:-1]).sum()) - MANY / 2) < 5 * (MANY / 4) ** 0.5


def test_draws_depend_on_seed_and_view_alone():
    first = crop_rows(VIEWS_224, FEW, 3, 5)
    torch.rand(10)
    assert torch.equal(first, crop_rows(VIEWS_224, FEW, 3, 5))
    for seed, view in ((3, 6), (4, 5)):
        assert not (first == crop_rows(VIEWS_224, FEW, seed, view))[:, :22].any(1).any()
    assert not torch.equal(jitter_rows(VIEWS_224, FEW, 3, 5), jitter_rows(VIEWS_224, FEW, 3, 6))


def test_padded_crops_keep_the_draws_of_released_results():
    top, left, flip = crop_draws(6, 4, generator_for(0, "view", 0))
    assert (top.tolist(), left.tolist()) == ([2, 4, 6, 2, 2, 5], [4, 8, 4, 0, 3, 1])
    assert flip.tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_jitter_factors_are_uniform_and_all_six_orders_equally_likely(strength):
    rows = jitter_draws(MANY, strength, generator_for(0, "jitter", 0)).double()
    low = max(0, 1 - strength)
    for column in rows[:, :3].T:
        assert stats.kstest(column, stats.uniform(low, 1 + strength - low).cdf).pvalue > 1e-3
    counts = torch.bincount(rows[:, 3].long())
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-3
    correlations = torch.corrcoef(rows.T) - torch.eye(4, dtype=torch.double)
    assert correlations.abs().max() < 5 / MANY**0.5


MEAN, STD = CHANNELS["imagenet"]
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


def factors(count: int = 12, strength: float = 0.4, seed: int = 0) -> torch.Tensor:
    return jitter_draws(count, strength, generator_for(seed, "jitter", 0))


@pytest.mark.parametrize(("strength", "together"), [(0.4, 1), (0.9, 7), (0.4, 60)])  # on a GPU all of a batch
def test_a_batch_equals_torchvision_image_by_image(monkeypatch, strength, together):
    monkeypatch.setattr(jitter, "ON_CPU", together)
    images, rows = planes(60), factors(60, strength)
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


def test_normalising_after_the_jitter_gives_channels_last_and_torchvisions_values():
    rows = factors()
    ours = Normalise(MEAN, STD, 40, "cpu")(pictures(), rows)
    expected = tv.normalize(by_torchvision(planes(), rows), MEAN, STD)
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    assert (ours - expected).abs().max() < 1e-5
