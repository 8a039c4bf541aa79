"""Passes of a frozen backbone without gradients, and the views of the training features that heads see.

Shapes: N images, D feature, K classes, V views at test (the image, and its mirror image where the data set
mirrors).
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from datasets.images.on_disk import Images
from utils.engine.scoring import EVAL_BATCH, forward_views

# stage 2 draws views that stage 1, which uses one an epoch from 0, never saw
FIRST_VIEW = 1_000_000
# fresh views of the training images, where a head has more epochs: then they come in turn, and cost no more
FRESH_VIEWS = 20
# shows how far a pass is: (batches, their number, title) -> the same batches
Watch = Callable[[Iterable, int, str], Iterable]


def unwatched(batches: Iterable, total: int, title: str) -> Iterable:
    return batches


def feature_batches(
    model: nn.Module,
    images: Images,
    view: tuple[int, int] | None = None,
    mirror: bool = False,
    watch: Watch = unwatched,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Features of images start..stop, a batch [V, n, D] after another: V = 2 with `mirror`, else 1.

    `view`: the seed and number of an augmented view; None: the plain images.
    """
    stop = len(images) if stop is None else stop
    if view is None:
        batches, title = images.batches(EVAL_BATCH, start, stop), "features"
    else:
        order, (seed, number) = torch.arange(start, stop), view
        batches = images.augmented(order, EVAL_BATCH, seed, FIRST_VIEW + number)
        title = f"features of view {number + 1}"
    model.eval()
    for inputs, _ in watch(batches, -(-(stop - start) // EVAL_BATCH), title):
        with torch.no_grad():
            features = forward_views(model.forward_features, inputs, mirror)
        yield features


def eval_features(model: nn.Module, images: Images, mirror: bool, watch: Watch = unwatched) -> Tensor:
    """Features of the plain images [V, N, D]: V = 2 with `mirror`, else 1."""
    return torch.cat(list(feature_batches(model, images, mirror=mirror, watch=watch)), dim=1)


class Steady:
    """Of a backbone that stays where it is: what heads ask of every one, and only a drifting one answers."""

    at: dict[str, Tensor] | None = None

    def go_to(self, statistics: dict[str, Tensor] | None) -> None:
        """Nothing moves."""


class StoredViews(Steady):
    """Views [V, N, D] that are there already, in turn; `plain` [N, D]: the first where not given."""

    def __init__(self, views: Tensor, labels: Tensor, plain: Tensor | None = None) -> None:
        self.labels, self._views, self._plain = labels, views, views[0] if plain is None else plain

    def of_epoch(self, epoch: int) -> Tensor:
        return self._views[epoch % len(self._views)]

    def plain(self) -> Tensor:
        return self._plain

    def stacked(self, count: int) -> Tensor:
        return self._views[:count] if count else self._plain[None]


class TrainFeatures(Steady):
    """Training features that a frozen backbone gives of augmented views.

    `count` None: a fresh view every epoch; n: n views computed once and reused in turn; 0: the plain images.
    """

    def __init__(
        self, model: nn.Module, images: Images, seed: int, count: int | None, watch: Watch = unwatched
    ) -> None:
        self.model, self.images, self.seed, self.count, self.watch = model, images, seed, count, watch
        self.labels, self._plain = images.labels, None
        self._views: dict[int, Tensor] = {}

    def of_epoch(self, epoch: int) -> Tensor:
        """Features [N, D] for epoch `epoch`, in file order; of fresh views only the last one is kept."""
        if self.count == 0:
            return self.plain()
        view = epoch if self.count is None else epoch % self.count
        if view not in self._views:
            if self.count is None:
                self._views.clear()
            batches = feature_batches(self.model, self.images, (self.seed, view), watch=self.watch)
            self._views[view] = torch.cat(list(batches), dim=1)[0]
        return self._views[view]

    def plain(self) -> Tensor:
        """Features [N, D] of the images as they are, computed once."""
        if self._plain is None:
            self._plain = eval_features(self.model, self.images, mirror=False, watch=self.watch)[0]
        return self._plain

    def stacked(self, count: int) -> Tensor:
        """The first `count` views [V, N, D]; of none the plain images."""
        return torch.stack([self.of_epoch(view) for view in range(count)] or [self.plain()])


FeatureViews = StoredViews | TrainFeatures
