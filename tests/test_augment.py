"""The batched augmentation has the law of torchvision's transforms: all 162 views, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image

from datasets import ImageSet, ViewSpec, build_data
from datasets.cifar_lt import VIEWS as CIFAR_VIEWS
from datasets.images.in_memory import DeviceImages

PAD = 4
OFFSETS = 2 * PAD + 1
MANY = 16_200  # 200 images for each of 81 offsets, 100 for each of 162 views


def colour_images(count: int, size: int = 32) -> ImageSet:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pixels), torch.arange(count) % 7)


def as_pil(data: ImageSet, index: int) -> Image.Image:
    return Image.fromarray(data.images[index].permute(1, 2, 0).numpy())


def finish(image: Image.Image) -> torch.Tensor:
    """torchvision's ToTensor and Normalize with the published figures."""
    return tv.normalize(tv.to_tensor(image), CIFAR_VIEWS.mean, CIFAR_VIEWS.std)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return colour_images(5)


@pytest.fixture(scope="module")
def images(data: ImageSet) -> DeviceImages:
    return DeviceImages(data, CIFAR_VIEWS)


@pytest.fixture(scope="module")
def many() -> DeviceImages:
    """Many small images, for the statistics of the draws."""
    return DeviceImages(colour_images(MANY, size=2), CIFAR_VIEWS)


def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """top, left, flip of the 162 views."""
    axes = torch.cartesian_prod(torch.arange(OFFSETS), torch.arange(OFFSETS), torch.arange(2))
    return axes[:, 0], axes[:, 1], axes[:, 2].bool()


# ---- the views ----


def test_images_that_are_not_square_are_cropped_and_mirrored():
    pixels = torch.arange(2 * 3 * 6 * 8, dtype=torch.uint8).view(2, 3, 6, 8)
    images = DeviceImages(ImageSet(pixels, torch.arange(2)), replace(CIFAR_VIEWS, padding=1))
    ((batch, _),) = images.augmented(torch.arange(2), 2, seed=0, view=0)
    middle, both = torch.ones(2, dtype=torch.int64), torch.tensor([True, False])
    crops, plain = images.crop(torch.arange(2), middle, middle, both), images.plain(torch.arange(2))
    assert batch.shape == (2, 3, 6, 8)
    assert torch.equal(crops[0], plain[0].flip(-1)) and torch.equal(crops[1], plain[1])


