"""The contract of a network, and any classifying network made to fit it: torchvision's by their names.

A user's own: models/own.py. Shapes: N batch, C channels, H, W, D feature, K classes.
"""

from torch import Tensor, nn
from torchvision import models as tv

_AUXILIARY = ("googlenet", "inception_v3")


class Network(nn.Module):
    """Base of the networks here: a subclass has `forward_features` and `fc`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> logits [N, K]."""
        return self.fc(self.forward_features(x))


class Adapted(Network):
    """A network whose last linear layer is taken out: `body` gives what went into it, `fc` is that layer.

    The state dict has the network's own names behind `body.`, but for `fc`; models/pretrained.py reads files
    with the names as they were.
    """

    def __init__(self, network: nn.Module, last: str) -> None:
        super().__init__()
        self.last = last
        fc = network.get_submodule(last)
        network.set_submodule(last, nn.Identity())
        self.body, self.fc = network, fc

    def forward_features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> what the classifier is given, [N, D]."""
        return self.body(x)


def torchvision_network(name: str, num_classes: int) -> Adapted:
    """torchvision's network `name`, without weights, with K = `num_classes` outputs."""
    if name in _AUXILIARY:
        raise ValueError(f"network {name} has auxiliary classifiers, which nothing here trains: take another")
    network = tv.get_model(name, weights=None, num_classes=num_classes)
    last = linear_layers(network, num_classes)
    if not last:
        raise ValueError(f"network {name} has a convolution as classifier: take one with a linear layer")
    return Adapted(network, last[-1])


def linear_layers(network: nn.Module, num_classes: int) -> list[str]:
    """Where in `network` linear layers with K = `num_classes` outputs are, in order."""
    return [
        name
        for name, layer in network.named_modules()
        if name and isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
