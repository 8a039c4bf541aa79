"""How even a classifier is over its classes: F1, the worst classes, and accuracy under other class priors.

Shapes: N images, K classes. Figures are fractions; one that cannot be is None. Classes without test images
are left out.
"""

import math

import numpy as np
import pandas as pd
from torch import Tensor, bincount

from datasets.long_tail import SHOTS, shot_groups
from utils.base.errors import UserError

RATIOS = (2, 5, 10, 25, 50)


def mean_of(values: np.ndarray) -> float | None:
    """The mean of those that are numbers."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def balance_figures(
    predicted: Tensor, targets: Tensor, class_counts: list[int], shots: tuple[int, int] = SHOTS
) -> dict[str, float | None]:
    """Figures of predicted classes [N] (-1: none) by name; `class_counts` [K] are the training images.

    `macro_f1` and `precision` are means over classes, 0 for one that is never predicted, also by shot group.
    `worst_tenth` is the mean of the tenth of the classes with the lowest accuracies (rounded up);
    `harmonic_mean` and `geometric_mean` of class accuracies are 0 where one is; `zero_classes` counts these.
    `rank_correlation` is Spearman's, of class accuracies and training images. `forward_R` is the accuracy
    under the prior of that name, see `shifted_priors`.
    """
    size = len(class_counts)
    hits = bincount(targets[predicted == targets], minlength=size).cpu().numpy()
    found = bincount(predicted[predicted >= 0], minlength=size).cpu().numpy()
    support = bincount(targets, minlength=size).cpu().numpy()
    there, absent = support > 0, np.full(size, np.nan)
    by_class = {
        "macro_f1": np.divide(2 * hits, support + found, out=absent.copy(), where=there),
        "precision": np.divide(hits, np.maximum(found, 1), out=absent.copy(), where=there),
    }
    masks = {"": there} | {f"_{name}": mask for name, mask in shot_groups(class_counts, shots).items()}
    accuracy = hits[there] / support[there]
    worst, zeros = np.sort(accuracy), int((accuracy == 0).sum())
    return {
        **{name + part: mean_of(v[mask]) for name, v in by_class.items() for part, mask in masks.items()},
        "worst_class": float(worst[0]),
        "worst_tenth": float(worst[: math.ceil(len(worst) / 10)].mean()),
        "harmonic_mean": 0.0 if zeros else float(1 / (1 / accuracy).mean()),
        "geometric_mean": 0.0 if zeros else float(np.exp(np.log(accuracy).mean())),
        "zero_classes": zeros,
        "rank_correlation": rank_correlation(np.array(class_counts)[there], accuracy),
        **{name: under_prior(hits, support, prior) for name, prior in shifted_priors(class_counts).items()},
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing the mean of their ranks; None where all are equal."""
    with np.errstate(invalid="ignore"):
        value = pd.Series(one).rank().corr(pd.Series(other).rank())
    return None if np.isnan(value) else float(value)


def shifted_priors(class_counts: list[int]) -> dict[str, np.ndarray]:
    """Long-tailed class priors [K] of a test set, by name: `forward_R`, `backward_R` for each of RATIOS.

    `forward`: as in training the frequent classes are frequent, the first R times as much as the last, and
    those between by a power of their rank; `backward`: the rare ones are. Source: Hong et al. 2021, who draw
    such test sets; here the classes of the whole test set are weighted, which is exact.
    """
    rank = (pd.Series(class_counts).rank(method="first", ascending=False) - 1) / max(1, len(class_counts) - 1)
    rank = rank.to_numpy()
    ways = {f"forward_{r}": float(r) ** -rank for r in RATIOS}
    ways |= {f"backward_{r}": float(r) ** (rank - 1) for r in RATIOS}
    return {name: prior / prior.sum() for name, prior in ways.items()}


def target_priors(text: str | None, class_counts: list[int]) -> dict[str, np.ndarray]:
    """The priors [K] for which `--target_prior` asks to correct the logits, by name; None: for none.

    Raises:
        UserError: numbers that are no prior of these classes.
    """
    if text is None or text == "known":
        return shifted_priors(class_counts) if text else {}
    try:
        prior = np.array([float(word) for word in text.split(",")])
    except ValueError as error:
        raise UserError("--target_prior takes `known`, or a number for each class, commas between") from error
    if len(prior) != len(class_counts):
        raise UserError(f"--target_prior has {len(prior)} number(s) for {len(class_counts)} classes")
    if not (np.isfinite(prior.sum()) and prior.min() > 0):
        raise UserError("--target_prior needs numbers above 0: a class at 0 would never be predicted")
    return {"target": prior / prior.sum()}


def under_prior(hits: np.ndarray, support: np.ndarray, prior: np.ndarray) -> float:
    """Accuracy on a test set whose classes are as frequent as `prior` [K] says, from hits and images [K]."""
    there = support > 0
    return float(prior[there] @ (hits[there] / support[there]) / prior[there].sum())
