"""Networks and classifier heads by name, in plain tables that load no torch.

Contract of a network: `model.forward_features(x)` gives pooled features [N, D], `model.fc` is the classifier,
and `model(x) == model.fc(model.forward_features(x))`. Of a head: `head(features [N, D])` gives logits [N, K].
"""

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from utils.base.lazy import Registry, face

# ResNets of torchvision's widths: its block, blocks a stage; where not 1 and 64, groups and channels a group.
# torchvision has no resnet10, resnext101_32x4d and resnext152_32x4d: there are published long-tailed figures
# or weights of them.
RESNETS = {
    "resnet10": ("BasicBlock", (1, 1, 1, 1)),
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
    "resnet101": ("Bottleneck", (3, 4, 23, 3)),
    "resnet152": ("Bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": ("Bottleneck", (3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": ("Bottleneck", (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": ("Bottleneck", (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": ("Bottleneck", (3, 4, 23, 3), 64, 4),
    "resnext152_32x4d": ("Bottleneck", (3, 8, 36, 3), 32, 4),
    "wide_resnet50_2": ("Bottleneck", (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": ("Bottleneck", (3, 4, 23, 3), 1, 128),
}
THIN_BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}  # blocks a stage
THIN_NETWORKS = tuple(THIN_BLOCKS)
NETWORKS = (*RESNETS, *THIN_NETWORKS)
HEADS = Registry(
    {
        "linear": "models.heads.linear:Linear",
        "lws": "models.heads.corrections:ScaledLinear",
        "tau_norm": "models.heads.corrections:TauNorm",
        "ncm": "models.heads.means:NearestMean",
        "ldam": "models.heads.linear:CosineLinear",
        "etf": "models.heads.linear:EtfHead",
        "marc": "models.heads.corrections:Marc",
        "disalign": "models.heads.corrections:DisAlign",
        "la": "models.heads.corrections:PriorAdjusted",
        "los_step": "models.heads.linear:LosStep",
        "samn": "models.heads.linear:MonotoneLinear",
        "logreg": "models.heads.means:LogisticRows",
    }
)
__getattr__, __all__ = face(__name__, {"build": "build_head build_model head_from_state"})


def torchvision_names() -> list[str]:
    """The names of torchvision's classification networks, as its files register them: to load it is slow."""
    [folder] = find_spec("torchvision").submodule_search_locations
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(folder, "models").glob("*.py"))]
    registered = r"^@register_model\(.*\)\n(?:@.*\n)*def (\w+)"
    return sorted(name for text in texts for name in re.findall(registered, text, re.MULTILINE))


def check_network(name: str) -> None:
    """Refuse a name under which there can be no network; nothing is built or imported.

    Raises ValueError: unknown, or not written as module:function: says what comes near.
    """
    if ":" in name:
        if ".py:" in name or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
            example = "my_nets:small_cnn is the function small_cnn of my_nets.py"
            raise ValueError(f"network {name!r} is not written as Python imports it: {example}")
        return
    known = list(dict.fromkeys((*NETWORKS, *torchvision_names())))
    if name not in known:
        near = [other for other in known if name and other.startswith(name)]
        near = list(dict.fromkeys([*near, *difflib.get_close_matches(name, known)]))[:3]
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        others = "any other classification network of torchvision, or your own as module:function"
        raise ValueError(f"unknown network {name!r}{hint}, known: {', '.join(NETWORKS)}, {others}")


def network_label(name: str) -> str:
    """The name of a network as part of a file's name: my.nets:small_cnn gives my_nets_small_cnn."""
    return re.sub(r"[^\w-]", "_", name)
