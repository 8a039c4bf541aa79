"""Image files become the views that torchvision makes of them, whatever the number of loader processes."""

import random
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as v1
from PIL import Image
from torchvision import transforms

from datasets import CHANNELS
from datasets.images.draws import crop_box, crop_rows, jitter_rows
from datasets.images.in_memory import DeviceImages
from datasets.images.on_disk import FileImages
from datasets.types import FileSet, FileViews, ImageSet, ViewSpec
from tests.odd_images import PHOTO, encoded, file_set, jpeg, picture, readable_files
from tests.test_draws import by_torchvision
from utils.base.errors import UserError

SMALL = FileViews(*CHANNELS["imagenet"], size=32, resize=36, jitter=0.4)
USUAL = FileViews(*CHANNELS["imagenet"])
UNCHANGED = FileViews((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # values are pixels / 255
COUNT = len(readable_files())
ORDER = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FileSet:
    """Images of every kind that is read."""
    return file_set(tmp_path_factory.mktemp("files"), readable_files())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> FileSet:
    """Photographs of ImageNet's usual size, upright and not."""
    sizes = [PHOTO, PHOTO[::-1], (640, 400), (300, 260)]
    content = {f"{i}.jpg": jpeg(i, width, min(height, 427)) for i, (width, height) in enumerate(sizes)}
    return file_set(tmp_path_factory.mktemp("photos"), content)


def gather(batches) -> torch.Tensor:
    return torch.cat([inputs for inputs, _ in batches])


def view_of(images: FileImages, order=ORDER, batch_size=5, seed=2, view=3) -> torch.Tensor:
    """The augmented images of a view, put back into file order."""
    return gather(images.augmented(order, batch_size, seed, view))[order.argsort()]


# ---- one view, however it is made ----


def test_processes_batch_size_and_order_do_not_change_a_bit(files):
    usual = view_of(FileImages(files, SMALL), torch.arange(COUNT), COUNT)
    plain = gather(FileImages(files, SMALL).batches(COUNT))
    for workers in (0, 1, 2):
        with closing(FileImages(files, SMALL, workers=workers)) as images:
            for order, batch_size in ((ORDER, 7), (ORDER.flip(0), COUNT), (torch.arange(COUNT), 1)):
                assert torch.equal(view_of(images, order, batch_size), usual)
            assert torch.equal(gather(images.batches(5)), plain)


def test_views_and_seeds_differ_and_repeat(files):
    images = FileImages(files, SMALL)
    first = view_of(images)
    for seed, view in ((2, 4), (3, 3)):
        other = view_of(images, seed=seed, view=view)
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(view_of(images), first)
    part = gather(images.augmented(torch.tensor([17, 3]), 2, seed=2, view=3))
    assert torch.equal(part, first[[17, 3]])


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_random_state_is_touched(files, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with closing(FileImages(files, SMALL, workers=workers)) as images:
        view_of(images)
        list(images.batches(9))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_batches_are_float32_channels_last_with_their_labels(files):
    with closing(FileImages(files, SMALL, workers=1)) as images:
        for batches, order in (
            (images.augmented(ORDER, 10, 0, 0), ORDER),
            (images.batches(10), torch.arange(COUNT)),
            (images.batches(10, 3, 20), torch.arange(3, 20)),
            (images.batches(10, 20), torch.arange(20, COUNT)),
        ):
            inputs, labels = zip(*batches, strict=True)
            assert [len(part) for part in labels] == [
                min(10, len(order) - at) for at in range(0, len(order), 10)
            ]
            assert torch.equal(torch.cat(labels), files.labels[order])
            for part in inputs:
                assert part.dtype == torch.float32 and part.shape[1:] == (3, 32, 32)
                assert part.is_contiguous(memory_format=torch.channels_last)
        assert list(images.batches(10, COUNT)) == [] == list(images.augmented(ORDER[:0], 10, 0, 0))
        assert torch.equal(gather(images.batches(10, 3, 20)), gather(images.batches(10))[3:20])


# ---- the views are torchvision's ----


def pil(files: FileSet, index: int) -> Image.Image:
    return Image.open(f"{files.root}/{files.paths[index]}").convert("RGB")


def test_the_training_view_is_torchvisions_of_the_same_crop(photos):
    """Against Pillow's resize: one level of 255, in rare pixels two, and a fraction of it on average."""
    views = replace(UNCHANGED, size=224)
    worst, mean = 0.0, []
    for view in range(12):
        rows = crop_rows(views, len(photos), 0, view).tolist()
        ours = gather(FileImages(photos, views).augmented(torch.arange(len(photos)), 4, 0, view))
        for i, row in enumerate(rows):
            image = pil(photos, i)
            crop = v1.resized_crop(image, *crop_box(row, image.height, image.width), (224, 224))
            difference = (v1.to_tensor(v1.hflip(crop) if row[-1] else crop) - ours[i]).abs() * 255
            worst, mean = max(worst, difference.max().item()), [*mean, difference.mean().item()]
    assert worst < 2.01 and np.mean(mean) < 0.1


@pytest.mark.parametrize("resize", [256, 200])  # the second is enlarged by black margins
def test_the_test_view_is_torchvisions(photos, resize):
    steps = [transforms.Resize(resize), transforms.CenterCrop(224), transforms.ToTensor()]
    ours = gather(FileImages(photos, replace(UNCHANGED, resize=resize)).batches(4))
    for i in range(len(photos)):
        difference = (transforms.Compose(steps)(pil(photos, i)) - ours[i]).abs() * 255
        assert difference.max() < 1.01 and difference.mean() < 0.1


def test_normalising_is_torchvisions_to_the_last_bit(files):
    plain = gather(FileImages(files, replace(UNCHANGED, size=32, resize=36)).batches(COUNT))
    ours = gather(FileImages(files, SMALL).batches(COUNT))
    assert torch.equal(ours, v1.normalize(plain, SMALL.mean, SMALL.std))


def test_the_jitter_is_torchvisions_of_the_same_view(files):
    views = replace(UNCHANGED, size=32)
    plain = gather(FileImages(files, views).augmented(ORDER, COUNT, 0, 5))
    jittered = gather(FileImages(files, replace(views, jitter=0.4)).augmented(ORDER, COUNT, 0, 5))
    rows = jitter_rows(replace(views, jitter=0.4), COUNT, 0, 5)[ORDER]
    assert (jittered - by_torchvision(plain, rows)).abs().max() < 1e-6
    assert (jittered - plain).abs().mean() > 0.02


def test_flips_happen_in_half_of_the_images_and_only_where_asked_for(files):
    views = replace(SMALL, jitter=0.0)
    mirrored, steady = (FileImages(files, replace(views, mirror=mirror)) for mirror in (True, False))
    assert mirrored.mirror and not steady.mirror
    flips = crop_rows(views, COUNT, 2, 3)[:, -1].bool()
    assert 6 <= flips.sum() <= 18
    without = view_of(steady)
    assert torch.equal(view_of(mirrored), torch.where(flips[:, None, None, None], without.flip(-1), without))


def test_the_plain_training_view_is_the_test_view(files):
    images = FileImages(files, replace(SMALL, augment="plain"))
    assert torch.equal(view_of(images), gather(images.batches(COUNT)))


# ---- padded crops: small images ----


@pytest.mark.parametrize("mirror", [True, False])
def test_padded_crops_of_png_files_equal_the_set_in_memory_to_the_last_bit(tmp_path, mirror):
    pixels = np.stack([np.asarray(picture(i, 32, 32)) for i in range(40)])
    files = file_set(tmp_path, {f"{i}.png": encoded(Image.fromarray(p), "PNG") for i, p in enumerate(pixels)})
    mean, std = CHANNELS["cifar"]
    memory = DeviceImages(
        ImageSet(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), files.labels), ViewSpec(mean, std, 4, mirror)
    )
    ours = FileImages(files, FileViews(mean, std, 4, mirror, 32, 36, "pad_crop"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    for seed, view in ((0, 0), (0, 1), (5, 0)):
        expected = list(memory.augmented(order, 16, seed, view))
        for (a, b), (c, d) in zip(ours.augmented(order, 16, seed, view), expected, strict=True):
            assert torch.equal(a, c) and torch.equal(b, d)
    assert torch.equal(gather(ours.batches(7, 5, 30)), gather(memory.batches(16, 5, 30)))


def test_padded_crops_of_other_sizes_are_resized_first(files):
    views = replace(SMALL, augment="pad_crop", padding=4, jitter=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    resized = gather(FileImages(files, views).batches(COUNT))
    expected = v1.to_tensor(pil(files, 0).resize((32, 32), Image.Resampling.BILINEAR))
    assert (resized[0] - expected).abs().max() * 255 < 1.01
    top, left, flip = crop_rows(views, COUNT, 2, 3)[0].int().tolist()
    crop = v1.crop(v1.pad(resized[0], 4), top, left, 32, 32)
    assert torch.equal(view_of(FileImages(files, views))[0], crop.flip(-1) if flip else crop)


# ---- limits ----


def test_an_image_too_long_for_its_width_is_named(tmp_path):
    files = file_set(tmp_path, {"line.png": encoded(Image.new("RGB", (9000, 2)), "PNG")})
    images = FileImages(files, USUAL)
    with pytest.raises(UserError, match=r"line.png is 9000 x 2 pixels"):
        list(images.batches(1))
    assert gather(images.augmented(torch.tensor([0]), 1, 0, 0)).shape == (1, 3, 224, 224)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_a_gpu_equal_those_on_the_cpu(files):
    with closing(FileImages(files, SMALL, device="cuda", workers=2)) as images:
        assert (view_of(images).cpu() - view_of(FileImages(files, SMALL))).abs().max() < 1e-5
        for inputs, labels in images.batches(10):
            assert inputs.device.type == labels.device.type == "cuda"
            assert inputs.is_contiguous(memory_format=torch.channels_last)
