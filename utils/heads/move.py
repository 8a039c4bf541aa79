"""How far the logits move to first order: the scale on which learning rates of different methods compare.

Shapes: N images, D feature, K classes.
"""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from losses.closed_form import StackedLoss, written
from models.heads import Head
from utils.base.errors import UserError
from utils.heads.plan import HeadPlan

# logits that lie in memory together; more images than that go in strides, each part like the whole
_LOGITS = 2**24
_SHORT = 1e-6  # length of the step over which the change is taken, in float64


@torch.no_grad()
def logit_move(
    plan: HeadPlan, head: nn.Module, loss_fn: nn.Module, features: Tensor, labels: Tensor
) -> float:
    """The move of the logits, to first order, at learning rate 1 for a step against the full-batch gradient.

    It is the root mean square of their change over images and classes, without the mean over classes of each
    image. features [N, D], labels int64 [N]; under class-balanced sampling every class weighs the same. Ours.

    Raises:
        UserError: the head does not move, or by what is no number.
    """
    weight = torch.ones(len(labels), device=labels.device)
    if plan.method.sampler == "balanced":
        counts = labels.bincount()
        weight = (len(labels) / (counts > 0).sum() / counts)[labels]
    strides = -(-len(labels) * len(head.weight) // _LOGITS)
    loss, vjp = StackedLoss([loss_fn], head.weight), written(head, "vjp") or partial(Head.vjp, head)
    step: dict[str, Tensor] = {}
    for k in range(strides):
        logits, gradients_of = vjp(features[k::strides].float())
        slope, w = loss(logits[None], labels[k::strides][None])[2][0], weight[k::strides]
        for name, gradient in gradients_of(slope * (w * len(w) / len(weight)).unsqueeze(-1)).items():
            step[name] = step.get(name, 0) - plan.method.factors.get(name, 1.0) * gradient
    length = sum(float(way.square().sum()) for way in step.values()) ** 0.5
    still = deepcopy(head).to(features.device, torch.float64)
    moved = deepcopy(still)
    for name, tensor in moved.named_parameters():
        if name in step:
            tensor.add_(step[name].to(tensor), alpha=_SHORT / max(length, _SHORT))
    squares = 0.0
    for k in range(strides):
        part = features[k::strides].double()
        change = moved(part) - still(part)
        change -= change.mean(dim=-1, keepdim=True)
        squares += float(change.square().mean(dim=-1) @ weight[k::strides].to(change))
    move = (squares / len(weight)) ** 0.5 * length / _SHORT
    if not 0 < move < float("inf"):
        raise UserError("its logits do not move to first order: give --finetune_lr")
    return move
