"""Random crop, flip and normalising: microseconds an image, torchvision on PIL images against DeviceImages.

    python -m benchmarks.augment

Under 30 s. One thread each. torchvision v1's transforms make the opponent's batches, without the overhead of
a DataLoader. Checks first that the same draws give the same pixels, to the last bit. Target: 15x a core.
"""

from collections.abc import Sequence
from statistics import median

import torch
import torchvision.transforms.functional as TF
from PIL import Image

from benchmarks import baselines, common
from datasets import LongTailedData
from datasets.loaders import DeviceImages
from utils.presets import CIFAR100_LT
from utils.seeding import epoch_order

BATCH_SIZE = CIFAR100_LT["batch_size"]
SEED, TARGET = 0, 15.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--images", type=common.positive, default=2048, help="images of a timing")
    parser.add_argument("--repeats", type=common.positive, default=9, help="pairs of timings")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    data, what = common.load_cifar100_lt(args.data_dir)
    count = min(args.images, len(data.train))
    same_pixels(data, count)
    seconds = time_both(data, count, args.repeats)
    ratios = common.ratios(seconds["plain"], seconds["ours"])
    row = common.Row("µs an image", *(micros(seconds[name], count) for name in ("ours", "plain")), ratios)
    reached = sum(ratio >= TARGET for ratio in ratios)
    sections = [
        f"## Augmentation: {what}, batches of {BATCH_SIZE}, one thread each",
        common.table([row], "PIL + torchvision"),
        f"{count} images with the same draws: equal to the last bit. "
        f"At least {TARGET:g}x in {reached} of {len(ratios)} pairs.",
    ]
    common.publish(sections, args.out)


def micros(seconds: list[float], images: int) -> str:
    return f"{median(seconds) / images * 1e6:.1f}"


def time_both(data: LongTailedData, count: int, repeats: int) -> dict[str, list[float]]:
    """Seconds in which each makes batches of `count` images of the training set, others every time."""
    plain = baselines.PilImages(
        data.train, baselines.train_transform(data.views, data.train.images.shape[-1])
    )
    ours = DeviceImages(data.train, data.views)
    epochs = iter(range(2 * (repeats + 1)))

    def run_plain() -> None:
        for index in epoch_order(SEED, next(epochs), len(plain))[:count].split(BATCH_SIZE):
            torch.stack([plain[i][0] for i in index.tolist()])

    def run_ours() -> None:
        epoch = next(epochs)
        for _ in ours.augmented(epoch_order(SEED, epoch, len(ours))[:count], BATCH_SIZE, SEED, epoch):
            pass

    return common.alternate({"ours": run_ours, "plain": run_plain}, repeats)


def same_pixels(data: LongTailedData, count: int) -> None:
    """Compare `count` images of view 0 with torchvision's operations on the same draws.

    Raises:
        SystemExit: a pixel differs.
    """
    ours = DeviceImages(data.train, data.views)
    tops, lefts, flips = (draw.tolist() for draw in ours.draws(SEED, 0))
    pixels = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
    order = epoch_order(SEED, 0, len(ours))[:count]
    made = torch.cat([batch for batch, _ in ours.augmented(order, BATCH_SIZE, SEED, 0)])
    for index, found in zip(order.tolist(), made, strict=True):
        image = TF.pad(Image.fromarray(pixels[index]), data.views.padding)
        image = TF.crop(image, tops[index], lefts[index], ours.size, ours.size)
        image = TF.hflip(image) if flips[index] else image
        expected = TF.normalize(TF.to_tensor(image), data.views.mean, data.views.std)
        if not torch.equal(found, expected):
            raise SystemExit(f"image {index}: the same draw gives other pixels than torchvision's")


if __name__ == "__main__":
    main()
