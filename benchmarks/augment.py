"""Random crop, flip and normalising, an image on one thread: torchvision against DeviceImages.

The opponents make batches without the overhead of a DataLoader. Checks first that the same draws give the
same pixels: as torchvision v1's to the last bit, as v2's to rounding (it multiplies where v1 divides).
"""

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V2F

from benchmarks import baselines, common
from benchmarks.common import SEED, Bench, DiffersError
from benchmarks.table import Findings, each, row
from datasets import LongTailedData
from datasets.images.in_memory import DeviceImages
from utils.base.seeding import epoch_order
from utils.settings.presets import PRESETS

BATCH_SIZE = PRESETS["cifar100_lt"]["batch_size"]
IMAGES, IMAGES_QUICK, TARGET, TOLERANCE = 2048, 64, 20.0, 1e-5


def run(bench: Bench, network: str | None, turns: int) -> Findings:
    """The rows; there is no network in it."""
    images = IMAGES_QUICK if bench.quick else IMAGES
    with common.threads(1):
        difference = check_same(bench.data, images)
        seconds = {name: each(took, images) for name, took in time_all(bench, images, turns).items()}
    opponents = {
        "v1": ("PIL + torchvision v1", TARGET),
        "v2": ("v2 on uint8 tensors, image by image", None),
        "v2 together": ("v2 on uint8 batches (one draw a batch)", None),
    }
    rows = [
        row("augmentation, 1 thread", against, "µs an image", seconds["ours"], seconds[name], target)
        for name, (against, target) in opponents.items()
    ]
    note = (
        f"augment: {images} images with the same draws are equal to v1's to the last bit, to v2's within "
        f"{difference:.0e} (tolerance {TOLERANCE:g}); v2 on whole batches draws once a batch: another law"
    )
    return Findings(rows, [note])


def time_all(bench: Bench, count: int, turns: int) -> dict[str, list[float]]:
    """Seconds in which each makes batches of `count` images of the training set, others every time."""
    data = bench.data
    size = data.train.images.shape[-1]
    plain = baselines.PilImages(data.train, baselines.train_transform(data.views, size))
    tensors = baselines.TensorImages(data.train, data.views)
    ours = DeviceImages(data.train, data.views)
    epochs = iter(range(4 * (turns + 1)))

    def indices() -> tuple[Tensor, ...]:
        return epoch_order(SEED, next(epochs), len(ours))[:count].split(BATCH_SIZE)

    def run_ours() -> None:
        epoch = next(epochs)
        for _ in ours.augmented(epoch_order(SEED, epoch, len(ours))[:count], BATCH_SIZE, SEED, epoch):
            pass

    works = {
        "ours": run_ours,
        "v1": lambda: [torch.stack([plain[i][0] for i in index.tolist()]) for index in indices()],
        "v2": lambda: [tensors.each(index) for index in indices()],
        "v2 together": lambda: [tensors.together(index) for index in indices()],
    }
    return common.alternate(works, turns, bench.tick)


def check_same(data: LongTailedData, count: int) -> float:
    """Compare `count` images of view 0 with torchvision's operations on the same draws.

    Returns the largest difference from transforms v2.

    Raises:
        DiffersError: a pixel differs from v1's at all, or from v2's by more than rounding.
    """
    ours = DeviceImages(data.train, data.views)
    tops, lefts, flips = (draw.tolist() for draw in ours.draws(SEED, 0))
    pixels = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
    order = epoch_order(SEED, 0, len(ours))[:count]
    made = torch.cat([batch for batch, _ in ours.augmented(order, BATCH_SIZE, SEED, 0)])
    worst = 0.0
    for index, found in zip(order.tolist(), made, strict=True):
        box = (tops[index], lefts[index], ours.size, ours.size)
        image = TF.crop(TF.pad(Image.fromarray(pixels[index]), data.views.padding), *box)
        image = TF.hflip(image) if flips[index] else image
        if not torch.equal(found, TF.normalize(TF.to_tensor(image), data.views.mean, data.views.std)):
            raise DiffersError(f"image {index}: the same draw gives other pixels than torchvision v1's")
        tensor = V2F.crop(V2F.pad(data.train.images[index], [data.views.padding]), *box)
        tensor = V2F.to_dtype(V2F.hflip(tensor) if flips[index] else tensor, torch.float32, scale=True)
        tensor = V2F.normalize(tensor, list(data.views.mean), list(data.views.std))
        worst = max(worst, float((found - tensor).abs().max()))
    if worst > TOLERANCE:
        raise DiffersError(f"the same draws differ by {worst:.1e} from torchvision v2's")
    return worst
