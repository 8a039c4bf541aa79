"""Frozen features: one no-gradient pass of the backbone, computed once where it can be.

Shapes: N images, D feature, K classes, V views at test (the image, and its mirror image where the data set
mirrors).
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from datasets.loaders import DeviceImages
from utils.engine import EVAL_BATCH
from utils.errors import UserError, exit_cleanly

# stage 2 draws views that stage 1, which uses one an epoch from 0, never saw
FIRST_VIEW = 1_000_000
# rows and logits that are scored together
SCORE_ROWS, SCORE_LOGITS = 4096, 2**22
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
    return head(features.flatten(0, 1).float()).unflatten(0, features.shape[:2]).mean(dim=0)


def logit_batches(head: nn.Module, features: Tensor) -> Iterator[Tensor]:
    """Logits [n, K] of features [V, N, D], a batch of images after another: no [N, K] is made."""
    rows = max(1, min(SCORE_ROWS, SCORE_LOGITS // len(head.weight)))
    for start in range(0, features.shape[1], rows):
        yield head_logits(head, features[:, start : start + rows])


class FeatureViews(ABC):
    """Training features by image, one view of them an epoch; `labels` int64 [N]."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    @abstractmethod
    def of_epoch(self, epoch: int) -> Tensor:
        """Features [N, D] for epoch `epoch`, in file order."""

    @abstractmethod
    def plain(self) -> Tensor:
        """Features [N, D] of the images as they are."""

    def batches(self, order: Tensor, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features float32 [N, D], labels [N]) batches of an epoch, in the order given."""
        features = self.of_epoch(epoch)
        for index in order.to(features.device).split(batch_size):
            yield features[index].float(), self.labels[index]


class TrainFeatures(FeatureViews):
    """Training features that a frozen backbone gives of augmented views.

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
        super().__init__(images.labels)
        self.model, self.images, self.seed, self.count, self.watch = model, images, seed, count, watch
        self._cache: dict[int | str, Tensor] = {}

    def of_epoch(self, epoch: int) -> Tensor:
        """Features [N, D] for epoch `epoch`, in file order; of fresh views only the last one is kept."""
        if self.count == 0:
            return self.plain()
        view = epoch if self.count is None else epoch % self.count
        if view not in self._cache:
            if self.count is None:
                self._cache = {name: kept for name, kept in self._cache.items() if name == "plain"}
            self._cache[view] = self._view(view)
        return self._cache[view]

    def plain(self) -> Tensor:
        """Features [N, D] of the images as they are, computed once."""
        if "plain" not in self._cache:
            self._cache["plain"] = eval_features(self.model, self.images, mirror=False, watch=self.watch)[0]
        return self._cache["plain"]

    @torch.no_grad()
    def _view(self, view: int) -> Tensor:
        self.model.eval()
        batches = self.images.augmented(
            torch.arange(len(self.images)), EVAL_BATCH, self.seed, FIRST_VIEW + view
        )
        batches = self.watch(batches, -(-len(self.images) // EVAL_BATCH), f"features of view {view + 1}")
        return torch.cat([self.model.forward_features(inputs) for inputs, _ in batches])


class DriftingFeatures(TrainFeatures):
    """The same from a backbone in training mode, whose batch-norm statistics move with every batch."""

    def batches(self, order: Tensor, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [N, D], labels [N]) batches of a fresh view, in the order given."""
        self._cache.clear()
        self.model.train()
        batches = self.images.augmented(order, batch_size, self.seed, FIRST_VIEW + epoch)
        for inputs, labels in self.watch(batches, -(-len(order) // batch_size), f"epoch {epoch + 1}"):
            with torch.no_grad():
                features = self.model.forward_features(inputs)
            yield features, labels


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m utils.features pack ...`: make a feature pack from arrays.

    Raises:
        UserError: another subcommand; see also `utils.pack_arrays.main`.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] != ["pack"]:
        raise UserError("say what to do: `python -m utils.features pack ...` (see pack --help)")
    from utils.pack_arrays import main as pack  # here: training needs none of it

    pack(words[1:])


if __name__ == "__main__":
    exit_cleanly(main)
