"""Classifier heads, features [N, D] -> logits [N, K], and the contract that each of them keeps.

linear.py: heads whose rows are learned, and the closed-form step of LOS. corrections.py: heads that correct
the fixed stage-1 classifier. means.py: those fitted at once.

A new head touches two files: one of these with a class that derives from Head, and models/__init__.py with a
line in HEADS. What it must have:

- `__init__(in_features, num_classes, **options)`: it is made empty; its options are numbers with defaults.
- `weight` [K, D], a parameter or buffer, from which its two sizes can be read.
- `start(fc, **needed)`: fills it from the stage-1 classifier `fc`, an nn.Linear that is never changed and
  that counts as one with a bias of 0 where it has none. `needed` is what `needs` names, in its order.
- `forward(features)`: [N, D] -> logits [N, K].

What it may have: `stacks = True`, where `forward` also takes the tensors of H heads stacked, features
[H, N, D] -> logits [H, N, K]. Heads that differ in settings and seeds are then trained together. And `vjp`
with its gradients written out, which costs about a third of torch's own differentiation.

What the method learns is a Parameter that asks for a gradient; what stays fixed asks for none and is in the
state dict too, which so holds all of the head: `load_state_dict` fills it as well as `start`. Nothing draws
from torch's global random state.

And `folded()`, where its logits are affine in the feature: weight [K, D] and bias [K] of the
nn.Linear that gives the same logits. The network of a stage-2 checkpoint then has that as its last layer.

Shapes and notation in all files: N batch, D feature, K classes; x feature, w_k and b_k row and bias of the
stage-1 classifier, z_k = w_k x + b_k its logit, n_k training images of class k, π_k = n_k / Σ n.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-12  # the least length by which is divided
INPUT = ("input_centre", "input_factor")  # in the state of a head that standardises features itself
Gradients = Callable[[Tensor], dict[str, Tensor]]  # of a slope in the logits, by the names of what is learned


class Head(nn.Module):
    """Base of the heads."""

    # of `class_counts` [K], `generator`, `features` [N, D] and `labels` [N] of the training images
    needs: tuple[str, ...] = ()
    stacks = False

    def forward(self, features: Tensor) -> Tensor:
        """features [..., N, D] -> logits [..., N, K]; a head writes this down, or `vjp`, or both."""
        return self.vjp(features)[0]

    def vjp(self, features: Tensor) -> tuple[Tensor, Gradients]:
        """The logits, and what turns a slope in them into the gradients of all that is learned, by name."""
        with torch.enable_grad():
            logits = self(features)
        learned = {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}

        def gradients(slope: Tensor) -> dict[str, Tensor]:
            return dict(zip(learned, torch.autograd.grad(logits, list(learned.values()), slope), strict=True))

        return logits.detach(), gradients


def standardising(head: nn.Module, centre: Tensor, factor: Tensor) -> nn.Module:
    """Let `head` take features x as they come and see (x - centre) * factor; both [D] join its state."""
    for name, numbers in zip(INPUT, (centre, factor), strict=True):
        head.register_buffer(name, numbers)
    head.register_forward_pre_hook(lambda own, given: ((given[0] - own.input_centre) * own.input_factor,))
    return head


def affine(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """features [N, D], weight [K, D], bias [K] -> [N, K]; of H heads each has one dimension [H] more.

    One product for all heads, in which the bits of each do not depend on how many they are.
    """
    if weight.ndim == 2:
        return F.linear(features, weight, bias)
    return features.bmm(weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), features, weight.mT)


def normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [..., D] -> rows of unit length [..., D] and the lengths [..., 1]; a row of zeros stays zero."""
    lengths = rows.norm(dim=-1, keepdim=True).clamp_min(TINY)
    return rows / lengths, lengths


def normalised_slope(slope: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
    """The slope in rows of that in their unit rows: its part along them is taken out."""
    return (slope - (slope * unit).sum(dim=-1, keepdim=True) * unit) / lengths


@torch.no_grad()
def copy_stage1(head: nn.Module, fc: nn.Linear) -> None:
    """Copy weight and bias of the stage-1 classifier into `head`; no bias counts as zeros."""
    head.weight.copy_(fc.weight)
    head.bias.copy_(fc.weight.new_zeros(fc.out_features) if fc.bias is None else fc.bias)
