"""The opponent: both stages as an experienced user writes them plainly, in the manner of the field's code.

PIL images, torchvision's transforms, a DataLoader, channels first, `.item()` at every step. In stage 2 the
whole network runs forward in training mode and backward, the optimiser holds the classifier alone, and the
test set is encoded again after every epoch, image and mirror image. Nothing here is slowed down on purpose:
the number of worker processes is the benchmark's to choose, the test batch is as large as ours.
"""

from collections.abc import Callable, Iterable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

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


def loader(
    data: ImageSet, views: ViewSpec, batch_size: int, workers: int = 0, shuffle: bool = False
) -> DataLoader:
    """Batches of plain images in file order; `shuffle`: of augmented images, as for training."""
    augment = [transforms.RandomCrop(data.images.shape[-1], views.padding), transforms.RandomHorizontalFlip()]
    last = [transforms.ToTensor(), transforms.Normalize(views.mean, views.std)]
    images = PilImages(data, transforms.Compose([*augment, *last] if shuffle else last))
    return DataLoader(images, batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0)


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
