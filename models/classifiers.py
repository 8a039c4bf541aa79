"""Classifier heads of the re-training methods: features [N, D] -> logits [N, K].

A head is made empty from (D, K, options), then filled by `start` from the stage-1 classifier or by
`load_state_dict` from a checkpoint. What the method learns is a Parameter; what stays fixed is a buffer, so
that the state dict holds all of the head. Every head has a matrix `weight` [K, D], from which its two sizes
can be read. `needs` names what `start` takes beside the stage-1 classifier. A stage-1 classifier without a
bias counts as one whose bias is 0. Nothing here draws from torch's global random state.

Shapes: N batch, D feature, K classes. Notation: x feature, w_k and b_k row and bias of the stage-1
classifier, z_k = w_k x + b_k its logit, n_k training images of class k, π_k = n_k / Σ n.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TINY = 1e-12


class Linear(nn.Linear):
    """logit_k = w_k x + b_k, both learned.

    Starts as a copy of the stage-1 classifier, or where `fresh`, as torch initialises an nn.Linear but from
    the given generator (cRT: Kang et al. 2020, "Decoupling Representation and Classifier").
    """

    def __init__(self, in_features: int, num_classes: int, fresh: bool = False) -> None:
        super().__init__(in_features, num_classes)
        self.needs = ("generator",) if fresh else ()

    def reset_parameters(self) -> None:
        """Zeros: the values come from `start` or a checkpoint."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def start(self, fc: nn.Linear, generator: torch.Generator | None = None) -> None:
        """Copy `fc`, or where a generator is given, draw afresh (one seed: the same draw on any device)."""
        if generator is None:
            self.weight.copy_(fc.weight)
            self.bias.copy_(_bias(fc))
            return
        self.weight.copy_(_drawn_weight(self.weight, generator))
        bound = 1 / math.sqrt(self.in_features)
        bias = torch.empty(self.out_features, device=generator.device)
        self.bias.copy_(bias.uniform_(-bound, bound, generator=generator))


class StageOneHead(nn.Module):
    """Base of the heads that correct the fixed stage-1 classifier, kept in `weight` [K, D], `bias` [K]."""

    needs: tuple[str, ...] = ()

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, in_features))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        """Keep a copy of `fc`; the correction is as it was made: none."""
        self.weight.copy_(fc.weight)
        self.bias.copy_(_bias(fc))

    def stage1_logits(self, features: Tensor) -> Tensor:
        """features [N, D] -> z [N, K]."""
        return F.linear(features, self.weight, self.bias)


class ScaledLinear(StageOneHead):
    """logit_k = f_k z_k; only the scales f (`scale` [K], start 1) are learned.

    Source: learnable weight scaling, LWS (Kang et al. 2020).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K]."""
        return self.scale * self.stage1_logits(features)


class Marc(StageOneHead):
    """logit_k = a_k z_k + b_k ‖w_k‖; only a (`scale` [K], start 1) and b (`shift` [K], start 0) are learned.

    Source: margin calibration, MARC (Wang et al. 2022).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K]."""
        return self.scale * self.stage1_logits(features) + self.shift * self.weight.norm(dim=1)


class DisAlign(StageOneHead):
    """logit_k = (1 + σ(x) s_k) z_k + σ(x) b_k with σ(x) = sigmoid(v x + c), one confidence an image.

    Only s (`scale` [K]), b (`shift` [K]), v (`confidence_weight` [D]) and c (`confidence_bias`) are learned.
    All start at 0: the logits are those of stage 1, σ is 1/2 everywhere, and nothing is drawn.

    Source: distribution alignment, DisAlign (Zhang et al. 2021).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.scale = nn.Parameter(torch.zeros(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))
        self.confidence_weight = nn.Parameter(torch.zeros(in_features))
        self.confidence_bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K]."""
        score = F.linear(features, self.confidence_weight[None], self.confidence_bias)  # [N, 1]
        confidence = score.sigmoid()
        return (1 + confidence * self.scale) * self.stage1_logits(features) + confidence * self.shift


class PriorAdjusted(StageOneHead):
    """logit_k = z_k - τ log π_k; nothing is learned. τ log π is kept in `adjustment` [K].

    Source: post-hoc logit adjustment (Menon et al. 2021).

    Raises:
        ValueError: τ is negative or not finite; at `start`: there is not one count a class, or one is not
            above 0 (log π_k would not be finite).
    """

    needs = ("class_counts",)

    def __init__(self, in_features: int, num_classes: int, tau: float = 1.0) -> None:
        super().__init__(in_features, num_classes)
        self.tau = _check_tau(tau)
        self.register_buffer("adjustment", torch.zeros(num_classes))

    @torch.no_grad()
    def start(self, fc: nn.Linear, class_counts: Sequence[int]) -> None:
        """Keep a copy of `fc` and the logarithms of the class frequencies."""
        super().start(fc)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        if counts.shape != self.bias.shape:
            raise ValueError(f"class_counts must hold {len(self.bias)} counts, got {tuple(counts.shape)}")
        if not (counts > 0).all():
            raise ValueError(f"class {int((counts > 0).long().argmin())} has no training image: log 0")
        self.adjustment.copy_(self.tau * (counts / counts.sum()).log())

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K]."""
        return self.stage1_logits(features) - self.adjustment


class TauNorm(nn.Module):
    """logit_k = w_k x / ‖w_k‖^τ, the bias dropped; nothing is learned. `weight` holds the divided rows.

    Source: τ-normalised classifier (Kang et al. 2020).

    Raises:
        ValueError: τ is negative or not finite.
    """

    needs = ()

    def __init__(self, in_features: int, num_classes: int, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = _check_tau(tau)
        self.register_buffer("weight", torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        """Divide the rows of `fc`; a row of zeros stays zero."""
        rows = fc.weight.double()
        self.weight.copy_(rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY) ** self.tau)

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K]."""
        return F.linear(features, self.weight)


