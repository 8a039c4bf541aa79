"""The logits that a head gives of frozen features.

Shapes: N images, D feature, K classes, V views.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# rows and logits that are scored together
SCORE_ROWS, SCORE_LOGITS = 4096, 2**22


@torch.no_grad()
def head_logits(head: nn.Module, features: Tensor) -> Tensor:
    """features [V, N, D] -> logits [N, K], the mean over the views."""
    return head(features.flatten(0, 1).float()).unflatten(0, features.shape[:2]).mean(dim=0)


def logit_batches(head: nn.Module, features: Tensor) -> Iterator[Tensor]:
    """Logits [n, K] of features [V, N, D], a batch of images after another: no [N, K] is made."""
    rows = max(1, min(SCORE_ROWS, SCORE_LOGITS // len(head.weight)))
    for start in range(0, features.shape[1], rows):
        yield head_logits(head, features[:, start : start + rows])


def watched_features(head: nn.Module, views: int) -> list[Tensor]:
    """A list that fills with the features that `head` is given: [n, D], the mean over views; first none."""
    seen = [torch.zeros(0, head.weight.shape[1])]

    def keep(head: nn.Module, given: tuple[Tensor]) -> None:
        seen.append(given[0].unflatten(0, (views, -1)).mean(dim=0).cpu())

    head.register_forward_pre_hook(keep, prepend=True)
    return seen
