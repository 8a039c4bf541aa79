"""Networks and heads made from their names: the tables of names are in models/__init__.py."""

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models import HEADS, RESNETS, THIN_BLOCKS, THIN_NETWORKS, check_network
from models.adapt import own_network, torchvision_network
from models.heads import INPUT, standardising


def build_model(name: str, num_classes: int | None, in_channels: int = 3, stem: str = "small") -> nn.Module:
    """The network `name` with `num_classes` outputs, initialised from torch's global random state.

    `name` is one of NETWORKS, another classification network of torchvision, or a user's `module:function`,
    of which None asks for an encoder without classifier.
    `stem` says how ResNets of torchvision's widths begin: "small" keeps the resolution, "imagenet" is
    torchvision's. Raises ValueError: what is asked for is unknown, cannot be had, or a user's own fails.
    """
    from models.resnets import STEMS, ThinResNet, tv  # here: to import torchvision takes seconds

    check_network(name)
    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}, known: {', '.join(STEMS)}")
    if name in THIN_BLOCKS:
        return ThinResNet(THIN_BLOCKS[name], num_classes, in_channels)
    if name in RESNETS:
        block, blocks, *widths = RESNETS[name]
        return STEMS[stem](getattr(tv, block), blocks, num_classes, in_channels, *widths)
    if in_channels != 3:
        others = ", ".join(THIN_NETWORKS)
        raise ValueError(f"network {name} takes images of 3 channels, not {in_channels}: take {others}")
    return own_network(name, num_classes) if ":" in name else torchvision_network(name, num_classes)


def build_head(
    kind: str | type[nn.Module],
    fc: nn.Linear,
    class_counts: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
    labels: Tensor | None = None,
    **options: float,
) -> nn.Module:
    """The head `kind`, one of HEADS or a class, at its start: sizes, type and device of the classifier `fc`.

    `fc` is copied. What a kind does not name in its `needs` is ignored: `class_counts` [K], `generator`,
    `features` [N, D] and `labels` [N] of the training images. Its options are the further parameters of its
    constructor. Raises ValueError: the kind or an option is unknown or out of range, or a need is missing.
    """
    head = _empty_head(kind, fc.in_features, fc.out_features, options).to(fc.weight)
    given = {"class_counts": class_counts, "generator": generator, "features": features, "labels": labels}
    needs = getattr(head, "needs", ())
    missing = [name for name in needs if given[name] is None]
    if missing:
        raise ValueError(f"head {kind!r} needs {' and '.join(missing)}")
    head.start(fc, **{name: given[name] for name in needs})
    return head


def head_from_state(kind: str, state: Mapping[str, Tensor], **options: float) -> nn.Module:
    """The head whose `state_dict()` this is, without its stage-1 classifier; `state` is copied."""
    weight = state.get("weight")
    if weight is None or weight.ndim != 2:
        raise ValueError(f"not the weights of a head {kind!r}: no matrix `weight` [K, D]")
    head = _empty_head(kind, weight.shape[1], weight.shape[0], options).to(weight)
    if set(INPUT) <= state.keys():
        standardising(head, *(torch.zeros_like(state[name]) for name in INPUT))
    wanted = {name: value.shape for name, value in head.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        names = ", ".join(wrong)
        raise ValueError(f"not the weights of a head {kind!r}: {names} missing, unknown or misshapen")
    head.load_state_dict(state, strict=True)
    return head


def _empty_head(
    kind: str | type[nn.Module], in_features: int, num_classes: int, options: Mapping[str, float]
) -> nn.Module:
    if not callable(kind) and kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}, known: {', '.join(HEADS)}")
    found = kind if callable(kind) else HEADS[kind]
    known = list(inspect.signature(found).parameters)[2:]
    for name in options.keys() - known:
        raise ValueError(f"unknown option {name!r} of head {kind!r}, known: {', '.join(known) or 'none'}")
    return found(in_features, num_classes, **options)
