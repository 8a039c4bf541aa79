"""Networks and classifier heads by name: each is one function or class and one line in its table.

Contract of a network: `model.forward_features(x)` gives pooled features [N, D], `model.fc` is the classifier,
and `model(x) == model.fc(model.forward_features(x))`. Of a head: `head(features [N, D])` gives logits [N, K].
"""

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.adapt import torchvision_names, torchvision_network
from models.heads.corrections import DisAlign, Marc, PriorAdjusted, ScaledLinear, TauNorm
from models.heads.linear import CosineLinear, EtfHead, Linear, LosStep
from models.heads.means import NearestMean
from models.own import own_network
from models.pretrained import load_pretrained
from models.resnet_cifar import THIN_BLOCKS, ThinResNet, WideResNet
from models.resnet_imagenet import RESNETS, ImageNetResNet

__all__ = [
    "HEADS",
    "NETWORKS",
    "STEMS",
    "THIN_NETWORKS",
    "build_head",
    "build_model",
    "check_network",
    "head_from_state",
    "load_pretrained",
    "network_label",
]

THIN_NETWORKS = tuple(THIN_BLOCKS)
NETWORKS = (*RESNETS, *THIN_NETWORKS)
STEMS = {"small": WideResNet, "imagenet": ImageNetResNet}
HEADS = {
    "linear": Linear,
    "lws": ScaledLinear,
    "tau_norm": TauNorm,
    "ncm": NearestMean,
    "ldam": CosineLinear,
    "etf": EtfHead,
    "marc": Marc,
    "disalign": DisAlign,
    "la": PriorAdjusted,
    "los_step": LosStep,
}


def build_model(name: str, num_classes: int, in_channels: int = 3, stem: str = "small") -> nn.Module:
    """The network `name` with `num_classes` outputs, initialised from torch's global random state.

    `name` is one of NETWORKS, another classification network of torchvision, or a user's own,
    `module:function`. `stem` says how the ResNets of torchvision's widths begin: "small" with a 3x3
    convolution that keeps the resolution, "imagenet" as torchvision's; it has no meaning for the others.

    Raises:
        ValueError: the name or the stem is unknown, the network cannot have `in_channels`, cannot be adapted
            to the contract, or a user's own fails.
    """
    check_network(name)
    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}, known: {', '.join(STEMS)}")
    if name in THIN_BLOCKS:
        return ThinResNet(THIN_BLOCKS[name], num_classes, in_channels)
    if name in RESNETS:
        return STEMS[stem](**RESNETS[name], num_classes=num_classes, in_channels=in_channels)
    if in_channels != 3:
        raise ValueError(
            f"network {name} takes images of 3 channels, not {in_channels}: take {', '.join(THIN_NETWORKS)}"
        )
    return own_network(name, num_classes) if ":" in name else torchvision_network(name, num_classes)


def check_network(name: str) -> None:
    """Refuse a name under which there can be no network; nothing is built or imported.

    Raises:
        ValueError: unknown, or not written as module:function: says what comes near.
    """
    if ":" in name:
        if ".py:" in name or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
            raise ValueError(
                f"network {name!r} is not written as Python imports it: my_nets:small_cnn is the function "
                "small_cnn of my_nets.py"
            )
        return
    known = list(dict.fromkeys((*NETWORKS, *torchvision_names())))
    if name not in known:
        near = [other for other in known if name and other.startswith(name)]
        near = (near + [other for other in difflib.get_close_matches(name, known) if other not in near])[:3]
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"unknown network {name!r}{hint}, known: {', '.join(NETWORKS)}, any other classification "
            "network of torchvision, or your own as module:function"
        )


def network_label(name: str) -> str:
    """The name of a network as part of a file's name: my.nets:small_cnn gives my_nets_small_cnn."""
    return re.sub(r"[^\w-]", "_", name)


def build_head(
    kind: str,
    fc: nn.Linear,
    class_counts: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
    labels: Tensor | None = None,
    **options: float,
) -> nn.Module:
    """The head `kind` at its start, with the sizes, type and device of the stage-1 classifier `fc`.

    `fc` is copied, never changed. What a kind does not need is ignored: `class_counts` [K] is for la,
    `generator` for etf and for linear with fresh=True, `features` [N, D] (float16 or memory-mapped too) and
    `labels` [N] of the training images are for ncm and los_step. Options: `fresh` of linear, `tau` of la and
    tau_norm, `scale` of etf, `strength` of los_step.

    Raises:
        ValueError: the kind or an option is unknown, an option is out of range, or what it needs is missing.
    """
    head = _empty_head(kind, fc.in_features, fc.out_features, options).to(fc.weight)
    given = {"class_counts": class_counts, "generator": generator, "features": features, "labels": labels}
    missing = [name for name in head.needs if given[name] is None]
    if missing:
        raise ValueError(f"head {kind!r} needs {' and '.join(missing)}")
    head.start(fc, **{name: given[name] for name in head.needs})
    return head


def head_from_state(kind: str, state: Mapping[str, Tensor], **options: float) -> nn.Module:
    """The head whose `state_dict()` this is, without its stage-1 classifier; `state` is copied.

    Raises:
        ValueError: the kind or an option is unknown, or names or shapes do not fit the kind: says which.
    """
    weight = state.get("weight")
    if weight is None or weight.ndim != 2:
        raise ValueError(f"not the weights of a head {kind!r}: no matrix `weight` [K, D]")
    head = _empty_head(kind, weight.shape[1], weight.shape[0], options).to(weight)
    wanted = {name: value.shape for name, value in head.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"not the weights of a head {kind!r}: {', '.join(wrong)} missing, unknown or misshapen"
        )
    head.load_state_dict(state, strict=True)
    return head


def _empty_head(kind: str, in_features: int, num_classes: int, options: Mapping[str, float]) -> nn.Module:
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}, known: {', '.join(HEADS)}")
    known = list(inspect.signature(HEADS[kind]).parameters)[2:]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"unknown option {unknown[0]!r} of head {kind!r}, known: {', '.join(known) or 'none'}"
        )
    return HEADS[kind](in_features, num_classes, **options)
