"""Frozen features: one no-gradient pass of the backbone, computed once where it can be.

Shapes: N images, D feature, V views at test (the image, and its mirror image where the data set mirrors).
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from datasets.loaders import DeviceImages
from utils.engine import EVAL_BATCH

# stage 2 draws views that stage 1, which uses one an epoch from 0, never saw
FIRST_VIEW = 1_000_000
# shows how far a pass is: (batches, their number, title) -> the same batches
Watch = Callable[[Iterable, int, str], Iterable]


def unwatched(batches: Iterable, total: int, title: str) -> Iterable:
    return batches


@torch.no_grad()
def eval_features(model: nn.Module, images: DeviceImages, mirror: bool, watch: Watch = unwatched) -> Tensor:
    """Features of the plain images [V, N, D]: V = 2 with `mirror`, else 1."""
    model.eval()
    views = [[], []] if mirror else [[]]
    for inputs, _ in watch(images.batches(EVAL_BATCH), -(-len(images) // EVAL_BATCH), "features"):
        views[0].append(model.forward_features(inputs))
        if mirror:
            views[1].append(model.forward_features(inputs.flip(-1)))
    return torch.stack([torch.cat(view) for view in views])


@torch.no_grad()
def head_logits(head: nn.Module, features: Tensor) -> Tensor:
    """features [V, N, D] -> logits [N, K], the mean over the views."""
    return head(features.flatten(0, 1)).unflatten(0, features.shape[:2]).mean(dim=0)


class TrainFeatures:
    """Training features of augmented views, by image.

    `count` None: a fresh view every epoch; n: n views computed once and reused in turn; 0: the plain images.
    """

    def __init__(
        self,
        model: nn.Module,
        images: DeviceImages,
        seed: int,
        count: int | None,
        watch: Watch = unwatched,
    ) -> None:
        self.model, self.images, self.seed, self.count, self.watch = model, images, seed, count, watch
        self._cache: dict[int, Tensor] = {}

    def of_epoch(self, epoch: int) -> Tensor:
        """Features [N, D] for epoch `epoch`, in file order."""
        if self.count is None:
            return self._view(epoch)
        slot = epoch % max(self.count, 1)
        if slot not in self._cache:
            self._cache[slot] = self._view(slot) if self.count else self._plain()
        return self._cache[slot]

    @torch.no_grad()
    def _view(self, view: int) -> Tensor:
        self.model.eval()
        batches = self.images.augmented(
            torch.arange(len(self.images)), EVAL_BATCH, self.seed, FIRST_VIEW + view
        )
        batches = self.watch(batches, -(-len(self.images) // EVAL_BATCH), f"features of view {view + 1}")
        return torch.cat([self.model.forward_features(inputs) for inputs, _ in batches])

    def _plain(self) -> Tensor:
        return eval_features(self.model, self.images, mirror=False, watch=self.watch)[0]

    def batches(self, order: Tensor, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [N, D], labels [N]) batches of an epoch, in the order given."""
        features = self.of_epoch(epoch)
        for index in order.to(features.device).split(batch_size):
            yield features[index], self.images.labels[index]

    def drifting_batches(self, order: Tensor, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from a backbone in training mode, whose batch-norm statistics move with every batch."""
        self.model.train()
        batches = self.images.augmented(order, batch_size, self.seed, FIRST_VIEW + epoch)
        for inputs, labels in self.watch(batches, -(-len(order) // batch_size), f"epoch {epoch + 1}"):
            with torch.no_grad():
                features = self.model.forward_features(inputs)
            yield features, labels
