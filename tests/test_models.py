"""The networks: torchvision's names, shapes and figures under both stems, adapted ones, weights of others."""

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import resnet as tv

from models import (
    NETWORKS,
    THIN_NETWORKS,
    build_model,
    check_network,
    network_label,
    torchvision_names,
)
from models.adapt import Adapted
from tests.helpers import load_pretrained
from utils.base.errors import UserError
from utils.run import checkpoint

RESNETS = [name for name in NETWORKS if name not in THIN_NETWORKS]
THEIRS = [name for name in RESNETS if hasattr(tv, name)]
UNFIT = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}
SMALL = ["mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf", "densenet121"]
FAMILIES = "alexnet convnext_tiny efficientnet_b0 maxvit_t mobilenet_v2 swin_t swin_v2_t vgg11_bn vit_b_32"
# torchvision builds a RegNet with numbers read from tensors, so never without memory: the small ones
REGNETS = ["regnet_x_400mf", "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf"]


def test_the_names_read_from_torchvisions_files_are_those_that_it_registers():
    assert torchvision_names() == torchvision.models.list_models(module=torchvision.models)


def theirs(name: str, num_classes: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes).eval()


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def shapes(model: nn.Module) -> dict[str, tuple]:
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def spread(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and weights that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            low = 0.5 if name.endswith(("running_var", "weight")) else -0.1
            value.uniform_(low, low + 0.2, generator=generator)
    return model


# ---- the ResNets


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        *(("resnet34", 100, 21_328_292), ("resnet32", 100, 470_004), ("resnet20", 10, 269_722)),
        *(("resnet32", 10, 464_154), ("resnet44", 10, 658_586), ("resnet56", 10, 853_018)),
    ],
)
def test_the_networks_of_cifar_have_the_published_size(name, num_classes, parameters):
    assert sum(value.numel() for value in build_model(name, num_classes).parameters()) == parameters


@pytest.mark.parametrize("name", THIN_NETWORKS)
def test_a_thin_network_has_the_depth_in_its_name_and_is_the_same_with_either_stem(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, 37)
        torch.manual_seed(0)
        other = build_model(name, 37, stem="imagenet")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(name.removeprefix("resnet"))
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("name", THEIRS)
def test_names_and_shapes_are_torchvisions_but_for_the_small_stem(name, stem):
    with torch.device("meta"):
        ours, other = shapes(build_model(name, 100, stem=stem)), shapes(theirs(name, 100))
    assert list(ours) == list(other)
    small = {"conv1.weight": ((64, 3, 3, 3), torch.float32)} if stem == "small" else {}
    assert ours == other | small


@pytest.mark.parametrize(
    ("name", "block", "layers", "groups", "width"),
    [
        ("resnet10", tv.BasicBlock, [1, 1, 1, 1], 1, 64),
        ("resnext101_32x4d", tv.Bottleneck, [3, 4, 23, 3], 32, 4),
        ("resnext152_32x4d", tv.Bottleneck, [3, 8, 36, 3], 32, 4),
    ],
)
def test_the_resnets_that_torchvision_has_no_name_for_are_made_of_its_blocks(
    name, block, layers, groups, width
):
    with torch.device("meta"):
        expected = tv.ResNet(block, layers, num_classes=9, groups=groups, width_per_group=width)
        assert shapes(build_model(name, 9, stem="imagenet")) == shapes(expected)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_with_equal_weights_logits_and_features_are_torchvisions(name, stem):
    ours, other = build_model(name, 7, stem=stem).eval(), spread(theirs(name, 7))
    if stem == "small":
        other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    ours.load_state_dict(other.state_dict(), strict=True)
    pooled = []
    other.avgpool.register_forward_hook(lambda module, given, out: pooled.append(out.flatten(1)))
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), other(images()))
        torch.testing.assert_close(ours.forward_features(images()), pooled[0])
        assert stem == "small" or torch.equal(ours(images()), other(images()))
    other.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(("stem", "channels"), [("imagenet", 3), ("small", 3), ("small", 1)])
def test_with_the_same_seed_the_initial_weights_are_torchvisions_and_then_the_small_stem(stem, channels):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ours = build_model("resnet18", 7, channels, stem=stem).state_dict()
        torch.manual_seed(2)
        other = theirs("resnet18", 7).state_dict()
        if stem == "small":
            small = nn.Conv2d(channels, 64, 3, bias=False).weight.detach()
            other["conv1.weight"] = nn.init.kaiming_normal_(small, mode="fan_out", nonlinearity="relu")
    assert all(torch.equal(ours[name], other[name]) for name in other)
    assert ours["layer1.0.bn2.weight"].eq(1).all()  # and not 0, as some start the last of a block


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet8", 64), ("resnet10", 512), ("resnet50", 2048)],
)
@pytest.mark.parametrize("train", [True, False])
def test_the_logits_are_the_classifier_of_the_features(name, width, train):
    model, x = build_model(name, 7).train(train), images(32)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, width) and model.fc.in_features == width and model.fc.bias is not None
        assert torch.equal(model(x), model.fc(features)) and model(x).shape == (2, 7)


