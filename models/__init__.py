"""Networks by name. A network is one function and one line in `NETWORKS`.

Contract: `model.forward_features(x)` gives pooled features [N, D], `model.fc` is the classifier, and
`model(x) == model.fc(model.forward_features(x))`.
"""

from functools import partial

from torch import nn

from models.resnet_cifar import THIN_BLOCKS, WIDE_LAYERS, ThinResNet, WideResNet

__all__ = ["NETWORKS", "THIN_NETWORKS", "build_model"]

THIN_NETWORKS = tuple(THIN_BLOCKS)
NETWORKS = {name: partial(WideResNet, block, layers) for name, (block, layers) in WIDE_LAYERS.items()} | {
    name: partial(ThinResNet, blocks) for name, blocks in THIN_BLOCKS.items()
}


def build_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The network `name` with `num_classes` outputs, initialised from torch's global random state.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}, known: {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes=num_classes, in_channels=in_channels)