class NearestMean(nn.Module):
    """logit_k = cos(x - c, μ_k): c (`centre` [D]) the mean training feature, μ_k the mean over the training
    images of class k of (x - c) / ‖x - c‖; nothing is learned. `weight` holds the rows μ_k / ‖μ_k‖.

    Source: nearest class mean, NCM (as in Kang et al. 2020).

    Raises:
        ValueError: at `start`: shapes or labels do not fit, or a class has no training feature.
    """

    needs = ("features", "labels")

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, in_features))
        self.register_buffer("centre", torch.zeros(in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear, features: Tensor, labels: Tensor) -> None:
        """features [N, D] and labels int64 [N] of the training images; of `fc` only the sizes matter."""
        num_classes, in_features = self.weight.shape
        if features.shape != (len(labels), in_features):
            raise ValueError(
                f"features must be [{len(labels)}, {in_features}] beside {len(labels)} labels, "
                f"got {list(features.shape)}"
            )
        if ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
        counts = torch.bincount(labels, minlength=num_classes).tolist()
        if 0 in counts:
            raise ValueError(f"class {counts.index(0)} has no training feature, so it has no mean")
        centre = features.mean(dim=0, dtype=torch.float64)
        self.centre.copy_(centre)
        for k, members in enumerate(labels.argsort(stable=True).split(counts)):
            mean = F.normalize(features[members].double() - centre, dim=1).mean(dim=0)
            self.weight[k].copy_(F.normalize(mean, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> cosines [N, K]; 0 for a feature that is the centre itself."""
        return F.linear(F.normalize(features - self.centre, dim=1), self.weight)


class CosineLinear(nn.Module):
    """logit_k = cos(x, v_k), without scale (the loss scales); the rows v (`weight` [K, D]) are learned.

    Starts from the normalised stage-1 rows, the bias dropped.

    Source: the normalised classifier of LDAM (Cao et al. 2019).
    """

    needs = ()

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        """Copy the normalised rows of `fc`; a row of zeros stays zero."""
        self.weight.copy_(F.normalize(fc.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> cosines [N, K]; 0 where the feature or the row is zero."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class EtfHead(nn.Module):
    """logit_k = s cos(V x, m_k): V (`weight` [K, D], no bias) is learned; s is `scale`.

    The rows m_k of `frame` [K, K] are a fixed simplex equiangular tight frame: unit length, pairwise cosine
    -1/(K-1), M = sqrt(K/(K-1)) (I - 11ᵀ/K) U with U a random rotation. It exists in K - 1 dimensions or more;
    V maps to K, whatever D is.

    Source: Yang et al. 2022.

    Raises:
        ValueError: fewer than 2 classes, or a scale that is not a positive number.
    """

    needs = ("generator",)

    def __init__(self, in_features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"an equiangular frame needs at least 2 classes, got {num_classes}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {scale:g}")
        self.scale = scale
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))
        self.register_buffer("frame", torch.zeros(num_classes, num_classes))

    @torch.no_grad()
    def start(self, fc: nn.Linear, generator: torch.Generator) -> None:
        """Draw the rotation of the frame, then the map as torch does; of `fc` only the sizes matter."""
        k = len(self.frame)
        normal = torch.randn(k, k, generator=generator, dtype=torch.float64, device=generator.device)
        rotation = torch.linalg.qr(normal).Q
        self.frame.copy_(math.sqrt(k / (k - 1)) * (rotation - rotation.mean(dim=0)))
        self.weight.copy_(_drawn_weight(self.weight, generator))

    def forward(self, features: Tensor) -> Tensor:
        """features [N, D] -> logits [N, K] in [-scale, scale]; 0 for a feature that is mapped to zero."""
        return self.scale * F.linear(F.normalize(F.linear(features, self.weight), dim=1), self.frame)


def _drawn_weight(like: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix of the shape of `like`, drawn as torch draws the weight of an nn.Linear."""
    weight = torch.empty(like.shape, device=generator.device)
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def _bias(fc: nn.Linear) -> Tensor:
    return fc.weight.new_zeros(fc.out_features) if fc.bias is None else fc.bias


def _check_tau(tau: float) -> float:
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be 0 or a positive number, got {tau:g}")
    return tau
