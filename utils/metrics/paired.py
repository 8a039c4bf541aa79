"""Heads side by side on the same test images: the exact McNemar test, Holm's correction, bootstrap draws.

Shapes: N images, M heads, K classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr
from torch import Tensor

from utils.base.errors import UserError

DRAWS, INTERVAL = 2000, (0.025, 0.975)
_TOGETHER = 25  # draws whose weights [draws, N] are held at once


def mcnemar(predicted: Tensor, other: Tensor, targets: Tensor) -> float:
    """Two-sided p of the exact McNemar test: are the images that only one of the two gets right balanced?

    Predicted classes [N] of both on the same images with `targets` [N]. Source: McNemar 1947.
    """
    right, other_right = predicted == targets, other == targets
    ours, theirs = int((right & ~other_right).sum()), int((~right & other_right).sum())
    # of scipy.stats.binomtest, which takes longer to load than this run's table to write
    return min(1.0, 2 * float(bdtr(min(ours, theirs), ours + theirs, 0.5)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p of several tests, corrected for their number, in the given order; None is no test.

    Source: Holm 1979: the smallest of m is multiplied by m, the next by m - 1; none is below a smaller one.
    """
    corrected, least = list(values), 0.0
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    for done, (p, place) in enumerate(known):
        corrected[place] = least = max(least, min(1.0, (len(known) - done) * p))
    return corrected


def check_classes(targets: Tensor) -> None:
    """Raise a UserError where a bootstrap over the classes of `targets` [N] could not be drawn."""
    if len(targets.unique()) < 2:
        raise UserError("all scored images are of one class: heads are compared over two or more")


def bootstrap(hits: np.ndarray, targets: Tensor) -> np.ndarray:
    """Overall accuracies float32 [M, DRAWS] of heads on drawn test images, the same draws for all of them.

    `hits` [M, N]: which images each head gets right, or the share of its seeds that do. A draw takes K
    classes with replacement, then from each of these as many of its images as it has, with replacement: what
    differs between classes counts, and so does what differs between images. The seed is fixed.

    Raises:
        UserError: the images are of one class.
    """
    check_classes(targets)
    labels = targets.cpu().numpy()
    hits = hits[:, labels.argsort(kind="stable")].astype(np.float32)
    sizes = np.unique(labels, return_counts=True)[1]
    starts, draw = sizes.cumsum() - sizes, np.random.default_rng(0)
    parts = []
    for _ in range(DRAWS // _TOGETHER):
        weights = np.empty((_TOGETHER, len(labels)), np.float32)
        for row in weights:
            classes = draw.integers(len(sizes), size=len(sizes))
            of_images = sizes[classes]
            within = (draw.random(of_images.sum()) * of_images.repeat(of_images)).astype(np.int64)
            row[:] = np.bincount(starts[classes].repeat(of_images) + within, minlength=len(labels))
        parts.append(hits @ weights.T / weights.sum(axis=1))
    return np.concatenate(parts, axis=1)
