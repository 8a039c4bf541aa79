"""What a run's bits depend on: its seed; and what they do not: the process, loaders, batches, ranks."""

import json
import os
import sys

import pytest
import torch
from torch import Tensor, nn

import evaluate
import main_stage1
import main_stage2
from losses import closed_form
from losses.label_over_smooth import LabelOverSmooth
from models import build_model
from tests import golden
from tests.file_trees import list_tree
from tests.helpers import call, places, published, run_stage1, run_stage2
from tests.kills import differences, ending, finished
from tests.scoring import Scored
from tests.seeds import seed_runs
from utils.base.errors import exit_cleanly
from utils.engine.device import environment, pick_device
from utils.run import checkpoint

# ---- the golden losses


@pytest.fixture(scope="module")
def known() -> dict:
    return json.loads(golden.GOLDEN.read_text())


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_first_20_losses_are_those_that_were_stored(known, stage):
    assert golden.furthest(golden.losses(stage), known[stage]) < golden.TOLERANCE[stage]


CHANGES = [
    ("stage1", ("--lr", "0.0101")),
    ("stage1", ("--momentum", "0.89")),
    ("stage2", ("--finetune_lr", "0.00101")),
    ("stage2", ("--label_smooth", "0.901")),
]


@pytest.mark.parametrize(("stage", "change"), CHANGES)
def test_a_changed_setting_lies_far_outside_the_tolerance(known, stage, change):
    assert golden.furthest(golden.losses(stage, *change), known[stage]) > 3 * golden.TOLERANCE[stage]


def test_a_changed_formula_of_the_loss_lies_far_outside_the_tolerance(known, monkeypatch):
    """δ/(K - 1) on the other classes alone, as some write label smoothing, is ours at δ K/(K - 1)."""

    def over_the_other_classes(loss: nn.Module) -> tuple:
        return loss.label_smooth * 10 / 9, None, None, None

    monkeypatch.setitem(closed_form._VECTORS, LabelOverSmooth, over_the_other_classes)
    assert golden.furthest(golden.losses("stage2"), known["stage2"]) > 100 * golden.TOLERANCE["stage2"]


# ---- seeds, processes, loaders


def test_a_seed_gives_the_same_bits_in_two_processes_and_another_seed_others_in_both_stages(tmp_path):
    seed_runs(tmp_path, 2)


def test_the_number_of_loader_processes_changes_no_bit_of_either_stage(tmp_path):
    list_tree(tmp_path / "data", counts=(24, 12, 6))
    words = ["--dataset", "list", "--data_dir", tmp_path / "data", "--train_list", "train.txt"]
    words += ["--test_list", "test.txt", "--network", "resnet8", "--image_size", "32", "--device", "cpu"]
    words += ["--batch_size", "8", "--seed", "0"]
    for workers in (0, 3):
        one, two = tmp_path / f"one{workers}", tmp_path / f"two{workers}"
        call(main_stage1.main, *words, "--workers", workers, "--epochs", "2", *places(one))
        stage1 = published(tmp_path / "one0", "list_data", "resnet8_stage1.pth")
        second = ["--workers", workers, "--finetune_epoch", "2", "--pretrained_pth", stage1, *places(two)]
        call(main_stage2.main, *words, *second)
        assert differences(one, tmp_path / "one0") == differences(two, tmp_path / "two0") == []


def test_scores_do_not_depend_on_batch_size_order_or_loaders_and_every_image_is_scored_once(tmp_path):
    """Nor on ranks: tests/test_distributed.py."""
    scored = Scored(tmp_path, test_per_class=12)
    ways = dict(scored.ways(ranks=False))
    assert len(ways) == 9 and not any(ways.values()), ways
    assert scored.changed_by_batch_statistics() > 0


# ---- --deterministic


@pytest.fixture
def settings_given_back(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before)
    torch.backends.cudnn.benchmark = benchmark


