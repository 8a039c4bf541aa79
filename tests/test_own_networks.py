"""A user's own network, module:function: found, called, checked, adapted, and everything left as it was."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import build_model
from tests.helpers import checkpoint_content, load_pretrained
from utils.run import checkpoint

MODULE = (Path(__file__).parent / "user_networks.py").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: a user's, with modules; what was imported from it is forgotten after."""
    (tmp_path / "own_nets.py").write_text(MODULE)
    (tmp_path / "own_nets_beside.py").write_text("width = 5\n")
    (tmp_path / "own_broken.py").write_text("import own_nets_that_are_missing\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_package" / "nets.py").write_text("from own_nets import tiny\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def direct(name: str) -> object:
    """What the tests compare with: the user's module, imported by the tests themselves."""
    sys.path.insert(0, ".")
    try:
        return getattr(importlib.import_module("own_nets"), name)
    finally:
        sys.path.remove(".")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((f"own_nets:{n}", 32) for n in ("tiny", "Whole", "Maps", "Middle", "Beside", "positional")),
        *(("own_nets:only_64", 64), ("own_nets:only_50", 50), ("own_nets:imports_late", 32)),
        ("own_package.nets:tiny", 32),
    ],
)
def test_the_logits_are_the_classifier_of_the_features_and_those_of_the_users_network(name, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, 7).eval()
        torch.manual_seed(0)
        expected = direct(name.partition(":")[2])(7).eval()
    with torch.no_grad():
        features = model.forward_features(images(size))
        assert torch.equal(model(images(size)), expected(images(size)))
        assert torch.equal(model(images(size)), model.fc(features))
    assert isinstance(model.fc, nn.Linear) and model.fc.weight.shape == (7, features.shape[1])


def test_a_network_that_keeps_the_contract_stays_as_it_is():
    assert type(build_model("own_nets:Whole", 7)).__name__ == "Whole"


def test_the_trial_leaves_weights_statistics_modes_and_the_random_state_as_they_were():
    for name in ("tiny", "Whole", "Counting", "Middle"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(f"own_nets:{name}", 7)
            after = torch.get_rng_state()
            torch.manual_seed(0)
            expected = direct(name)(7)
            assert torch.equal(after, torch.get_rng_state())
        values = zip(sorted_tensors(model), sorted_tensors(expected), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in values)
        norms = [next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)) for net in (model, expected)]
        assert norms[0].training == norms[1].training == (name == "tiny") and model.training
        assert not any(layer._forward_hooks for layer in model.modules())


def test_the_trial_is_in_evaluation_mode_without_gradients():
    build_model("own_nets:Whole", 7)
    assert set(direct("MODES")) == {(False, False)}


def sorted_tensors(model: nn.Module) -> list[torch.Tensor]:
    """The values of a network in an order that does not depend on where its layers are."""
    return sorted(
        model.state_dict().values(), key=lambda value: (list(value.shape), value.double().sum().item())
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nothing:net", r"no module own_nothing, neither in .* nor installed"),
        ("own_package.nothing:net", r"no module own_package\.nothing"),
        ("own_broken:net", r"importing own_broken fails: ModuleNotFoundError: .*own_nets_that_are_missing"),
        ("own_nets:nothing", r"own_nets\.py has no nothing"),
        ("own_nets:CONSTANT", r"own_nets\.py has no function, but a value, CONSTANT"),
        ("own_nets:fails", r"fails for 7 classes: RuntimeError: no net"),
        ("own_nets:two_arguments", r"fails for 7 classes: TypeError: .*depth"),
        ("own_nets:words", r"gives a str, not a torch\.nn\.Module"),
        ("own_nets:lazy", r"lazy layers"),
        ("own_nets:other_size", r"gives \[2, 8\] for 2 images, not logits \[2, 7\]"),
        ("own_nets:two_outputs", r"gives a tuple for 2 images, not logits"),
        ("own_nets:convolution", r"has no torch\.nn\.Linear with 7 outputs"),
        ("own_nets:softmax", r"has to end in a torch\.nn\.Linear with 7 outputs.*no softmax"),
        ("own_nets:reads_its_weight", "used once and as it is"),
        ("own_nets:scaled", r"has to end in a torch\.nn\.Linear with 7 outputs.*no scale"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_with_the_reason(name, message):
    with pytest.raises(ValueError, match=f"network {name}.*{message}") as caught:
        build_model(name, 7)
    assert "\n" not in str(caught.value)


def test_the_users_module_comes_before_an_installed_one(folder):
    (folder / "this.py").write_text(MODULE)
    sys.modules.pop("this", None)
    assert build_model("this:tiny", 7).last == "5"
    del sys.modules["this"]


@pytest.mark.parametrize("name", ["tiny", "Middle", "Whole"])
def test_checkpoints_and_the_users_own_files_are_read(name, folder):
    theirs = direct(name)(7).eval()
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    first, second, third = (build_model(f"own_nets:{name}", 7).eval() for _ in range(3))
    checkpoint.load_weights(first, checkpoint.read(folder / "theirs.pth"), name)
    content = checkpoint_content(first.state_dict(), network=name, num_class=7)
    checkpoint.save(folder / "ours.pth", content)
    checkpoint.load_weights(second, checkpoint.read(folder / "ours.pth"), name)
    load_pretrained(third, checkpoint.read(folder / "theirs.pth").state, name)
    with torch.no_grad():
        assert torch.equal(first(images()), theirs(images()))
        assert torch.equal(second(images()), theirs(images()))
        assert torch.equal(third.forward_features(images()), first.forward_features(images()))


def test_a_replaced_classifier_is_the_one_that_is_used():
    model = build_model("own_nets:tiny", 7)
    model.fc = nn.Linear(4, 2)
    assert model(images()).shape == (3, 2)
