"""The contract of a network, and any classifying network made to fit it: torchvision's, or a user's own.

A user's own is `module:function`, imported and called with the number of classes.
Shapes: N batch, C channels, H, W, D feature, K classes.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.base.lazy import current_folder_first, named_function, one_line

_AUXILIARY = ("googlenet", "inception_v3")
_SIZES = (32, 64, 224)


class Network(nn.Module):
    """Base of the networks here: a subclass has `forward_features` and `fc`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> logits [N, K]."""
        return self.fc(self.forward_features(x))


class Adapted(Network):
    """A network whose last linear layer is taken out: `body` gives what went into it, `fc` is that layer.

    Its state dict has the network's own names behind `body.`; models/pretrained.py reads them without.
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


class Encoder(Network):
    """A user's own encoder, without a classifier so far."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, D]: what the body gives by a method of that name, else when it is called."""
        return getattr(self.body, "forward_features", self.body)(x)


def torchvision_network(name: str, num_classes: int) -> Adapted:
    """torchvision's network `name`, without weights, with K = `num_classes` outputs."""
    if name in _AUXILIARY:
        raise ValueError(f"network {name} has auxiliary classifiers, which nothing here trains: take another")
    from torchvision.models import get_model

    network = get_model(name, weights=None, num_classes=num_classes)
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


def own_network(name: str, num_classes: int | None) -> nn.Module:
    """What the function of `name` = "module:function" returns for K = `num_classes`, adapted where needed.

    None: an encoder, which the function returns when it is called with nothing.
    It is called with num_classes=K where it has such a parameter, else with K alone. A network that keeps the
    contract stays as it is, any other is adapted: two random images tell, of the first width that it takes,
    and a network that takes none is believed.
    """
    with current_folder_first():
        function = named_function(name, "network")
        call, asked = function, ""
        if num_classes is not None:
            call, asked = partial(function, num_classes), f" for {num_classes} classes"
            with suppress(TypeError, ValueError):  # its parameter has another name, or is not known
                inspect.signature(function).bind(num_classes=num_classes)
                call = partial(function, num_classes=num_classes)
        try:
            network = call()
        except Exception as error:  # a user's function can raise anything
            raise ValueError(f"network {name} fails{asked}: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name} gives a {type(network).__name__}, not a torch.nn.Module")
    if any(nn.parameter.is_lazy(value) for value in (*network.parameters(), *network.buffers())):
        raise ValueError(f"network {name} has lazy layers, whose size is not known: give the sizes")
    return Encoder(network) if num_classes is None else _fit(name, network, num_classes)


def _fit(name: str, network: nn.Module, num_classes: int) -> nn.Module:
    trial = _try(network, num_classes)
    if trial is not None:
        _, out, linear = trial
        found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        if found != [2, num_classes]:
            wanted = f"not logits [2, {num_classes}]: has it the number of classes that it is called with?"
            raise ValueError(f"network {name} gives {found} for 2 images, {wanted}")
    fc = getattr(network, "fc", None)
    fitting = isinstance(fc, nn.Linear) and fc.out_features == num_classes
    if fitting and callable(getattr(network, "forward_features", None)) and _keeps_contract(network, trial):
        return network
    places = linear_layers(network, num_classes)
    if not places:
        raise ValueError(f"network {name} has no torch.nn.Linear with {num_classes} outputs to re-train")
    if trial is not None:
        places = [place for place, given in linear.items() if torch.equal(given, out)]
    adapted = Adapted(network, places[-1]) if places else None
    if adapted is None or not _keeps_contract(adapted, trial):
        last = f"a torch.nn.Linear with {num_classes} outputs, used once and as it is"
        raise ValueError(f"network {name} has to end in {last} (no softmax, no scale)")
    return adapted


def _try(network: nn.Module, num_classes: int) -> tuple[Tensor, object, dict[str, Tensor]] | None:
    """Two random images of the first size that `network` takes, what it gives of them, and what its linear
    layers with K outputs give, by place; None: it takes no size."""
    linear: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(place).register_forward_hook(
            lambda layer, given, out, place=place: linear.update({place: out.clone()})
        )
        for place in linear_layers(network, num_classes)
    ]
    try:
        for size in _SIZES:
            images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            images = images.to(next(network.parameters(), images).device)
            linear.clear()
            with untouched(network), suppress(Exception):  # too small an image can raise anything
                return images, network(images), dict(linear)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _keeps_contract(network: nn.Module, trial: tuple | None) -> bool:
    """Does its classifier make of its features what came out? A network that was not tried is believed."""
    if trial is None:
        return True
    images, out, _ = trial
    with untouched(network), suppress(Exception):  # a user's network can raise anything
        features = network.forward_features(images)
        logits = F.linear(features, network.fc.weight, network.fc.bias)
        return features.ndim == 2 and torch.allclose(logits, out, rtol=1e-4, atol=1e-5)
    return False


@contextmanager
def untouched(network: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation mode (or that of training) without gradients; modes, buffers, random state are put back."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    cuda = {value.device for value in network.parameters() if value.is_cuda}
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will show them
        network.train(training)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)
