"""Randomness as a function of (seed, purpose, counters), not of a stream that a resume must replay."""

import hashlib

import torch


def number_for(seed: int, purpose: str, *counters: int) -> int:
    """A number of 63 bits that depends on these arguments only, to seed a generator with."""
    key = "/".join(map(str, (seed, purpose, *counters)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def generator_for(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator that depends on these arguments only: the same on every device, after every resume."""
    return torch.Generator().manual_seed(number_for(seed, purpose, *counters))


def epoch_order(seed: int, epoch: int, num_images: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits the training set, int64 [N]."""
    return torch.randperm(num_images, generator=generator_for(seed, "order", epoch))
