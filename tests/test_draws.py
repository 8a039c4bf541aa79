"""The draws of a view have the law of torchvision's RandomResizedCrop and ColorJitter."""

from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms import transforms as torchvision_transforms

from datasets import CHANNELS
from datasets.images.draws import (
    crop_box,
    crop_draws,
    crop_rows,
    jitter_draws,
    jitter_rows,
    resized_crop_draws,
)
from datasets.types import FileViews
from utils.base.seeding import generator_for

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(375, 500), (500, 375), (32, 32), (20, 400), (400, 20), (3, 5), (1, 1), (1, 900), (224, 224)]
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


def test_jitter_changes_no_crop_and_without_mirror_images_nothing_else_changes():
    usual = crop_rows(VIEWS_224, FEW, 0, 0)
    steady = FileViews(*CHANNELS["imagenet"], mirror=False)
    assert torch.equal(usual[:, :-1], crop_rows(steady, FEW, 0, 0)[:, :-1])
    assert not crop_rows(steady, FEW, 0, 0)[:, -1].any()
    assert jitter_rows(steady, FEW, 0, 0) is None


def test_the_plain_view_draws_nothing():
    plain = FileViews(*CHANNELS["imagenet"], augment="plain", jitter=0.4)
    assert crop_rows(plain, FEW, 0, 0) is None and jitter_rows(plain, FEW, 0, 0) is None


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
