"""A growing column of figures of an epoch."""

import torch
from torch import Tensor

RECENT, ROOM = 32, 1024


class Column:
    """Numbers that come one or a few at a time and stay, kept in one tensor of their device.

    Small tensors that stay, each made between a step's large ones, would keep the heap from shrinking: by as
    much as all logits of an epoch. So they are moved together, RECENT at a time, which costs a step nothing.
    """

    def __init__(self, first: Tensor | None = None) -> None:
        self._kept, self._length, self._recent = None, 0, []
        if first is not None:
            self.extend(first)

    def __len__(self) -> int:
        return self._length + len(self._recent)

    def append(self, value: Tensor) -> None:
        """Take in one number, a tensor []."""
        self._recent.append(value)
        if len(self._recent) == RECENT:
            self._settle()

    def extend(self, values: Tensor) -> None:
        """Take in numbers [n]."""
        self._settle()
        end = self._length + len(values)
        if self._kept is None or end > len(self._kept):
            grown = values.new_empty(max(ROOM, 2 * end))
            if self._kept is not None:
                grown[: self._length] = self._kept[: self._length]
            self._kept = grown
        self._kept[self._length : end] = values
        self._length = end

    def _settle(self) -> None:
        if self._recent:
            recent, self._recent = torch.stack(self._recent), []
            self.extend(recent)

    @property
    def values(self) -> Tensor:
        """All of them [N], in the order in which they came; float32 where none did."""
        self._settle()
        return torch.zeros(0) if self._kept is None else self._kept[: self._length]
