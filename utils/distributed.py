"""One run in several processes, started by torchrun: who this process is, and what the processes exchange.

    torchrun --nproc_per_node 8 main_stage1.py --dataset imagenet_lt --data_dir /data/imagenet

Without torchrun a run is a world of one process, and nothing here does anything.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

# a process that waits longer for another one gives up; reading a slow disk must fit in
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among `size`: the first (`main`) writes, prints and trains the heads of stage 2."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def block(self, length: int) -> tuple[int, int]:
        """Start and stop of this process's share of `length` things in a row: every one in one share."""
        return self.rank * length // self.size, (self.rank + 1) * length // self.size

    def agree(self, value: Any) -> Any:
        """The first process's `value`, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes behind one another in the order of ranks: [n, ...] -> [N, ...]."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part.cpu())
        return torch.cat(parts).to(part.device)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """`work` by the first process, then by the others: what it downloads is there for them."""
        if not self.main:
            self.wait()
        result = work()
        if self.main:
            self.wait()
        return result

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.total(torch.zeros(1))


ALONE = World()


def number_of(name: str) -> int:
    """What torchrun says of its processes in a variable of the environment; without torchrun 1, of sizes.

    Raises:
        UserError: it says nothing that is a number.
    """
    given = os.environ.get(name, "1" if name.endswith("WORLD_SIZE") else "")
    if not given.isdecimal() or (name.endswith("WORLD_SIZE") and not int(given)):
        raise UserError(
            f"{name} is {repr(given)[:40] if given else 'not set'}: let torchrun start several processes; "
            "for one, unset WORLD_SIZE"
        )
    return int(given)


def join() -> World:
    """The world that torchrun has set up, or a world of one.

    Raises:
        UserError: the processes do not find each other.
    """
    size = number_of("WORLD_SIZE")
    if size == 1:
        return ALONE
    world = World(number_of("RANK"), size, number_of("LOCAL_RANK"))
    if not world.rank < world.size:
        raise UserError(f"RANK is {world.rank}, WORLD_SIZE {world.size}: start the processes by torchrun")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the {size} processes do not find each other: {reason}") from error
    return world


def leave() -> None:
    """Say goodbye to the other processes, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def parallel(model: nn.Module, world: World, device: torch.device, sync_bn: bool = False) -> nn.Module:
    """The model to train: the same one alone, else one whose gradients are averaged over the processes.

    Batch-norm statistics are each process's own, and the first one's are saved, unless `sync_bn`.

    Raises:
        UserError: `sync_bn` on a device that has none.
    """
    if sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA devices, this run is on {device.type}")
    if world.size == 1:
        return model
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the first one's batch-norm statistics: those that are saved are those that score."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gradients_kept_local(model: nn.Module) -> Any:
    """A context in which backward only adds up: for all parts of a step but its last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


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
