"""Label over-smoothing (LOS): cross-entropy against labels smoothed to just above 1/K.

Source: "Rethinking Classifier Re-Training in Long-Tailed Recognition: Label Over-Smooth Can Balance", ICLR
2025. This file imports nothing but torch, so it can be copied alone into another project.

What it is, exactly (our derivation, proved in tests/test_los_loss.py): over any set of images

    L_LOS = CE + δ (K - 1)/K Σ_k π_k LoMa_k

with π_k the share of class k among the images and LoMa_k its logits magnitude, the mean over its images of
z_k minus the mean of the other logits (the reading `per_sample`). LOS is cross-entropy with a penalty on
the magnitude of each class in proportion to its frequency: the class counts come in through the sampling.

Shapes: N batch, K classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class LabelOverSmooth(nn.Module):
    """Cross-entropy against y = (1 - δ) onehot + δ / K.

    δ is `label_smooth`, in torch's own convention: the true class gets 1 - δ + δ/K, each other class δ/K. No
    class counts are used. δ = 0 is plain cross-entropy.
    Raises ValueError: δ is not in [0, 1).
    """

    def __init__(self, label_smooth: float) -> None:
        super().__init__()
        self.label_smooth = check_label_smooth(label_smooth)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [N, K], targets int64 [N] -> mean loss over the batch, a scalar."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smooth)

    def extra_repr(self) -> str:
        return f"label_smooth={self.label_smooth:g}"


def check_label_smooth(label_smooth: float) -> float:
    """Return δ where it is in [0, 1); else raise ValueError."""
    if not 0 <= label_smooth < 1:
        why = "at 1 every label is 1/K and no class is taught"
        raise ValueError(f"label_smooth must be in [0, 1), got {label_smooth:g}: {why}")
    return float(label_smooth)
