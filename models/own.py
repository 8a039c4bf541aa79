"""A user's own network, `module:function`: imported, called with the number of classes, adapted where needed.

Shapes: N batch, C channels, H, W, D feature, K classes.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapt import Adapted, linear_layers
from utils.base.lazy import current_folder_first, named_function, one_line

_SIZES = (32, 64, 224)


def own_network(name: str, num_classes: int) -> nn.Module:
    """What the function of `name` = "module:function" returns for K = `num_classes`, adapted where needed.

    It is called with num_classes=K where it has such a parameter, else with K alone; modules are looked for
    in the current folder first. A network that keeps the contract stays as it is, any other is adapted: two
    random images (32, else 64, else 224 pixels wide) tell, and a network that takes none is believed.
    """
    with current_folder_first():
        function = named_function(name, "network")
        network = _call(name, function, num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name} gives a {type(network).__name__}, not a torch.nn.Module")
    if any(nn.parameter.is_lazy(value) for value in (*network.parameters(), *network.buffers())):
        raise ValueError(f"network {name} has lazy layers, whose size is not known: give the sizes")
    return _fit(name, network, num_classes)


def _call(name: str, function: Callable, num_classes: int) -> object:
    for args, options in (((), {"num_classes": num_classes}), ((num_classes,), {})):
        with suppress(ValueError):  # some built-in functions have no signature
            try:
                inspect.signature(function).bind(*args, **options)
            except TypeError:
                continue
        try:
            return function(*args, **options)
        except Exception as error:  # a user's function can raise anything
            raise ValueError(f"network {name} fails for {num_classes} classes: {one_line(error)}") from error
    takes = f"it takes {inspect.signature(function)}"
    raise ValueError(f"network {name} cannot be called with the number of classes alone: {takes}")


@dataclass
class _Trial:
    """Images [2, 3, S, S], what came of them, and of the linear layers with K outputs, by place."""

    images: Tensor
    out: object
    linear: dict[str, Tensor]


def _fit(name: str, network: nn.Module, num_classes: int) -> nn.Module:
    trial = _try(network, num_classes)
    if trial is not None:
        found = list(trial.out.shape) if isinstance(trial.out, Tensor) else f"a {type(trial.out).__name__}"
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
        places = [place for place in trial.linear if torch.equal(trial.linear[place], trial.out)]
    adapted = Adapted(network, places[-1]) if places else None
    if adapted is None or not _keeps_contract(adapted, trial):
        last = f"a torch.nn.Linear with {num_classes} outputs, used once and as it is"
        raise ValueError(f"network {name} has to end in {last} (no softmax, no scale)")
    return adapted


def _try(network: nn.Module, num_classes: int) -> _Trial | None:
    """What `network` gives for two random images of the first size that it takes; None: it takes none."""
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
                return _Trial(images, network(images), dict(linear))
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _keeps_contract(network: nn.Module, trial: _Trial | None) -> bool:
    """Does its classifier make of its features what came out? A network that was not tried is believed."""
    if trial is None:
        return True
    with untouched(network), suppress(Exception):  # a user's network can raise anything
        features = network.forward_features(trial.images)
        logits = F.linear(features, network.fc.weight, network.fc.bias)
        return features.ndim == 2 and torch.allclose(logits, trial.out, rtol=1e-4, atol=1e-5)
    return False


@contextmanager
def untouched(network: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation mode, or that of training, without gradients.

    Modes, buffers and torch's random state are put back at the end.
    """
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
