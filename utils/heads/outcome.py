"""Which heads are reported, and what is reported of them: figures on test, LoMa and RSD, predictions.

Shapes: N images, D feature, V views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from utils.base.errors import UserError
from utils.engine.scoring import score
from utils.features.logits import logit_batches
from utils.heads.epochs import nothing_left, settings_of
from utils.heads.head import HeadRun
from utils.metrics.accuracy import logit_figures
from utils.metrics.logits import LogitStatistics
from utils.metrics.temperature import fit_temperature


def choose(heads: list[HeadRun], select: str) -> list[HeadRun]:
    """The heads that are reported: all where nothing selects, else of each method the setting that does best.

    A setting is scored after its best epoch by the mean over its seeds; one with a failed seed is out.

    Raises:
        UserError: no head of the methods that the user named is left.
    """
    chosen = best_so_far(heads, select)
    if not any(head.plan.named for head in chosen):
        raise UserError(nothing_left([head for head in heads if head.plan.named]))
    return chosen


def best_so_far(heads: list[HeadRun], select: str) -> list[HeadRun]:
    """The same of heads on their way, each with a score if it has not failed; none where all have."""
    if select == "last":
        return [head for head in heads if not head.failed]
    whole: dict[str, list[list[HeadRun]]] = {}
    for group in settings_of(heads):
        if not any(head.failed for head in group):
            whole.setdefault(group[0].plan.method.name, []).append(group)
    return [head for groups in whole.values() for head in max(groups, key=mean_score)]


def mean_score(group: Sequence[HeadRun]) -> float:
    """The mean over the seeds of a setting of the score that selects."""
    return fmean(head.progress.best_score for head in group)


def lead_of(chosen: Sequence[HeadRun], method: str | None) -> HeadRun:
    """The head of `choose` that is published: the first of a method; None: of the one with the best score.

    Of several seeds it is the first one's. Where the method has failed, the first of another stands for it.
    """
    named = [head for head in chosen if head.plan.named]
    by_method: dict[str, list[HeadRun]] = {}
    for head in named:
        by_method.setdefault(head.plan.method.name, []).append(head)
    if method is None:
        return max(by_method.values(), key=mean_score)[0]
    return by_method.get(method, named)[0]


@dataclass(frozen=True)
class Outcome:
    """A head that is reported: its figures on test, LoMa and RSD on the training images, its predictions."""

    head: HeadRun
    figures: dict
    train_groups: dict
    train_classes: dict
    predicted: Tensor  # int64 [N]


def outcomes(
    heads: Sequence[HeadRun], priors: Mapping[str, np.ndarray] | None = None, unseen: bool = False
) -> list[Outcome]:
    """Of each head; those that share a state of a drifting backbone come in turn, and share features."""
    states = {head: (head.plan.seed, head.plan.method.sampler, head.chosen_epoch) for head in heads}
    made = {head: outcome(head, priors, unseen) for head in sorted(heads, key=states.get)}
    return [made[head] for head in heads]


def outcome(head: HeadRun, priors: Mapping[str, np.ndarray] | None = None, unseen: bool = False) -> Outcome:
    """Score the selected epoch on test, once, and take LoMa and RSD on the plain training images.

    `priors`: see `Scores`. `unseen`: the backbone was not trained on the validation images, if there are any:
    then they give a temperature, unless they stand in for test.
    """
    head.load_chosen()
    frozen, temperature = head.frozen, None
    if unseen and frozen.judged == "test" and "val" in frozen.labels:
        logits = torch.cat(list(logit_batches(head.head, frozen.part("val"))))
        temperature = fit_temperature(logits, frozen.labels["val"])
    scoring = {"priors": priors, "temperature": temperature}
    batches = logit_batches(head.head, frozen.part(frozen.judged))
    test = score(batches, frozen.labels[frozen.judged], frozen.num_classes, **scoring)
    return Outcome(
        head,
        test.figures(frozen.class_counts, frozen.shots),
        *logit_figures(_training_statistics(head), frozen.class_counts, frozen.shots),
        test.predicted.cpu(),
    )


def _training_statistics(head: HeadRun) -> LogitStatistics:
    train, start = head.frozen.train, 0
    statistics = LogitStatistics(torch.bincount(train.labels, minlength=head.frozen.num_classes))
    for logits in logit_batches(head.head, train.plain()[None]):
        statistics.add(logits, train.labels[start : start + len(logits)])
        start += len(logits)
    return statistics
