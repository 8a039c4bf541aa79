"""Heads whose rows are learned, and the closed-form step of LOS.

Contract and notation: models/heads/__init__.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import TINY, Gradients, Head, affine, copy_stage1, normalised, normalised_slope
from models.heads.means import check_training_set, class_means
from utils.base.numbers import check_above_zero, check_class_counts, check_not_negative


class Linear(Head, nn.Linear):
    """logit_k = w_k x + b_k, both learned.

    Starts as a copy of the stage-1 classifier, or where `fresh`, as torch initialises an nn.Linear but from
    the given generator (cRT: Kang et al. 2020, "Decoupling Representation and Classifier").
    """

    stacks = True

    def __init__(self, in_features: int, num_classes: int, fresh: bool = False) -> None:
        super().__init__(in_features, num_classes)
        if fresh:
            self.needs = ("generator",)

    def forward(self, features: Tensor) -> Tensor:
        return affine(features, self.weight, self.bias)

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        return self(features), lambda slope: {"weight": slope.mT @ features, "bias": slope.sum(dim=-2)}

    def reset_parameters(self) -> None:
        for zeros in (self.weight, self.bias):  # the values come from `start` or a checkpoint
            nn.init.zeros_(zeros)

    @torch.no_grad()
    def start(self, fc: nn.Linear, generator: torch.Generator | None = None) -> None:
        """Copy `fc`, or where a generator is given, draw afresh (one seed: the same draw on any device)."""
        if generator is None:
            copy_stage1(self, fc)
            return
        self.weight.copy_(_drawn_weight(self.weight, generator))
        bound = 1 / math.sqrt(self.in_features)
        bias = torch.empty(self.out_features, device=generator.device)
        self.bias.copy_(bias.uniform_(-bound, bound, generator=generator))


class MonotoneLinear(Linear):
    """The stage-1 classifier, learned on; after each epoch its row norms are made monotone (`constrain`).

    Source: SAMN (Zhang et al. 2026), whose summaries say that the norms must not decrease from the most
    frequent class to the rarest and that pooling adjacent violators makes them so; the rest is our reading.
    """

    needs = ("class_counts",)

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)  # it has no `fresh`

    @torch.no_grad()
    def start(self, fc: nn.Linear, class_counts: Sequence[int]) -> None:
        copy_stage1(self, fc)
        self.rarity = -check_class_counts(class_counts).numpy()

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale the rows to the nearest norms that do not decrease with rarity; the bias stays as it is.

        Classes of as many images get one norm, as scikit-learn has it.
        """
        from sklearn.isotonic import IsotonicRegression  # here: to import it takes a second

        norms = self.weight.norm(dim=1)
        wanted = IsotonicRegression().fit_transform(self.rarity, norms.double().cpu().numpy())
        self.weight.mul_((torch.from_numpy(wanted).to(norms) / norms.clamp_min(TINY)).unsqueeze(1))


class LosStep(Linear):
    """logit_k = (w_k - s (π_k μ_k - μ/K)) x + b_k - s (π_k - 1/K); nothing is learned. μ_k, μ: mean training
    feature of class k, of all images; π_k: share of class k in `labels`.

    One full-batch gradient step of LabelOverSmooth(δ) with learning rate r, s = r δ (`strength`), where the
    training predictions are one-hot and right, as they nearly are after stage 1. A class without training
    feature has π_k μ_k = 0.

    Source: LOS to first order, worked out here.
    """

    needs = ("features", "labels")

    def __init__(self, in_features: int, num_classes: int, strength: float = 1.0) -> None:
        super().__init__(in_features, num_classes)
        self.strength = check_not_negative("strength", strength)
        self.requires_grad_(False)

    @torch.no_grad()
    def start(self, fc: nn.Linear, features: Tensor, labels: Tensor) -> None:
        """Copy `fc`, then step; features [N, D] and labels int64 [N] of the training images."""
        check_training_set(features, labels, self.out_features, self.in_features)
        means, shares = class_means(features, labels, self.out_features)
        copy_stage1(self, fc)
        weight_step = shares[:, None] * means - shares @ means / len(shares)
        bias_step = shares - 1 / len(shares)
        self.weight.copy_(self.weight.to(means) - self.strength * weight_step)
        self.bias.copy_(self.bias.to(means) - self.strength * bias_step)


class CosineLinear(Head):
    """logit_k = s cos(x, v_k), of zeros 0; the rows v (`weight` [K, D]) are learned, s is `scale`.

    Starts from the normalised stage-1 rows, the bias dropped.

    Source: the normalised classifier of LDAM (Cao et al. 2019).
    """

    stacks = True

    def __init__(self, in_features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = check_above_zero("scale", scale)
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        self.weight.copy_(F.normalize(fc.weight, dim=1))

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        x, (rows, lengths) = normalised(features)[0], normalised(self.weight)

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            return {"weight": normalised_slope(self.scale * slope.mT @ x, rows, lengths)}

        return self.scale * affine(x, rows), gradients


class EtfHead(Head):
    """logit_k = s cos(V x, m_k), 0 where V x is 0: V (`weight` [K, D], no bias) is learned; s is `scale`.

    The m_k, rows of M = sqrt(K/(K-1)) (I - 11ᵀ/K), are a simplex equiangular tight frame: unit length,
    pairwise cosine -1/(K-1). M is never built: with u = V x / ‖V x‖, cos = sqrt(K/(K-1)) (u_k - mean u).
    Its source turns M by a random rotation; here V is free, so it can turn instead.

    Source: Yang et al. 2022.
    """

    stacks = True
    needs = ("generator",)

    def __init__(self, in_features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"an equiangular frame needs at least 2 classes, got {num_classes}")
        self.scale = check_above_zero("scale", scale)
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear, generator: torch.Generator) -> None:
        """Draw the map as torch draws an nn.Linear; of `fc` only the sizes matter."""
        self.weight.copy_(_drawn_weight(self.weight, generator))

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        num_classes = self.weight.shape[-2]
        length = self.scale * math.sqrt(num_classes / (num_classes - 1))
        mapped, lengths = normalised(affine(features, self.weight))

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            slope = length * (slope - slope.mean(dim=-1, keepdim=True))
            return {"weight": normalised_slope(slope, mapped, lengths).mT @ features}

        return length * (mapped - mapped.mean(dim=-1, keepdim=True)), gradients


def _drawn_weight(like: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix of the shape of `like`, drawn as torch draws the weight of an nn.Linear."""
    weight = torch.empty(like.shape, device=generator.device)
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
