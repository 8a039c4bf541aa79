"""Training features under --bn_mode train: of a backbone whose batch-norm statistics go on moving.

Shapes: N images, D feature.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from utils.base.seeding import seeded
from utils.features.views import FIRST_VIEW, TrainFeatures


class DriftingFeatures(TrainFeatures):
    """The same from a backbone in training mode, whose batch-norm statistics move with every batch.

    Heads that have moved it in different ways each `go_to` their own statistics before they go on.
    """

    _at: dict[str, Tensor] | None = None

    @property
    def at(self) -> dict[str, Tensor]:
        """All of the backbone but its weights, as it is now: one and the same object until it moves."""
        if self._at is None:
            weights = dict(self.model.named_parameters())
            own = self.model.state_dict().items()
            self._at = {name: value.clone() for name, value in own if name not in weights}
        return self._at

    def go_to(self, statistics: dict[str, Tensor] | None) -> None:
        """Put the backbone where `at` once was."""
        if statistics is not self._at:
            self.moved()
            self.model.load_state_dict(self.model.state_dict() | statistics)
            self._at = statistics

    def moved(self) -> None:
        """No features of the statistics before are kept."""
        self._at = self._plain = None
        self._views.clear()

    def batches(
        self, order: Tensor, batch_size: int, epoch: int, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [N, D], labels [N]) batches of a fresh view, in the order given but the first `skip`."""
        self.model.train()
        order = order[skip * batch_size :]
        batches = self.images.augmented(order, batch_size, self.seed, FIRST_VIEW + epoch)
        batches = seeded(batches, self.seed, FIRST_VIEW + epoch, first=skip)
        for inputs, labels in self.watch(batches, -(-len(order) // batch_size), f"epoch {epoch + 1}"):
            self.moved()
            with torch.no_grad():
                features = self.model.forward_features(inputs)
            yield features, labels