def test_the_published_views_are_padding_4_flips_and_the_cifar10_figures():
    assert ViewSpec((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 4, True) == CIFAR_VIEWS


@pytest.mark.parametrize("index", [0, 4])
def test_all_162_views_equal_torchvision_to_the_last_bit(data, images, index):
    top, left, flip = grid()
    ours = images.crop(torch.full((162,), index), top, left, flip)
    padded = tv.pad(as_pil(data, index), PAD, fill=0)
    for view, (t, le, f) in enumerate(zip(top.tolist(), left.tolist(), flip.tolist(), strict=True)):
        cropped = tv.crop(padded, t, le, 32, 32)
        assert torch.equal(ours[view], finish(tv.hflip(cropped) if f else cropped)), (t, le, f)


def test_plain_images_equal_to_tensor_and_normalize(data, images):
    ours = images.plain(torch.arange(5))
    assert all(torch.equal(ours[i], finish(as_pil(data, i))) for i in range(5))


def test_batches_are_float32_channels_last(images):
    order = torch.arange(5)
    for inputs, labels in [*images.augmented(order, 2, 0, 0), *images.batches(2)]:
        assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
        assert inputs.shape == (len(labels), 3, 32, 32)
        assert inputs.is_contiguous(memory_format=torch.channels_last)


# ---- the draws ----


def chi_square(values: torch.Tensor, cells: int) -> float:
    observed = torch.bincount(values, minlength=cells).double()
    assert len(observed) == cells
    expected = len(values) / cells
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("view", [0, 7])
def test_offsets_are_uniform_and_flips_fair_and_independent(many, view):
    top, left, flip = many.draws(11, view)
    assert top.dtype == left.dtype == torch.int64 and flip.dtype == torch.bool
    cell = top * OFFSETS + left
    # 80 and 161 degrees of freedom: five standard deviations to either side of the mean
    assert 80 - 5 * 160**0.5 < chi_square(cell, 81) < 80 + 5 * 160**0.5
    assert 161 - 5 * 322**0.5 < chi_square(2 * cell + flip, 162) < 161 + 5 * 322**0.5
    assert abs(int(flip.sum()) - MANY / 2) < 5 * (MANY / 4) ** 0.5


def share_equal(first: tuple, second: tuple) -> float:
    return float(torch.stack([a == b for a, b in zip(first, second, strict=True)]).all(0).float().mean())


def test_images_views_and_seeds_share_their_draws_only_by_chance(many):
    """Two independent draws agree in one of 162 cases: 100 of 16,200, give or take ten."""
    draws = many.draws(11, 0)
    torch.rand(10)
    assert share_equal(draws, many.draws(11, 0)) == 1
    neighbours = share_equal([d[:-1] for d in draws], [d[1:] for d in draws])
    next_view, next_seed = many.draws(11, 1), many.draws(12, 0)
    shifted = share_equal([d[1:] for d in draws], [d[:-1] for d in next_view])
    for share in (neighbours, share_equal(draws, next_view), share_equal(draws, next_seed), shifted):
        assert abs(share * MANY - 100) < 50


# ---- an epoch ----


def by_index(images: DeviceImages, order: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The augmented images of a view, put back into file order."""
    inputs = torch.cat([inputs for inputs, _ in images.augmented(order, batch_size, seed=2, view=3)])
    return inputs[order.argsort()]


def test_an_image_is_augmented_alike_in_every_order_and_batch_size():
    images = DeviceImages(ImageSet(colour_images(50).images, torch.arange(50)), CIFAR_VIEWS)
    usual = by_index(images, torch.arange(50), 50)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(by_index(images, shuffled, 7), usual)
    assert torch.equal(by_index(images, shuffled.flip(0), 1), usual)
    inputs, labels = zip(*images.augmented(shuffled, 16, seed=2, view=4), strict=True)
    assert [len(batch) for batch in labels] == [16, 16, 16, 2]
    assert torch.equal(torch.cat(labels), shuffled)
    assert not torch.equal(torch.cat(inputs)[shuffled.argsort()], usual)


def test_augmented_follows_its_own_draws(images):
    top, left, flip = images.draws(9, 2)
    inputs, _ = next(images.augmented(torch.tensor([4, 1]), 2, 9, 2))
    chosen = torch.tensor([4, 1])
    assert torch.equal(inputs, images.crop(chosen, top[chosen], left[chosen], flip[chosen]))


@pytest.mark.parametrize(
    ("start", "stop", "sizes"), [(0, None, [2, 2, 1]), (1, 4, [2, 1]), (3, None, [2]), (5, None, [])]
)
def test_plain_batches_are_the_images_asked_for_once_in_file_order(data, images, start, stop, sizes):
    batches = list(images.batches(2, start, stop))
    assert [len(labels) for _, labels in batches] == sizes
    for (inputs, labels), at in zip(batches, range(start, 5, 2), strict=False):
        index = torch.arange(at, at + len(labels))
        assert torch.equal(labels, data.labels[index]) and torch.equal(inputs, images.plain(index))


def test_digits_are_never_flipped_and_shifted_by_one_pixel_at_most():
    data = build_data("digits_lt", imb_ratio=50)
    images = DeviceImages(data.train, data.views)
    top, left, flip = images.draws(0, 0)
    assert flip is None and set(top.tolist()) == set(left.tolist()) == {0, 1, 2}
    inputs = torch.cat([inputs for inputs, _ in images.augmented(torch.arange(len(images)), 64, 0, 0)])
    padded = torch.nn.functional.pad(data.train.images, (1, 1, 1, 1))
    for i, (t, le) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        crop = padded[i, :, t : t + 8, le : le + 8].float() / 255
        torch.testing.assert_close(inputs[i], (crop - 0.3) / 0.37)


# ---- the image set ----


def test_the_digest_changes_with_one_pixel_one_label_the_order_and_the_shape(data):
    pixels, labels = data.images, data.labels
    pixel, label = pixels.clone(), labels.clone()
    pixel[3, 1, 10, 10] ^= 1
    label[2] += 1
    variants = [data, ImageSet(pixel, labels), ImageSet(pixels, label)]
    variants += [ImageSet(pixels.flip(0), labels.flip(0)), ImageSet(pixels.reshape(5, 3, 16, 64), labels)]
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert ImageSet(pixels.clone(), labels.clone()).digest() == data.digest()
