"""Randomness as a function of (seed, purpose, counters), not of a stream that a resume must replay."""

import hashlib
from collections.abc import Iterable, Iterator

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


def balanced_order(seed: int, epoch: int, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """N draws with replacement: a class, each equally likely, then an image of it; int64 [N].

    Source: class-balanced sampling, as in Kang et al. 2020; `labels` int64 [N], every class with an image.
    """
    generator = generator_for(seed, "balanced order", epoch)
    by_class = labels.cpu().argsort(stable=True)
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    first = counts.cumsum(0) - counts
    drawn = torch.randint(num_classes, (len(labels),), generator=generator)
    place = torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[drawn]
    return by_class[first[drawn] + place.long()]


def seeded(batches: Iterable, seed: int, *counters: int, first: int = 0) -> Iterator:
    """The same batches; their numbers, from `first` on, set torch's global state: dropout draws from it."""
    for number, batch in enumerate(batches, first):
        own = number_for(seed, "network", *counters, number)
        torch.default_generator.manual_seed(own)  # torch.manual_seed takes a hundred times as long
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(own)
        yield batch
