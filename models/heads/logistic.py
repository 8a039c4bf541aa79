"""Logistic regression on the training features by scikit-learn.

Contract and notation: models/heads/__init__.py.
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.heads import Head, affine
from models.heads.means import check_training_set
from utils.base.errors import SettingError
from utils.base.numbers import check_above_zero

MOST = 10**10  # products of features and classes in a step of the solver, some seconds of one core


class LogisticRows(Head):
    """logit_k = w_k x + b_k of the multinomial logistic regression whose classes weigh alike; no SGD.

    Fitted to standardised features, then folded back. `logreg_c` is C of scikit-learn: the larger, the
    weaker the penalty on the rows.
    """

    needs = ("features", "labels")
    stacks = True

    def __init__(self, in_features: int, num_classes: int, logreg_c: float = 1.0) -> None:
        super().__init__()
        self.logreg_c = check_above_zero("logreg_c", logreg_c)
        self.register_buffer("weight", torch.zeros(num_classes, in_features))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def start(self, fc: nn.Linear, features: Tensor, labels: Tensor) -> None:
        """features [N, D] and labels int64 [N] of the training images; of `fc` only the sizes matter.

        Raises SettingError: a class has no feature, or the features are too many for this solver.
        """
        num_classes, in_features = self.weight.shape
        check_training_set(features, labels, num_classes, in_features)
        missing = torch.bincount(labels, minlength=num_classes) == 0
        if missing.any():
            raise SettingError(f"class {int(missing.int().argmax())} has no training feature")
        if features.numel() * num_classes > MOST:
            size = f"{len(features):,} x {in_features} features of {num_classes} classes"
            raise SettingError(f"{size} are too many for scikit-learn's solver: leave logreg out")
        x = features.float().cpu().numpy()
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        deviation[deviation == 0] = 1
        rows, bias = _fitted((x - mean) / deviation, labels.cpu().numpy(), self.logreg_c)
        rows /= deviation
        self.weight.copy_(torch.from_numpy(rows))
        self.bias.copy_(torch.from_numpy(bias - rows @ mean))

    def forward(self, features: Tensor) -> Tensor:
        return affine(features, self.weight, self.bias)


def _fitted(x: np.ndarray, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [N, D], labels [N] -> rows [K, D], bias [K]; on one thread, so that the bits are the same."""
    from sklearn.linear_model import LogisticRegression  # here: to import it takes a second
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        found = LogisticRegression(C=c, class_weight="balanced", max_iter=1000).fit(x, labels)
    rows, bias = found.coef_, found.intercept_
    if len(rows) == 1:  # of two classes it gives the difference
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    return rows, bias
