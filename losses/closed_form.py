"""The gradient that most losses here share, in closed form: what a stack of heads is trained with.

Cross-entropy, LOS, Balanced Softmax, LDAM, label-aware smoothing and class weights are one loss,

    L = Σ_i w_{y_i} [-(1 - ε_{y_i}) log p_{i,y_i} - ε_{y_i}/K Σ_k log p_ik] / Σ_i w_{y_i},
    p_i = softmax(z_i + s - m_{y_i} onehot(y_i)),

with a smoothing ε, a weight w, a shift s and a margin m for each class. Its slope in z_i is
w_{y_i} / Σ w times p_i minus the smoothed label. A loss that has `with_slope` gives its gradient itself. Any
other goes through torch's own differentiation.

Shapes: H heads, B batch, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from losses.balanced_softmax import BalancedSoftmax
from losses.label_aware import LabelAwareSmoothing, LosWeighted
from losses.label_over_smooth import LabelOverSmooth
from losses.ldam import LDAM
from losses.reweighted import CrossEntropy, WeightedCrossEntropy

# kind of loss -> what it has of each class: smoothing, weight, shift, margin; a number counts for them all
_VECTORS = {
    CrossEntropy: lambda loss: (None, None, None, None),
    LabelOverSmooth: lambda loss: (loss.label_smooth, None, None, None),
    LabelAwareSmoothing: lambda loss: (loss.eps, None, None, None),
    LosWeighted: lambda loss: (loss.eps, None, None, None),
    WeightedCrossEntropy: lambda loss: (None, loss.weights, None, None),
    BalancedSoftmax: lambda loss: (None, None, loss.shift, None),
    LDAM: lambda loss: (None, None, None, loss.margins),
}


def stacks(loss: nn.Module) -> bool:
    """Can heads with this loss be trained side by side? A loss of other files says so by `stacks = True`."""
    return type(loss) in _VECTORS or getattr(loss, "stacks", False)


def has_closed_form(loss: nn.Module) -> bool:
    """Is it one of those above, so that heads whose losses differ in their options are computed together?"""
    return type(loss) in _VECTORS


def written(module: nn.Module, name: str) -> Callable | None:
    """The gradient that a loss or head writes down in its method `name`, as far as it is of its `forward`.

    None where there is none, or where a class derived from the writer's has another forward.
    """
    for kind in type(module).__mro__:
        if name in vars(kind):
            return getattr(module, name)
        if "forward" in vars(kind):
            return None
    return None


class StackedLoss:
    """The losses of H heads as one: loss and hits of each head, and the slope in its logits.

    `kinds` names the loss of each head, None for those with the closed form: neighbours of one kind have the
    same loss with the same options, and are computed together. Without it all are of one kind.

    Called with logits [H, B, K] and targets int64 [H, B], it gives mean loss [H], hits [H] and slope
    [H, B, K], the gradient of each head's own loss. A hit is an image whose true class no other beats.
    """

    def __init__(self, losses: Sequence[nn.Module], like: Tensor, kinds: Sequence[object] = ()) -> None:
        self.parts: list[tuple[slice, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]] = []
        for _, heads in groupby(range(len(losses)), key=lambda head: kinds[head] if kinds else None):
            first, *others = heads
            place = slice(first, first + 1 + len(others))
            one = losses[first]
            if has_closed_form(one):
                part = _ClosedForm(losses[place], like)
            else:
                own = written(one, "with_slope") if stacks(one) else None
                part = own or partial(_differentiated, one)
            self.parts.append((place, part))

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        true = targets.unsqueeze(-1)
        hits = (logits.gather(-1, true).squeeze(-1) >= logits.amax(dim=-1)).sum(dim=-1)
        results = [part(logits[heads], targets[heads]) for heads, part in self.parts]
        loss, slope = results[0] if len(results) == 1 else map(torch.cat, zip(*results, strict=True))
        return loss, hits, slope


class _ClosedForm:
    """Losses that have the form above, each with its class vectors."""

    def __init__(self, losses: Sequence[nn.Module], like: Tensor) -> None:
        vectors = zip(*(_VECTORS[type(loss)](loss) for loss in losses), strict=True)
        neutral = (0.0, 1.0, 0.0, 0.0)
        self.smoothing, self.weight, self.shift, self.margin = (
            _side_by_side(values, none, like) for values, none in zip(vectors, neutral, strict=True)
        )

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        true, (size, num_classes) = targets.unsqueeze(-1), logits.shape[1:]
        if self.shift is not None:
            logits = logits + self.shift.unsqueeze(-2)
        if self.margin is not None:
            logits = logits.scatter_add(-1, true, -_of(self.margin, true))
        log_p = logits.log_softmax(dim=-1)
        losses = log_p.gather(-1, true)
        smoothing = 0.0
        if self.smoothing is not None:
            smoothing = _of(self.smoothing, true)  # [H, B, 1]
            losses = torch.lerp(losses, log_p.mean(dim=-1, keepdim=True), smoothing)
        weight = torch.full_like(losses, 1 / size)
        if self.weight is not None:
            weight = _of(self.weight, true)
            weight = weight / weight.sum(dim=1, keepdim=True)
        slope = log_p.exp_()
        if self.smoothing is not None:
            slope -= smoothing / num_classes
        slope.scatter_add_(-1, true, smoothing - torch.ones_like(losses))
        return -(weight * losses).sum(dim=(1, 2)), slope.mul_(weight)


def _differentiated(loss: nn.Module, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, targets) if stacks(loss) else loss(leaf[0], targets[0])
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().reshape(len(logits)), slope


def _side_by_side(values: Sequence[float | Tensor | None], neutral: float, like: Tensor) -> Tensor | None:
    """What each head has of each class: [H, K], or [H, 1] where all have one number; None: none has any."""
    if all(value is None for value in values):
        return None
    of_one = {"dtype": like.dtype, "device": like.device}
    filled = [neutral if value is None else value for value in values]
    rows = [torch.as_tensor(value, **of_one).reshape(-1) for value in filled]
    width = max(map(len, rows))
    return torch.stack([row.expand(width) for row in rows])


def _of(vectors: Tensor, true: Tensor) -> Tensor:
    """vectors [H, K] or [H, 1] at the true classes [H, B, 1] -> [H, B, 1]."""
    if vectors.shape[1] == 1:
        return vectors.unsqueeze(1).expand(true.shape)
    return vectors.gather(1, true.squeeze(-1)).unsqueeze(-1)
