"""Heads that correct the fixed stage-1 classifier. Contract and notation: models/heads/__init__.py."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads import TINY, Gradients, Head, affine, copy_stage1
from utils.base.numbers import check_class_counts, check_not_negative


class StageOneHead(Head):
    """Base of the heads that correct the fixed stage-1 classifier, kept in `weight` [K, D], `bias` [K]."""

    stacks = True

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, in_features))
        self.register_buffer("bias", torch.zeros(num_classes))

    def start(self, fc: nn.Linear) -> None:
        copy_stage1(self, fc)

    def stage1_logits(self, features: Tensor) -> Tensor:
        """features [..., N, D] -> z [..., N, K]."""
        return affine(features, self.weight, self.bias)


class ScaledLinear(StageOneHead):
    """logit_k = f_k z_k; only the scales f (`scale` [K], start 1) are learned, with `whole` z's weights too.

    Source: learnable weight scaling, LWS (Kang et al. 2020); `whole` in MiSLAS (Zhong et al. 2021).
    """

    def __init__(self, in_features: int, num_classes: int, whole: bool = False) -> None:
        super().__init__(in_features, num_classes)
        if whole:
            for name in ("weight", "bias"):
                start = self._buffers.pop(name)
                self.register_parameter(name, nn.Parameter(start))
        self.scale = nn.Parameter(torch.ones(num_classes))

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        z, scale = self.stage1_logits(features), self.scale.unsqueeze(-2)

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            own = {"scale": (slope * z).sum(dim=-2)}
            if self.weight.requires_grad:
                slope = slope * scale
                own |= {"weight": slope.mT @ features, "bias": slope.sum(dim=-2)}
            return own

        return scale * z, gradients

    def folded(self) -> tuple[Tensor, Tensor]:
        return self.scale[:, None] * self.weight, self.scale * self.bias


class Marc(StageOneHead):
    """logit_k = a_k z_k + b_k ‖w_k‖; only a (`scale` [K], start 1) and b (`shift` [K], start 0) are learned.

    Source: margin calibration, MARC (Wang et al. 2022).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        z, norms = self.stage1_logits(features), self.weight.norm(dim=-1)

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            return {"scale": (slope * z).sum(dim=-2), "shift": slope.sum(dim=-2) * norms}

        return self.scale.unsqueeze(-2) * z + (self.shift * norms).unsqueeze(-2), gradients

    def folded(self) -> tuple[Tensor, Tensor]:
        bias = self.scale * self.bias + self.shift * self.weight.norm(dim=1)
        return self.scale[:, None] * self.weight, bias


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

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        score = (features * self.confidence_weight.unsqueeze(-2)).sum(dim=-1) + self.confidence_bias
        # σ [..., N, 1]; torch's sigmoid rounds a number by its place in the tensor, exp does not
        confidence = 1 / (1 + score.clamp(-80, 80).neg().exp()).unsqueeze(-1)
        z, scale, shift = self.stage1_logits(features), self.scale.unsqueeze(-2), self.shift.unsqueeze(-2)

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            in_confidence = (slope * (scale * z + shift)).sum(dim=-1, keepdim=True)
            in_score = in_confidence * confidence * (1 - confidence)
            return {
                "scale": (slope * confidence * z).sum(dim=-2),
                "shift": (slope * confidence).sum(dim=-2),
                "confidence_weight": (in_score * features).sum(dim=-2),
                "confidence_bias": in_score.sum(dim=-2),
            }

        return (1 + confidence * scale) * z + confidence * shift, gradients


class PriorAdjusted(StageOneHead):
    """logit_k = z_k - τ log π_k; nothing is learned. τ log π is kept in `adjustment` [K].

    Source: post-hoc logit adjustment (Menon et al. 2021).
    """

    needs = ("class_counts",)

    def __init__(self, in_features: int, num_classes: int, tau: float = 1.0) -> None:
        super().__init__(in_features, num_classes)
        self.tau = check_not_negative("tau", tau)
        self.register_buffer("adjustment", torch.zeros(num_classes))

    @torch.no_grad()
    def start(self, fc: nn.Linear, class_counts: Sequence[int]) -> None:
        super().start(fc)
        counts = check_class_counts(class_counts)
        if counts.shape != self.bias.shape:
            raise ValueError(f"class_counts must hold {len(self.bias)} counts, got {len(counts)}")
        self.adjustment.copy_(self.tau * (counts / counts.sum()).log())

    def forward(self, features: Tensor) -> Tensor:
        return self.stage1_logits(features) - self.adjustment.unsqueeze(-2)

    def folded(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias - self.adjustment


class TauNorm(Head):
    """logit_k = w_k x / ‖w_k‖^τ, the bias dropped; nothing is learned. `weight` holds the divided rows.

    Source: τ-normalised classifier (Kang et al. 2020).
    """

    stacks = True

    def __init__(self, in_features: int, num_classes: int, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = check_not_negative("tau", tau)
        self.register_buffer("weight", torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        """Divide the rows of `fc`; a row of zeros stays zero."""
        rows = fc.weight.double()
        self.weight.copy_(rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY) ** self.tau)

    def forward(self, features: Tensor) -> Tensor:
        return affine(features, self.weight)

    def folded(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.weight.new_zeros(len(self.weight))
