"""Heads side by side: many classifiers over the same frozen features, trained as one stack of tensors.

A step of H heads is one product [H, B, D] x [H, D, K], one loss over [H, B, K] and one update, with a
learning rate for each head. What a head becomes depends on its plan and the features, not on its neighbours.

Shapes: N images, H heads, B batch, D feature, K classes, V views.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from losses.closed_form import StackedLoss, written
from models.heads import Head
from utils.base.seeding import balanced_order, epoch_order
from utils.features.logits import SCORE_LOGITS, SCORE_ROWS
from utils.heads.head import DIVERGED, HeadRun, attempted, learned
from utils.metrics.accuracy import epoch_figures, predictions


def run_epoch(
    heads: list[HeadRun], epoch: int, scored: Sequence[str], after_step: Callable[[], None] = lambda: None
) -> None:
    """Train a stack for the next epoch, or the rest of it, and score it; a head that diverges has failed."""
    with attempted(heads):
        stack = Stack(heads)
        for head in heads:
            head.take_backbone()
        if heads[0].plan.method.trained:
            stack.train(epoch, after_step)
        rows = [head.end_steps(epoch) for head in heads]
        for head, row, scores in zip(heads, rows, stack.scores(scored), strict=True):
            if scores is None:
                head.failure = head.failure or DIVERGED.format("logits are")
            if not head.failed:
                head.record(row, scores)


class Stack:
    """H heads of one kind as one module with tensors [H, ...], into which those of each head become views.

    What a step does to the stack so is done to the heads, which can be saved at any time. A head that does
    not say `stacks = True` stands alone and is called with features [B, D].
    """

    def __init__(self, heads: list[HeadRun]) -> None:
        first = heads[0]
        self.heads, self.frozen, self.config = heads, first.frozen, first.config
        self.alone = not getattr(first.head, "stacks", False)
        self.module = first.head if self.alone else deepcopy(first.head)
        if not self.alone:
            own = [head.head.state_dict(keep_vars=True) for head in heads]
            for name, tensor in self.module.state_dict(keep_vars=True).items():
                tensor.data = _side_by_side([tensors[name] for tensors in own])

    def logits(self, features: Tensor) -> Tensor:
        """features [H, B, D] -> [H, B, K]."""
        return self.module(features[0])[None] if self.alone else self.module(features)

    @torch.no_grad()
    def train(self, epoch: int, after_step: Callable[[], None]) -> None:
        """The steps of an epoch that the heads still lack: SGD with momentum, as torch's, of all at once."""
        heads, config = self.heads, self.config
        vjp = written(self.module, "vjp") or partial(Head.vjp, self.module)
        losses, kinds = [head.loss_fn for head in heads], [head.loss_kind for head in heads]
        loss_fn = StackedLoss(losses, self.frozen.fc.weight, kinds)
        weights = learned(self.module)
        momenta = {name: [head.momentum[name] for head in heads] for name in weights}
        momenta = {name: own[0] if self.alone else _side_by_side(own) for name, own in momenta.items()}
        lr = [head.rate(epoch) for head in heads]
        factors = [head.plan.method.factors for head in heads]
        lr = {
            name: self._of_heads([r * own.get(name, 1.0) for r, own in zip(lr, factors, strict=True)], weight)
            for name, weight in weights.items()
        }
        wd = [head.plan.wd for head in heads]
        wd = {name: self._of_heads(wd, weight) for name, weight in weights.items()} if any(wd) else {}
        loss_sum = _side_by_side([head.loss_sum for head in heads])
        hit_sum = _side_by_side([head.hit_sum for head in heads])
        for features, labels in self.batches(epoch, skip=heads[0].step):
            logits, gradients_of = vjp(features[0] if self.alone else features)
            loss, hits, slope = loss_fn(logits[None] if self.alone else logits, labels)
            gradients = gradients_of(slope[0] if self.alone else slope)
            for name, weight in weights.items():
                gradient, momentum = gradients[name], momenta[name]
                if wd:
                    gradient = gradient + wd[name] * weight
                torch.add(gradient, momentum, alpha=config.momentum, out=momentum)
                way = gradient.add(momentum, alpha=config.momentum) if config.nesterov else momentum
                weight.addcmul_(way, lr[name], value=-1)
            loss_sum += loss * labels.shape[1]
            hit_sum += hits
            for head in heads:
                head.step, head.images = head.step + 1, head.images + labels.shape[1]
            after_step()

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [H, B, D] and labels [H, B] of the steps of an epoch; heads of one seed see the same."""
        heads, train, size = self.heads, self.frozen.train, self.config.batch_size
        seeds = list(dict.fromkeys(head.plan.seed for head in heads))
        if heads[0].plan.method.sampler == "balanced":
            classes = (train.labels, self.frozen.num_classes)
            orders = torch.stack([balanced_order(seed, epoch, *classes) for seed in seeds])
        else:
            orders = torch.stack([epoch_order(seed, epoch, len(train.labels)) for seed in seeds])
        if self.frozen.drifting:  # heads of one seed, whose batches move the backbone
            for x, y in train.batches(orders[0], size, epoch, skip):
                yield x.expand(len(heads), -1, -1), y.expand(len(heads), -1)
            return
        view = train.of_epoch(epoch)
        orders = orders.to(view.device)
        own = torch.tensor([seeds.index(head.plan.seed) for head in heads], device=train.labels.device)
        for start in range(skip * size, orders.shape[1], size):
            index = orders[:, start : start + size]
            # index_select copies whole rows, several times as fast as an index of two dimensions
            features = view.index_select(0, index.flatten()).unflatten(0, index.shape)
            features, labels = features.to(train.labels.device).float(), train.labels[index]
            if len(seeds) == 1:
                yield features.expand(len(heads), -1, -1), labels.expand(len(heads), -1)
            else:
                yield features.index_select(0, own), labels.index_select(0, own)

    def _of_heads(self, values: list[float], like: Tensor) -> Tensor:
        """A number for each head, to be multiplied with tensors like [H, ...]."""
        numbers = torch.tensor(values).to(like)
        return numbers[0] if self.alone else numbers.view(-1, *[1] * (like.ndim - 1))

    @torch.no_grad()
    def scores(self, scored: Sequence[str]) -> list[dict | None]:
        """The columns of metrics.csv for the scored parts, of each head; None: its logits are not finite."""
        frozen = self.frozen
        predicted = {name: self._predictions(frozen.part(name)) for name in scored}
        rows = []
        for place in range(len(self.heads)):
            own = {name: classes[place] for name, classes in predicted.items()}
            lost = any((classes < 0).any() for classes in own.values())
            rows.append(
                None if lost else epoch_figures(own, frozen.labels, frozen.class_counts, frozen.shots)
            )
        return rows

    def _predictions(self, features: Tensor) -> Tensor:
        """features [V, N, D] -> classes int64 [H, N], of the mean logits over the views."""
        count, (views, images, _) = len(self.heads), features.shape
        rows = max(1, min(SCORE_ROWS, SCORE_LOGITS // (count * self.frozen.num_classes)))
        parts = []
        for start in range(0, images, rows):
            part = features[:, start : start + rows].flatten(0, 1).float()
            logits = self.logits(part.expand(count, -1, -1)).unflatten(1, (views, -1)).mean(dim=1)
            parts.append(predictions(logits.flatten(0, 1)).unflatten(0, (count, -1)))
        return torch.cat(parts, dim=1)


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """Tensors of one shape [...] stacked to [H, ...]; each becomes a view of its part."""
    whole = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, whole, strict=True):
        tensor.data = part
    return whole
