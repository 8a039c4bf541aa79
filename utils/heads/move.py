"""How far the logits move to first order: the scale on which learning rates of different methods compare.

Shapes: N images, B of them together, D feature, K classes.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from losses.closed_form import StackedLoss, written
from models.heads import Head
from utils.base.errors import UserError
from utils.heads.plan import HeadPlan

# of the logits that lie in memory together; more images than that go in strides, so that each part is a fair one
_LOGITS = 2**24


@torch.no_grad()
def logit_move(plan: HeadPlan, head: nn.Module, loss_fn: nn.Module, features: Tensor, labels: Tensor) -> float:
    """The move of the logits for a step of length 1 against the gradient of the loss over all images.

    It is the root mean square over images and classes of the first-order change, the mean over classes of each
    image taken out. features [N, D], labels int64 [N]. Under class-balanced sampling every class weighs the
    same. Ours.

    Raises:
        UserError: the head does not move, or by what is no number.
    """
    weight = torch.ones(len(labels), device=labels.device)
    if plan.method.sampler == "balanced":
        counts = labels.bincount()
        weight = (len(labels) / (counts > 0).sum() / counts)[labels]
    weights = dict(head.named_parameters())
    learned = {name: tensor.detach() for name, tensor in weights.items() if tensor.requires_grad}
    strides = -(-len(labels) * len(head.weight) // _LOGITS)
    step = {name: torch.zeros_like(tensor) for name, tensor in learned.items()}
    loss, vjp = StackedLoss([loss_fn], head.weight), written(head, "vjp") or partial(Head.vjp, head)
    for k in range(strides):
        logits, gradients_of = vjp(features[k::strides].float())
        slope, w = loss(logits[None], labels[k::strides][None])[2][0], weight[k::strides]
        for name, gradient in gradients_of(slope * (w * len(w) / len(weight)).unsqueeze(-1)).items():
            step[name] -= plan.method.factors.get(name, 1.0) * gradient
    squares = 0.0
    for k in range(strides):
        part = features[k::strides].float()
        change = jvp(lambda tensors, x=part: functional_call(head, tensors, x), (learned,), (step,))[1]
        change = change - change.mean(dim=-1, keepdim=True)
        squares += float(change.square().mean(dim=-1) @ weight[k::strides])
    move = (squares / len(weight)) ** 0.5
    if not 0 < move < float("inf"):
        raise UserError("its logits do not move to first order: give --finetune_lr")
    return move
