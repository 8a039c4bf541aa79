"""How the images of an epoch become optimiser steps: over several processes, in several parts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.base.distributed import ALONE, World
from utils.base.errors import UserError


@dataclass(frozen=True)
class Part:
    """A batch of this process: its first `rows` count (None: all), with `weight` on their mean loss in the
    step's; `last`: the optimiser steps after it."""

    rows: int | None = None
    weight: float = 1.0
    last: bool = True


@dataclass(frozen=True)
class Steps:
    """How an epoch over `images` is cut: `batch_size` images a step, shared by the processes, each taking its
    share in `accum` parts. The sum of the parts' gradients is that of the whole step's mean loss.

    Raises:
        UserError: a step cannot be shared out evenly.
    """

    images: int
    batch_size: int
    accum: int = 1
    world: World = ALONE

    def __post_init__(self) -> None:
        if self.batch_size % (self.world.size * self.accum):
            raise UserError(
                f"--batch_size {self.batch_size} must be a multiple of {self.world.size} process(es) x "
                f"--accum {self.accum}: it counts the images of a step, over all of them"
            )

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    @property
    def part_size(self) -> int:
        """Images that this process takes at a time."""
        return self.batch_size // (self.world.size * self.accum)

    def told(self, lr: float) -> str:
        """What a step is made of, and the linear rule, for the log."""
        rate = f"learning rate {lr:g} here is {256 * lr / self.batch_size:g} at 256 images a step"
        shares = f"{self.world.size} process(es) x {self.accum} part(s) x {self.part_size}"
        return f"a step: {self.batch_size} images = {shares}; linear rule: {rate}"

    def _shares(self) -> Iterator[tuple[int, int, int]]:
        """Of each step: where this process's share starts and stops in the order, the images of the step."""
        for first in range(0, self.images, self.batch_size):
            size = min(self.batch_size, self.images - first)
            start, stop = self.world.block(size)
            yield first + start, first + stop, size

    def own(self, order: Tensor) -> Tensor:
        """This process's images of an epoch in `order` int64 [N], to be cut into parts of `part_size`.

        Where the last part would be empty, or a single image, which batch-norm cannot take, it is filled up
        with images that do not count.
        """
        shares = [order[start:stop] for start, stop, _ in self._shares()]
        last = len(shares[-1])
        rows = last % self.part_size or min(last, self.part_size)
        filling = order[-1:].expand(max(min(2, self.part_size) - rows, 0))
        return torch.cat([*shares, filling])

    def parts(self) -> Iterator[Part]:
        """What each of those parts is."""
        for start, stop, size in self._shares():
            left = [min(self.part_size, stop - first) for first in range(start, stop, self.part_size)] or [0]
            for i, rows in enumerate(left):
                yield Part(rows, rows * self.world.size / size, last=i == len(left) - 1)
