"""One run in several processes, started by torchrun: who this process is, and what the processes exchange.

    torchrun --nproc_per_node 8 main_stage1.py --dataset imagenet_lt --data_dir /data/imagenet

Without torchrun a run is a world of one process, and nothing here does anything.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.base.errors import UserError
from utils.base.torchrun import number_of

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
        return part if self.size == 1 else torch.cat(self.every(part.cpu())).to(part.device)

    def every(self, value: Any) -> list:
        """The `value` of each process, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

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


def join() -> World:
    """The world that torchrun has set up, or a world of one."""
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


def parallel(model: nn.Module, world: World, device: torch.device, own: bool = False) -> nn.Module:
    """The model to train: the same one alone, else one whose gradients are averaged over the processes.

    Buffers, batch-norm's statistics among them, are each process's own, and the first one's are saved.
    A user's `own` may have weights that the loss does not use.
    """
    if world.size == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch 2.11
    options = {"device_ids": devices, "find_unused_parameters": own, buffers: False}
    return DistributedDataParallel(model, **options)


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process the first one's batch-norm statistics: those that are saved are those that score."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gradients_kept_local(model: nn.Module) -> Any:
    """A context in which backward only adds up: for all parts of a step but its last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