def test_a_thin_block_with_a_shortcut_computes_what_the_formula_says():
    block = build_model("resnet8", 10).eval().layer2[0]
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)).relu()
        inner = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
        inner[:, 8:24] += x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), inner.relu())


@pytest.mark.parametrize(
    ("name", "stem", "kernel"),
    [("resnet8", "small", 3), ("resnet10", "small", 3), ("resnet10", "imagenet", 7)],
)
def test_a_resnet_takes_grey_images(name, stem, kernel):
    model = build_model(name, 7, in_channels=1, stem=stem).eval()
    assert model.conv1.weight.shape[1:] == (1, kernel, kernel)
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


# ---- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet33", r"'resnet33' .*did you mean .*\bresnet34\b.*resnet152, .*module:function"),
        ("", "unknown network '', known"),
        ("resnext50", r"did you mean .*\bresnext50_32x4d\b.*\?"),
        ("ResNet50", r"did you mean .*\bresnet50\b.*\?"),
        *((name, "as Python imports it") for name in ("my_nets.py:net", "my_nets:", ":net", "a:b()")),
    ],
)
def test_a_name_under_which_there_is_no_network_is_refused_with_what_comes_near(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_network(name)
    assert "\n" not in str(caught.value)


def test_a_name_is_checked_without_importing_and_its_label_is_safe_in_the_name_of_a_file():
    for name in (*NETWORKS, "vit_h_14", "no_such_module:no_such_function"):
        check_network(name)
    assert all(network_label(name) == name for name in (*NETWORKS, "mobilenet_v3_small"))
    assert network_label("../a b:c") == "___a_b_c"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"stem": "big"}, "unknown stem 'big', known: small, imagenet"),
        ("mobilenet_v2", {"in_channels": 1}, "takes images of 3 channels, not 1: take resnet8"),
        ("own_nets:tiny", {"in_channels": 1}, "takes images of 3 channels, not 1"),
        *((name, {}, f"{name} has auxiliary classifiers") for name in ("googlenet", "inception_v3")),
        *((f"squeezenet1_{n}", {}, f"squeezenet1_{n} has a convolution as classifier") for n in (0, 1)),
    ],
)
def test_a_network_that_cannot_be_as_asked_is_refused_with_the_reason(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, 7, **options)


# ---- torchvision's other networks


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in torchvision_names()
        if name not in UNFIT and name not in RESNETS and (name in REGNETS or not name.startswith("regnet"))
    ],
)
def test_every_other_classification_network_of_torchvision_has_features_and_a_classifier(name):
    with torch.device("cpu" if name in REGNETS else "meta"):
        model = build_model(name, 7).eval()
        linear = [layer for layer in theirs(name, 7).modules() if isinstance(layer, nn.Linear)]
        left = [layer for layer in model.body.modules() if isinstance(layer, nn.Linear)]
        assert type(model.fc) is nn.Linear and model.fc.weight.shape == (7, linear[-1].in_features)
        assert [layer.out_features for layer in left] == [layer.out_features for layer in linear[:-1]]
        if name in (*SMALL, *FAMILIES.split()):
            x = torch.zeros(2, 3, 224, 224)
            with torch.no_grad():
                assert model.forward_features(x).shape == (2, linear[-1].in_features)


def test_the_classifier_is_found_where_other_layers_have_as_many_outputs():
    with torch.device("meta"):
        assert build_model("vit_b_32", 768).last == "heads.head"
        assert build_model("vgg11", 4096).last == "classifier.6"


# ---- weights of others


@pytest.mark.parametrize("name", SMALL)
def test_the_backbone_of_a_torchvision_file_starts_an_adapted_network(name):
    other, ours = spread(theirs(name, 12)), build_model(name, 7).eval()
    fresh = ours.fc.weight.clone()
    load_pretrained(ours, other.state_dict(), name)
    assert torch.equal(ours.fc.weight, fresh)
    ours.fc = other.get_submodule(ours.last)
    with torch.no_grad():
        assert torch.equal(ours(images()), other(images()))
        assert torch.equal(ours(images()), ours.fc(ours.forward_features(images())))


