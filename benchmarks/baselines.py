"""The opponent: both stages as an experienced user writes them plainly, in the manner of the field's code.

PIL images, torchvision's transforms, a DataLoader, channels first, `.item()` at every step. In stage 2 the
whole network runs forward in training mode and backward, the optimiser holds the classifier alone, and the
test set is encoded again after every epoch, image and mirror image. Nothing here is slowed down on purpose:
the number of worker processes is the benchmark's to choose, the test batch is as large as ours.

Below it the best-known practice: transforms v2 on images that lie in memory as one tensor, channels_last by
the caller, and a loop over features that were computed once.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from datasets import ImageSet, ViewSpec


class PilImages(Dataset):
    """An ImageSet one PIL image at a time, as torchvision's CIFAR100 does it."""

    def __init__(self, data: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def train_transform(views: ViewSpec, size: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomCrop(size, padding=views.padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(views.mean, views.std),
        ]
    )


def test_transform(views: ViewSpec) -> transforms.Compose:
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(views.mean, views.std)])


def train_loader(data: ImageSet, views: ViewSpec, batch_size: int, workers: int = 0) -> DataLoader:
    """Shuffled batches of augmented images."""
    return DataLoader(
        PilImages(data, train_transform(views, data.images.shape[-1])),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def test_loader(data: ImageSet, views: ViewSpec, batch_size: int, workers: int = 0) -> DataLoader:
    """Batches of plain images in file order."""
    return DataLoader(
        PilImages(data, test_transform(views)),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, so that a part of an epoch can be timed while the workers keep going."""
    while True:
        yield from loader


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    drift: bool = True,
) -> tuple[float, float]:
    """Mean loss and accuracy of one pass of SGD; both stages, which differ in loss and optimiser.

    `drift`: batch-norm in training mode.
    """
    model.train(drift)
    total_loss, hits, seen = 0.0, 0, 0
    for inputs, labels in batches:
        logits = model(inputs)
        loss = loss_fn(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(labels)
        hits += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return total_loss / seen, hits / seen


@torch.no_grad()
def mirrored_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [N, K] averaged over the images [N, C, H, W] and their mirror images."""
    return (model(inputs) + model(inputs.flip(-1))) / 2


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy of the logits averaged over the image and its mirror image."""
    model.eval()
    hits, seen = 0, 0
    for inputs, labels in batches:
        hits += (mirrored_logits(model, inputs).argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return hits / seen


class TensorImages:
    """Best-known practice on a CPU: uint8 images [N, C, H, W] in memory, transforms v2, no workers."""

    def __init__(self, data: ImageSet, views: ViewSpec) -> None:
        self.images, self.labels = data.images, data.labels
        self.crop = v2.Compose(
            [v2.RandomCrop(data.images.shape[-1], padding=views.padding), v2.RandomHorizontalFlip()]
        )
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(views.mean), list(views.std))]
        )

    def each(self, index: Tensor) -> Tensor:
        """Images `index` [N] with draws of their own, normalised together: float32 [N, C, H, W]."""
        return self.finish(torch.stack([self.crop(image) for image in self.images[index]]))

    def together(self, index: Tensor) -> Tensor:
        """The same with one crop and one flip for the whole batch: faster, and not the same law."""
        return self.finish(self.crop(self.images[index]))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images in channels_last, labels) without end, shuffled."""
        while True:
            for index in torch.randperm(len(self.labels)).split(batch_size):
                yield self.each(index).to(memory_format=torch.channels_last), self.labels[index]


def train_head(
    head: nn.Module,
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    batch_size: int,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Best-known practice in stage 2: a pass of SGD over cached features [N, D], without any bookkeeping."""
    for index in order.split(batch_size):
        loss = loss_fn(head(features[index].float()), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