def test_the_flag_sets_torch_before_a_device_is_started_and_says_so(settings_given_back, monkeypatch):
    device = pick_device("cpu")
    assert not environment(device)["deterministic"] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.backends.cudnn.benchmark = True
    pick_device("cpu", deterministic=True)
    assert environment(device)["deterministic"] and not torch.backends.cudnn.benchmark
    assert torch.is_deterministic_algorithms_warn_only_enabled() is False
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what the user has set stays
    pick_device("cpu", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_on_the_cpu_the_flag_changes_no_bit_and_is_recorded(tmp_path, digits, settings_given_back):
    plain, strict = tmp_path / "plain", tmp_path / "strict"
    for root, more in ((plain, ()), (strict, ("--deterministic",))):
        run_stage1(root / "one", "--epochs", "2", "--seed", "0", *more)
        second = ["--pretrained_pth", digits.stage1, "--method", "los,crt,lws,ncm", "--finetune_epoch", "2"]
        run_stage2(root / "two", *second, "--seed", "0", *more)
    for stage in ("one", "two"):
        assert differences(plain / stage, strict / stage) == []
    [path] = strict.glob("one/ckpt/**/*.pth")
    assert checkpoint.read(path).facts["environment"]["deterministic"] is True
    words = ["--dataset", "digits_lt", "--cur_stage", "stage1", "--deterministic", *places(strict / "one")]
    assert "deterministic" in call(evaluate.main, *words)


def test_the_record_names_what_decides_the_last_bits():
    found = environment(torch.device("cpu"))
    assert (found["layout"], found["deterministic"]) == ("channels_last", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    changed = environment(torch.device("cpu"))
    torch.set_float32_matmul_precision(before)
    assert {name for name in found if found[name] != changed[name]} == {"float32_products"}


def operations(output: Tensor) -> set[str]:
    """The names of the operations that the gradient of `output` passes through."""
    seen, found, waiting = set(), set(), [output.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            found.add(type(step).__name__)
            waiting += [before for before, _ in step.next_functions]
    return found


# whose backward raises on CUDA, says torch.use_deterministic_algorithms
RAISING = ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool3D", "FractionalMaxPool", "MaxUnpool", "Upsample")
RAISING += ("ReflectionPad", "GridSampler", "CtcLoss", "NllLoss2D", "MedianBackward1", "Put")


def raising(name: str, stem: str) -> list[str]:
    size = 64 if stem == "imagenet" else 16
    with torch.device("meta"):
        logits = build_model(name, 10, stem=stem)(torch.randn(2, 3, size, size))
    return [step for step in operations(logits) if step.startswith(RAISING)]


def test_no_kind_of_resnet_here_has_a_gradient_without_a_deterministic_form():
    """An average over the whole map is a mean to torch, even in the clothes of AdaptiveAvgPool2d."""
    names = ("resnet8", "resnet18", "resnet50", "resnext50_32x4d")  # of their blocks all others are made
    assert not any(raising(name, stem) for name in names for stem in ("small", "imagenet"))
    assert raising("vgg11", "imagenet") == ["AdaptiveAvgPool2DBackward0"]


def test_an_operation_without_a_deterministic_form_ends_a_run_with_one_line(capsys):
    def refused() -> None:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
        )

    with pytest.raises(SystemExit, match="2"):
        exit_cleanly(refused)
    assert capsys.readouterr().err == (
        "error: --deterministic: adaptive_avg_pool2d_backward_cuda has no deterministic form in torch: take "
        "another network, or leave --deterministic out\n"
    )
    with pytest.raises(RuntimeError, match="other"):
        exit_cleanly(lambda: (_ for _ in ()).throw(RuntimeError("other")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_two_processes_with_the_flag_give_the_same_bits(tmp_path):
    for name in ("a", "b"):
        words = ["main_stage1.py", "--dataset", "digits_lt", "--device", "cuda", "--deterministic"]
        words += ["--epochs", "3", "--seed", "0", *places(tmp_path / name)]
        code, _, error = finished([sys.executable, *words])
        assert code == 0, error
    assert ending(tmp_path / "a")["weights"] == ending(tmp_path / "b")["weights"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_network_without_a_deterministic_form_is_refused_in_one_line(tmp_path):
    list_tree(tmp_path / "data")
    words = ["main_stage1.py", "--dataset", "list", "--data_dir", tmp_path / "data", "--device", "cuda"]
    words += ["--train_list", "train.txt", "--test_list", "test.txt", "--network", "vgg11", "--batch_size"]
    code, _, error = finished([sys.executable, *words, "8", "--deterministic", *places(tmp_path)])
    assert code == 2 and "has no deterministic form in torch" in error.splitlines()[-1]