def as_earlier(name: str) -> str:
    """The names that torchvision's weight files of DenseNet and ViT still have."""
    name = re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", name)
    return name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 32, 2, 2, 8, 16, num_classes=7).eval()


def small_densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 2), 8, num_classes=7).eval()


@pytest.mark.parametrize(
    ("make", "last", "sign"),
    [(small_densenet, "classifier", ".norm.1."), (small_vit, "heads.head", ".mlp.linear_2.")],
)
def test_files_with_torchvisions_earlier_names_are_read(make, last, sign):
    other, ours = spread(make()), Adapted(make(), last).eval()
    old = {as_earlier(key): value for key, value in other.state_dict().items() if "num_batches" not in key}
    assert any(sign in key for key in old)
    load_pretrained(ours, old, "network")
    ours.fc = other.get_submodule(last)
    with torch.no_grad():
        assert torch.equal(ours(images()), other(images()))


@pytest.mark.parametrize("last", ["linear", None])
def test_a_torchvision_file_of_1000_classes_starts_a_resnet(last):
    other = theirs("resnet18", 1000).state_dict()
    for part in ("weight", "bias"):
        value = other.pop(f"fc.{part}")
        other |= {} if last is None else {f"{last}.{part}": value}
    other = {name: value for name, value in other.items() if "num_batches_tracked" not in name}
    ours = build_model("resnet18", 7, stem="imagenet")
    load_pretrained(ours, other, "resnet18")
    assert torch.equal(ours.layer4[1].conv2.weight, other["layer4.1.conv2.weight"])
    assert ours.layer1[0].bn1.num_batches_tracked == 0


def test_a_checkpoint_starts_another_network_whose_classifier_is_left_fresh_though_it_fits():
    other, ours = build_model("mobilenet_v3_small", 7), build_model("mobilenet_v3_small", 7)
    fresh = ours.fc.weight.clone()
    load_pretrained(ours, other.state_dict(), "mobilenet_v3_small")
    assert torch.equal(ours.fc.weight, fresh)
    assert torch.equal(ours.body.features[3].block[0][0].weight, other.body.features[3].block[0][0].weight)


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    small = build_model("resnet10", 7)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    photo = build_model("resnet10", 7, stem="imagenet").state_dict()
    cases = {
        r"conv1\.weight \[64, 3, 7, 7\] instead of \[64, 3, 3, 3\]": photo,
        r"2 missing \(layer1\.0\.conv1\.weight": {k: v for k, v in before.items() if "layer1.0.c" not in k},
        r"unexpected \(layer5.weight": before | {"layer5.weight": torch.ones(2), "l.w": torch.ones(1)},
        r"bn1\.bias holds values that are not finite": before | {"bn1.bias": torch.full((64,), torch.nan)},
    }
    for message, state in cases.items():
        with pytest.raises(UserError, match=message):
            load_pretrained(small, state, "resnet10")
        assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def decoupling_file(state: dict, key: str) -> dict:
    """What the public code of Decoupling leaves: backbone and classifier apart, each from DataParallel."""
    parts = {"feat_model": {}, "classifier": {}}
    for name, value in state.items():
        parts["classifier" if name.startswith("fc.") else "feat_model"][f"module.{name}"] = value
    return {"epoch": 90, "best_epoch": 88, key: parts, "best_acc": 0.444, "centroids": None}


@pytest.mark.parametrize("key", ["state_dict_best", "state_dict"])
def test_a_checkpoint_of_the_decoupling_code_is_read(key, tmp_path):
    other = spread(build_model("resnet10", 5, stem="imagenet").eval())
    torch.save(decoupling_file(other.state_dict(), key), tmp_path / "resnet10_uniform_e90.pth")
    found = checkpoint.read(tmp_path / "resnet10_uniform_e90.pth")
    ours, start = (build_model("resnet10", k, stem="imagenet").eval() for k in (5, 9))
    checkpoint.load_weights(ours, found, "resnet10")
    load_pretrained(start, found.state, "resnet10")
    with torch.no_grad():
        assert torch.equal(ours(images()), other(images()))
        assert torch.equal(start.forward_features(images()), other.forward_features(images()))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet8"])
def test_a_classifier_of_other_classes_is_called_so_adapted_or_without_a_bias(name):
    state = build_model(name, 12).state_dict()
    del state["fc.bias"]
    found = checkpoint.Checkpoint("x.pth", "", state, {})
    with pytest.raises(UserError, match=rf"^x\.pth is a {name} with 12 classes, 7 are needed"):
        checkpoint.load_weights(build_model(name, 7), found, name)
