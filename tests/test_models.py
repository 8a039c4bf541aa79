"""The networks: torchvision's names and shapes, the sizes of the papers, and features that feed `fc`."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet as tv

from models import NETWORKS, THIN_NETWORKS, build_model, check_network, network_label
from models.resnet_cifar import PadShortcut

WIDE = {"resnet18": tv.resnet18, "resnet34": tv.resnet34, "resnet50": tv.resnet50}
THIN = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def thin_size(blocks: int, num_classes: int) -> int:
    """Weights of ResNet-(6n+2) with parameter-free shortcuts, counted by hand."""
    total = 3 * 16 * 9 + 2 * 16
    for width_in, width in ((16, 16), (16, 32), (32, 64)):
        total += width_in * width * 9 + width * width * 9 + 4 * width
        total += (blocks - 1) * (2 * width * width * 9 + 4 * width)
    return total + 64 * num_classes + num_classes


def test_the_table_holds_the_wide_and_the_thin_networks():
    assert set(NETWORKS) >= set(WIDE) | set(THIN)
    assert set(THIN_NETWORKS) == set(THIN)


@pytest.mark.parametrize(("name", "parameters"), [("resnet34", 21_328_292), ("resnet32", 470_004)])
def test_the_networks_of_cifar100_have_the_published_size(name, parameters):
    assert size(build_model(name, 100)) == parameters


@pytest.mark.parametrize(
    ("name", "known"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)],
)
def test_the_thin_networks_have_the_known_size_with_10_classes(name, known):
    assert size(build_model(name, 10)) == known


@pytest.mark.parametrize("name", THIN)
def test_the_thin_networks_have_the_size_counted_by_hand_and_their_depth(name):
    model = build_model(name, 37)
    assert size(model) == thin_size(THIN[name], 37)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 6 * THIN[name] + 2 == int(name.removeprefix("resnet"))
    assert all(layer.bias is None for layer in layers if isinstance(layer, torch.nn.Conv2d))


@pytest.mark.parametrize("name", WIDE)
def test_the_wide_networks_have_torchvisions_names_and_shapes_but_for_conv1(name):
    ours, theirs = build_model(name, 100).state_dict(), WIDE[name](num_classes=100).state_dict()
    assert list(ours) == list(theirs)
    different = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert different == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)
    assert all(ours[key].dtype == theirs[key].dtype for key in ours)


@pytest.mark.parametrize("name", WIDE)
def test_state_dicts_go_both_ways_strictly_but_for_conv1(name):
    ours, theirs = build_model(name, 10), WIDE[name](num_classes=10)
    own_stem, their_stem = ours.conv1.weight.clone(), theirs.conv1.weight.clone()
    ours.load_state_dict(theirs.state_dict() | {"conv1.weight": own_stem}, strict=True)
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        ours.fc.weight.add_(1)
    theirs.load_state_dict(ours.state_dict() | {"conv1.weight": their_stem}, strict=True)
    assert torch.equal(theirs.fc.weight, ours.fc.weight)
    assert torch.equal(theirs.layer4[1].bn2.weight, ours.layer4[1].bn2.weight)


def test_a_wide_network_computes_what_torchvisions_does_with_a_small_stem():
    ours, theirs = build_model("resnet18", 10).eval(), tv.resnet18(num_classes=10).eval()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet8", 64), ("resnet56", 64), ("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)],
)
@pytest.mark.parametrize("train", [True, False])
def test_the_logits_are_the_classifier_of_the_features(name, width, train):
    model = build_model(name, 7).train(train)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, width) and model.fc.in_features == width and model.fc.bias is not None
        assert torch.equal(model(x), model.fc(features))
        assert model(x).shape == (2, 7)


@pytest.mark.parametrize(("name", "stride"), [("resnet34", 8), ("resnet32", 4)])
def test_the_stem_keeps_the_resolution_so_that_the_last_map_is_known(name, stride):
    model = build_model(name, 10).eval()
    shapes = {}
    last = model.layer4 if name == "resnet34" else model.layer3
    model.bn1.register_forward_hook(lambda module, given, out: shapes.update(stem=out.shape[2:]))
    last.register_forward_hook(lambda module, given, out: shapes.update(last=out.shape[2:]))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert shapes == {"stem": (32, 32), "last": (32 // stride, 32 // stride)}


@pytest.mark.parametrize("extra", [16, 32, 5])
def test_the_shortcut_takes_every_second_pixel_and_adds_zero_channels_on_both_sides(extra):
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    out = PadShortcut(extra)(x)
    expected = torch.zeros(2, 16 + extra, 3, 3)
    for channel in range(16):
        for row in range(3):
            for column in range(3):
                expected[:, extra // 2 + channel, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(out, expected)
    assert not list(PadShortcut(extra).parameters())


def test_a_thin_block_with_a_shortcut_computes_what_the_formula_says():
    block = build_model("resnet8", 10).eval().layer2[0]
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)).relu()
        inner = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
        inner[:, 8:24] += x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), inner.relu())


def test_a_thin_network_takes_grey_8x8_images():
    model = build_model("resnet8", 10, in_channels=1)
    assert model.conv1.weight.shape == (16, 1, 3, 3)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_wide_network_takes_grey_images():
    model = build_model("resnet18", 10, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_memory_layout_of_the_input_does_not_change_the_logits():
    model = build_model("resnet20", 10).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model(x.to(memory_format=torch.channels_last)), model(x), rtol=1e-4, atol=1e-5
        )


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown network 'resnet33' .*known: .*resnet152, .*module:function"
    ):
        build_model("resnet33", 10)
    with pytest.raises(ValueError, match=r"unknown network '', known"):
        build_model("", 10)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet33", "resnet34"),
        ("resnext50", "resnext50_32x4d"),
        ("ResNet50", "resnet50"),
        ("mobilenet", "mobilenet_v2"),
        ("efficientnetb0", "efficientnet_b0"),
    ],
)
def test_an_unknown_network_is_refused_with_what_comes_near(name, near):
    with pytest.raises(ValueError, match=rf"did you mean .*\b{near}\b.*\?") as caught:
        check_network(name)
    assert "\n" not in str(caught.value)


def test_a_name_is_checked_without_building_or_importing():
    for name in (*NETWORKS, "vit_h_14", "no_such_module:no_such_function"):
        check_network(name)


@pytest.mark.parametrize(
    "name", ["my_nets.py:net", "nets/my:net", "my_nets:", ":net", "a:b:c", "1a:b", "a:b()"]
)
def test_a_network_of_ones_own_is_written_as_python_imports_it(name):
    with pytest.raises(ValueError, match="as Python imports it"):
        check_network(name)


def test_the_label_of_a_network_is_safe_in_the_name_of_a_file():
    assert network_label("my.nets:small_cnn") == "my_nets_small_cnn"
    assert all(network_label(name) == name for name in (*NETWORKS, "mobilenet_v3_small"))
    assert network_label("../a b:c") == "___a_b_c"


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="unknown stem 'big', known: small, imagenet"):
        build_model("resnet18", 10, stem="big")


@pytest.mark.parametrize(("name", "width"), [("resnet10", 512), ("resnext50_32x4d", 2048)])
def test_networks_of_photographs_have_a_small_stem_too(name, width):
    model = build_model(name, 7).eval()
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 16, 16)).shape == (1, width)


def test_a_thin_network_is_the_same_with_either_stem():
    with torch.random.fork_rng():
        states = []
        for stem in ("small", "imagenet"):
            torch.manual_seed(0)
            states.append(build_model("resnet8", 10, stem=stem).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("channels", [3, 1])
def test_a_wide_network_is_drawn_as_torchvisions_and_then_its_stem(channels):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model("resnet18", 10, channels)
        torch.manual_seed(5)
        expected = tv.resnet18(num_classes=10)
        torch.nn.Conv2d(channels, 64, 3, bias=False)
        stem = torch.nn.init.kaiming_normal_(
            torch.empty(64, channels, 3, 3), mode="fan_out", nonlinearity="relu"
        )
    state = expected.state_dict() | {"conv1.weight": stem}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_the_same_torch_seed_gives_equal_weights_and_another_seed_others(name):
    states = []
    with torch.random.fork_rng():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(build_model(name, 10).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight"):
        assert not torch.equal(first[key], other[key])
