"""Means of the training features, and heads that are fitted to these at once.

Features may be float16 and memory-mapped: they are read in chunks of rows and summed in float64.

Shapes: N training images, D feature, K classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Head
from models.heads.corrections import StageOneHead
from utils.base.errors import SettingError
from utils.base.numbers import check_above_zero

CHUNK = 4096  # rows: 64 MiB of float64 at D = 2048
CONSTANT = 1e-4  # of a feature's mean: what deviates less is the rounding of a mean taken in float32
MOST = 10**10  # products of features and classes in a step of logistic regression: seconds of one core


@torch.no_grad()
def class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """features [N, D], labels int64 [N] -> means [K, D] and shares of the images [K], float64.

    The mean of a class without image is 0; shares @ means is the mean over all images.
    """
    check_training_set(features, labels, num_classes, features.shape[-1])
    counts = torch.bincount(labels, minlength=num_classes).to(features.device, torch.float64)
    means = _class_sums(features, labels, num_classes) / counts.clamp_min(1)[:, None]
    return means, counts / len(labels)


def check_training_set(features: Tensor, labels: Tensor, num_classes: int, in_features: int) -> None:
    """Raise ValueError unless features are [N, D], labels [N] are in 0..K-1 and N is above 0."""
    if features.shape != (len(labels), in_features):
        wanted = f"[{len(labels)}, {in_features}] beside {len(labels)} labels"
        raise ValueError(f"features must be {wanted}, got {list(features.shape)}")
    if not len(labels):
        raise ValueError("there is no training feature, so there are no means")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")


def _class_sums(features: Tensor, labels: Tensor, num_classes: int, centre: Tensor | None = None) -> Tensor:
    """float64 [K, D]: each class's sum of x, or with a centre c, of (x - c) / ‖x - c‖."""
    sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
    for chunk, classes in zip(features.split(CHUNK), labels.to(features.device).split(CHUNK), strict=True):
        rows = chunk.double()
        sums.index_add_(0, classes, rows if centre is None else F.normalize(rows - centre, dim=1))
    return sums


class NearestMean(Head):
    """logit_k = cos(x - c, μ_k): c (`centre` [D]) the mean training feature, μ_k the mean over the training
    images of class k of (x - c) / ‖x - c‖; nothing is learned. `weight` holds the rows μ_k / ‖μ_k‖.

    Source: nearest class mean, NCM (as in Kang et al. 2020).
    """

    needs = ("features", "labels")
    stacks = True

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, in_features))
        self.register_buffer("centre", torch.zeros(in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear, features: Tensor, labels: Tensor) -> None:
        """features [N, D] and labels int64 [N] of the training images; of `fc` only the sizes matter."""
        num_classes, in_features = self.weight.shape
        check_training_set(features, labels, num_classes, in_features)
        means, shares = class_means(features, labels, num_classes)
        if (shares == 0).any():
            raise SettingError(f"class {int(shares.argmin())} has no training feature, so it has no mean")
        centre = shares @ means
        self.centre.copy_(centre)
        # the sum of a class points where its mean does
        self.weight.copy_(F.normalize(_class_sums(features, labels, num_classes, centre), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """features [..., N, D] -> cosines [..., N, K]; 0 for a feature that is the centre itself."""
        return F.normalize(features - self.centre.unsqueeze(-2), dim=-1) @ self.weight.mT


def logistic_rows(
    features: Tensor, labels: Tensor, penalty: float, class_weight: str | None = None
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by scikit-learn, on standardised features: rows [K, D], bias [K].

    features [N, D], labels int64 [N], each class with one at least. The scale is folded back. `penalty` is
    its C, `class_weight` None or "balanced".
    """
    from sklearn.linear_model import LogisticRegression  # here: to import it takes a second

    x = features.float().cpu().numpy()
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation <= CONSTANT * np.abs(mean)] = 1
    model = LogisticRegression(C=penalty, class_weight=class_weight, max_iter=1000)
    model.fit((x - mean) / deviation, labels.cpu().numpy())
    rows, bias = model.coef_ / deviation, model.intercept_
    if len(rows) == 1:  # of two classes it gives the difference
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(rows), torch.from_numpy(bias - rows @ mean)


class LogisticRows(StageOneHead):
    """logit_k = w_k x + b_k of a multinomial logistic regression whose classes weigh alike: no SGD.

    scikit-learn fits it to standardised features, on one thread so that its bits are the same; the scale is
    folded back. `logreg_c` is its C: the larger, the weaker the penalty on the rows.
    """

    needs = ("features", "labels")

    def __init__(self, in_features: int, num_classes: int, logreg_c: float = 1.0) -> None:
        super().__init__(in_features, num_classes)
        self.logreg_c = check_above_zero("logreg_c", logreg_c)

    @torch.no_grad()
    def start(self, fc: nn.Linear, features: Tensor, labels: Tensor) -> None:
        """features [N, D] and labels int64 [N] of the training images; of `fc` only the sizes matter."""
        from threadpoolctl import threadpool_limits

        check_training_set(features, labels, *self.weight.shape)
        if not (counts := torch.bincount(labels, minlength=len(self.weight))).all():
            raise SettingError(f"class {int(counts.argmin())} has no training feature")
        if features.numel() * len(self.weight) > MOST:
            size = f"{len(features):,} x {features.shape[1]} features of {len(self.weight)} classes"
            raise SettingError(f"{size} are too many for scikit-learn's solver: leave logreg out")
        with threadpool_limits(1, "blas"):
            rows, bias = logistic_rows(features, labels, self.logreg_c, "balanced")
        self.weight.copy_(rows)
        self.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.stage1_logits(features)
