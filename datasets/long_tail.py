"""The long-tail law, which images it keeps, and splits of what it leaves out.

K classes, N images; labels are int64 NumPy arrays [N], splits are index arrays into them.
"""

import numpy as np

from utils.base.errors import UserError

# few: fewer training images than the first; many: more than the second
SHOTS = (20, 100)
UNUSED_PER_CLASS = 20
TEST_SEED = 2025  # of images that are held out to test: not that of those which then validate


def long_tail_counts(num_classes: int, max_count: int, imb_ratio: float) -> list[int]:
    """Images to keep of each class: n_k = int(max_count * imb_ratio ** (-k / (K - 1))), most frequent first.

    Source: Cui et al. 2019; the law of CIFAR100-LT in all later work.

    Raises UserError: there is no image, the ratio is not a number of 1 or more, or it leaves a class without.
    """
    if not (np.isfinite(imb_ratio) and imb_ratio >= 1):
        raise UserError(f"--imb_ratio must be a number of 1 or more, got {imb_ratio:g}")
    if max_count < 1:
        raise UserError("the largest class has no image")
    steps = max(num_classes - 1, 1)
    counts = [int(max_count * imb_ratio ** (-k / steps)) for k in range(num_classes)]
    if counts[-1] == 0:
        # rounding can take the last image at the very ratio of max_count
        limit = max_count if int(max_count * max_count**-1.0) else max_count - 1
        empty = f"leaves {counts.count(0)} of {num_classes} classes without an image"
        raise UserError(f"--imb_ratio {imb_ratio:g} {empty}: the largest ratio that leaves none is {limit}")
    return counts


def by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Label -> indices of its images, in file order, of every class that has some; labels int64 [N]."""
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    return dict(zip(present.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}


def keep_indices(labels: np.ndarray, counts: list[int], subset_seed: int | None = None) -> np.ndarray:
    """The first n_k images of each class in file order, classes in label order.

    With a subset_seed they are drawn at random instead. labels int64 [N] -> indices [sum of counts].
    """
    kept, found, none = [], by_class(labels), np.zeros(0, dtype=np.int64)
    for label, count in enumerate(counts):
        of_class = found.get(label, none)
        if len(of_class) < count:
            raise UserError(f"class {label} has {len(of_class)} images, {count} are needed")
        if subset_seed is not None:
            of_class = np.random.default_rng([subset_seed, label]).permutation(of_class)
        kept.append(of_class[:count])
    return np.concatenate(kept)


def unused_indices(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Up to UNUSED_PER_CLASS images of each class that `kept` leaves out: the last ones in file order."""
    left_out = np.ones(len(labels), dtype=bool)
    left_out[kept] = False
    every = by_class(labels).values()
    return np.concatenate([of_class[left_out[of_class]][-UNUSED_PER_CLASS:] for of_class in every])


def held_out_mask(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Boolean [N], true for a stratified share of the training images that is set aside before stage 1.

    A class of two or more gives round(fraction * n_k) images, at least one, and keeps at least one.
    """
    if not 0 < fraction < 1:
        raise UserError(f"a share held out must be above 0 and below 1, got {fraction:g}")
    held_out = np.zeros(len(labels), dtype=bool)
    for label, of_class in by_class(labels).items():
        take = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        chosen = np.random.default_rng([seed, label]).permutation(of_class)[:take]
        held_out[chosen] = True
    return held_out


def shot_groups(
    class_counts: list[int] | np.ndarray, shots: tuple[int, int] = SHOTS
) -> dict[str, np.ndarray]:
    """Boolean masks [K] by training count; with the usual limits many above 100, medium 20 to 100, few below.

    Source: Liu et al. 2019.
    """
    counts = np.asarray(class_counts)
    low, high = shots
    return {"many": counts > high, "medium": (counts >= low) & (counts <= high), "few": counts < low}


def suited_shots(class_counts: list[int] | np.ndarray) -> tuple[tuple[int, int], str]:
    """Limits of the shot groups of a user's own set, and a note where they are not the usual ones.

    Where those leave a group less than half of a third of the classes, the classes are cut into thirds by
    their counts [K], if that serves the smallest group better. Classes of one size stay together.
    """
    counts = np.sort(class_counts)
    third = len(counts) // 3
    if not third:
        return SHOTS, ""
    shots = int(counts[third - 1]) + 1, int(counts[-third]) - 1

    def sizes(limits: tuple[int, int]) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in shot_groups(counts, limits).items()}

    usual = sizes(SHOTS)
    least = min(usual, key=usual.get)
    if 6 * usual[least] >= len(counts) or shots[1] < shots[0] or min(sizes(shots).values()) <= usual[least]:
        return SHOTS, ""
    low, high = SHOTS
    left = f"--shots {low},{high} would leave {usual[least]} of {len(counts)} classes to {least}"
    return shots, f"shot groups: thirds of the classes by their images, --shots {shots[0]},{shots[1]}; {left}"
