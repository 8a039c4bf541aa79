"""Heads trained as one stack: the numbers of each alone, whatever stands beside it or ends a run."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import losses
import main_stage2
import models
from losses import build_loss
from losses.closed_form import StackedLoss, has_closed_form, written
from losses.focal import FocalLoss
from models.heads import Head
from models.heads.linear import Linear
from tests.helpers import call, files_below, run_folder, run_stage2, stopped_at_step
from tests.stage2 import frozen_features, left_behind, result_lines, same_state, settle, trained
from utils.base.seeding import epoch_order
from utils.engine.loop import cosine_lr
from utils.heads import epochs
from utils.heads.epochs import all_epochs, keep_best, stacks_of, start_heads, train_epoch
from utils.heads.head import HeadRun
from utils.heads.plan import plan_heads
from utils.heads.stack import run_epoch
from utils.report.head_report import head_content

SIX = ("--method", "los,crt,ncm,marc,wb,lws", "--seeds", "0,1", "--finetune_epoch", "4")
SWEEP = ("--method", "los", "--label_smooth", "0.3,0.6,0.9", "--finetune_lr", "0.001,0.01,0.1")
COUNTS = [40, 20, 10, 5, 1]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's CPU threads, which a run takes as many stacks at a time as; puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frozen(digits):
    return frozen_features(digits, "--views", "0")


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_slopes_of_a_stack_are_the_gradients_of_each_loss_alone(name):
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 7, 5, generator=draws, dtype=torch.float64)
    targets = torch.randint(5, (3, 7), generator=draws)
    options = [_needed(name, delta) for delta in (0.0, 0.5, 0.98)]
    if name == "bsce":
        options = [{"tau": tau} for tau in (0.0, 0.5, 2.0)]
    each = [build_loss(name, COUNTS, **words).double() for words in options]
    loss, hits, slope = StackedLoss(each, logits)(logits, targets)
    for h, one in enumerate(each):
        leaf = logits[h].clone().requires_grad_()
        own = one(leaf, targets[h])
        own.backward()
        torch.testing.assert_close(slope[h], leaf.grad, rtol=1e-10, atol=1e-12)
        assert float(loss[h]) == pytest.approx(float(own.detach()), rel=1e-12)
    assert hits.tolist() == (logits.argmax(dim=-1) == targets).sum(dim=-1).tolist()


@pytest.mark.parametrize("scale", [5, 200])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_slopes_in_single_precision_are_right_for_sure_and_wrong_predictions_too(name, scale):
    draws = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(1, 64, 5, generator=draws)
    targets = torch.randint(5, (1, 64), generator=draws)
    loss = build_loss(name, COUNTS, **_needed(name))
    slope = StackedLoss([loss], logits)(logits, targets)[2][0]
    leaf = logits[0].double().requires_grad_()
    loss.double()(leaf, targets[0]).backward()
    assert (slope - leaf.grad).abs().max() < 1e-5 * leaf.grad.abs().max()


def test_torchs_own_cross_entropy_keeps_its_options():
    logits, targets = torch.randn(1, 7, 5), torch.arange(7)[None] % 5
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.9)
    plain, smoothed = (StackedLoss([one], logits)(logits, targets) for one in (build_loss("ce"), loss))
    assert float(smoothed[0]) == pytest.approx(float(loss(logits[0], targets[0])), rel=1e-6)
    assert (plain[2] - smoothed[2]).abs().max() > 0.01


def test_losses_without_a_closed_form_are_those_that_no_class_vectors_describe():
    without = {
        name for name in losses.LOSSES if not has_closed_form(build_loss(name, COUNTS, **_needed(name)))
    }
    assert without >= {"focal", "lade", "wb"}
    assert without.isdisjoint({"ce", "los", "cb", "bsce", "ldam", "label_aware", "power", "los_weighted"})


def _needed(name: str, delta: float = 0.9) -> dict:
    return {"label_smooth": delta} if name in ("los", "los_weighted") else {}


def test_a_stack_of_los_is_what_torch_trains_one_head_after_another(digits, frozen):
    config = settle(digits, *SWEEP, "--finetune_epoch", "3", "--nesterov", "--finetune_wd", "0.01")
    for run in trained(config, frozen)[1:]:
        head = nn.Linear(64, 10)
        head.load_state_dict(frozen.fc.state_dict())
        optimizer = torch.optim.SGD(head.parameters(), 1.0, momentum=0.9, weight_decay=0.01, nesterov=True)
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = cosine_lr(run.plan.lr, epoch, 3)
            for index in epoch_order(run.plan.seed, epoch, 305).split(64):
                logits = head(frozen.train.plain()[index])
                delta = run.plan.options["label_smooth"]
                F.cross_entropy(logits, frozen.train.labels[index], label_smoothing=delta).backward()
                optimizer.step()
                optimizer.zero_grad()
        way = (head.weight - frozen.fc.weight).norm()
        assert (head.weight - run.head.weight).norm() < 1e-5 * way


def test_heads_of_one_kind_and_sampler_go_into_one_stack_with_their_losses_side_by_side(digits, frozen):
    config = settle(digits, *SWEEP, "--seeds", "0,1", "--method", "los,crt,focal", "--gamma", "1,2")
    heads = [HeadRun(plan, frozen, config) for plan in plan_heads(config)[0][1:]]
    names = [[head.loss_kind or head.plan.method.name for head in group] for group in stacks_of(heads)]
    stacks = [Counter(group) for group in names]
    assert stacks == [{"los": 18, ("focal", ("gamma", 1.0)): 6, ("focal", ("gamma", 2.0)): 6}, {"crt": 6}]


@pytest.mark.parametrize("heads", [(), (3,)], ids=["alone", "stacked"])
@pytest.mark.parametrize("name", ["linear", "lws", "whole", "ldam", "etf", "marc", "disalign"])
def test_gradients_that_a_head_writes_out_are_those_that_torch_finds(name, heads):
    draws = torch.Generator().manual_seed(0)
    kind, options = ("lws", {"whole": True}) if name == "whole" else (name, {})
    head = models.HEADS[kind](6, 5, **options)
    for tensor in head.state_dict(keep_vars=True).values():
        tensor.data = torch.randn(*heads, *tensor.shape, generator=draws, dtype=torch.float64)
    features = torch.randn(*heads, 7, 6, generator=draws, dtype=torch.float64)
    slope = torch.randn(*heads, 7, 5, generator=draws, dtype=torch.float64)
    logits, gradients_of = type(head).vjp(head, features)
    expected, torchs = Head.vjp(head, features)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert type(head).vjp is not Head.vjp
    torch.testing.assert_close(gradients_of(slope), torchs(slope), rtol=1e-10, atol=1e-10)


class Doubled(Linear):
    """A user's head that is derived from one with a written gradient and has another forward."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(features)


class DoubledFocal(FocalLoss):
    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(logits, targets)


def test_a_written_gradient_is_not_taken_over_by_a_class_with_another_forward():
    assert written(Linear(6, 5), "vjp") and written(FocalLoss(), "with_slope")
    assert written(Doubled(6, 5), "vjp") is None and written(DoubledFocal(), "with_slope") is None
    logits, targets = torch.randn(2, 7, 5), torch.randint(5, (2, 7))
    slopes = [StackedLoss([kind()] * 2, logits)(logits, targets)[2] for kind in (FocalLoss, DoubledFocal)]
    torch.testing.assert_close(slopes[1], 2 * slopes[0])


@pytest.mark.parametrize("kind", [Doubled, Linear])
def test_a_head_derived_from_another_is_trained_by_its_own_gradient(digits, frozen, monkeypatch, kind):
    monkeypatch.setitem(models.HEADS, "etf", kind)
    config = settle(digits, "--method", "etf", "--finetune_epoch", "1", "--batch_size", "305")
    [head] = trained(config, frozen)[1:]
    other = kind(64, 10)
    other.start(frozen.fc)
    logits = other(frozen.train.plain())
    F.cross_entropy(logits, frozen.train.labels).backward()
    expected = frozen.fc.weight - head.plan.lr * other.weight.grad
    torch.testing.assert_close(head.head.weight, expected, rtol=1e-4, atol=1e-6)


def test_heads_have_the_same_bits_however_they_are_cut_into_stacks(digits, frozen, monkeypatch):
    config = settle(digits, *SWEEP, "--finetune_epoch", "2", "--seeds", "0,1")
    together = trained(config, frozen)
    numbers = 3 * frozen.fc.weight.numel() + 4 * 64 * 10
    for size in (1, 2):
        monkeypatch.setitem(epochs.STACK_BYTES, "cpu", 4 * numbers * size)
        cut = [HeadRun(head.plan, frozen, config) for head in together]
        assert max(map(len, stacks_of(cut))) == size
        cut = trained(config, frozen)
        assert all(same_state(*pair) for pair in zip(together, cut, strict=True))
        assert [head.progress for head in together] == [head.progress for head in cut]


class PlainHead(nn.Module):
    """A head as a user writes it, for features [N, D] alone."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.needs = ()
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))

    @torch.no_grad()
    def start(self, fc: nn.Linear) -> None:
        self.weight.copy_(fc.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        assert features.ndim == 2
        return F.linear(features, self.weight)


class PlainLoss(nn.Module):
    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert logits.ndim == 2
        return F.cross_entropy(logits, targets)


@pytest.mark.parametrize("what", ["head", "loss"])
def test_a_head_or_loss_that_is_not_made_for_stacks_is_trained_alone(digits, frozen, monkeypatch, what):
    name = {"head": "etf", "loss": "focal"}[what]
    monkeypatch.setitem(models.HEADS, "etf", PlainHead)
    monkeypatch.setitem(losses.LOSSES, "focal", PlainLoss)
    config = settle(digits, "--method", name, "--seeds", "0,1", "--finetune_epoch", "2")
    heads = trained(config, frozen)[1:]
    assert [len(group) for group in stacks_of(HeadRun(head.plan, frozen, config) for head in heads)] == [1, 1]
    assert not any(head.failed for head in heads) and not same_state(*heads)


@pytest.fixture(scope="module")
def pack(digits, tmp_path_factory) -> Path:
    """Features that do not depend on the threads of the run that reads them."""
    path = tmp_path_factory.mktemp("pack") / "digits.safetensors"
    words = ("--method", "stage1", "--views", "2", "--seed", "0", "--save_features", path)
    run_stage2(path.parent, "--pretrained_pth", digits.stage1, *words)
    return path


def test_two_threads_train_the_heads_of_one_to_the_bit(tmp_path, pack, threads):
    """Where validation selects; elsewhere a resume after a stop of two threads is compared with one."""
    two, one, words = tmp_path / "two", tmp_path / "one", (*SIX, "--select", "val", "--features", pack)
    threads(2)
    said = run_stage2(two, *words)
    threads(1)
    assert result_lines(run_stage2(one, *words)) == result_lines(said)
    assert left_behind(run_folder(two, "stage2"), two) == left_behind(run_folder(one, "stage2"), one)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_head_that_diverges_in_a_stack_ends_alone(digits, frozen, workers):
    config = settle(digits, "--method", "los,crt", "--finetune_lr", "0.001,1e38", "--finetune_epoch", "3")
    heads = start_heads(plan_heads(config)[0], frozen, ["val"], config)
    for epoch in all_epochs(heads):
        train_epoch(heads, epoch, ["val"], workers=workers)
    assert [head.failed for head in heads] == [False, False, True, False, True]
    assert all("loss is" in head.failure for head in heads if head.failed)
    assert [head.progress.epoch for head in heads] == [0, 3, 0, 3, 0]
    alone = trained(
        settle(digits, "--method", "los", "--finetune_lr", "0.001", "--finetune_epoch", "3"), frozen
    )
    assert same_state(alone[1], heads[1])


class Mistaken(nn.Module):
    """A loss with a mistake in its code: it takes the logits to be of another shape."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.view(3, -1).mean()


@pytest.mark.parametrize("count", [1, 2])
def test_a_mistake_in_the_code_of_a_loss_keeps_its_traceback_and_ends_the_run(
    digits, tmp_path, monkeypatch, threads, count
):
    monkeypatch.setitem(losses.LOSSES, "focal", Mistaken)
    threads(count)
    words = ("--method", "los,focal", "--finetune_epoch", "2", "--seed", "0", "--views", "0")
    with pytest.raises(RuntimeError, match="shape") as raised:
        run_stage2(tmp_path, *words, "--pretrained_pth", digits.stage1)
    assert "return logits.view(3, -1).mean()" in str(raised.traceback[-1].statement)
    assert not (tmp_path / "ckpt").exists()


def test_a_head_whose_setting_is_refused_or_that_runs_out_of_memory_ends_alone(digits, tmp_path, monkeypatch):
    class Hungry(nn.Module):
        def forward(self, logits, targets):
            return torch.empty(2**58, dtype=torch.float64).sum()

    monkeypatch.setitem(losses.LOSSES, "bsce", Hungry)
    words = ("--method", "los,ce,bsce", "--label_smooth", "0.5,0", "--path", "2", "--finetune_epoch", "2")
    text = run_stage2(tmp_path, *words, "--seed", "0", "--pretrained_pth", digits.stage1)
    assert "--path has no meaning at δ = 0" in text and "can't allocate memory" in text
    assert [line["method"] for line in result_lines(text)] == ["ce", "los"]


@pytest.fixture(scope="module")
def whole(pack, tmp_path_factory) -> dict:
    """What a run of six methods leaves that nothing stops."""
    root = tmp_path_factory.mktemp("whole")
    run_stage2(root, *SIX, "--features", pack)
    return left_behind(run_folder(root, "stage2"), root)


@pytest.mark.parametrize("step", [1, 12, 40])
def test_a_signal_ends_all_stacks_of_two_threads_after_their_step_and_a_resume_to_the_same_bits(
    tmp_path, pack, whole, step, threads
):
    cut = tmp_path / "cut"
    threads(2)
    status, said = stopped_at_step(cut, step, lambda: run_stage2(cut, *SIX, "--features", pack))
    threads(1)
    assert status == 143 and said.startswith("stopped by a signal after ")
    assert not any(path.name.endswith("_stage2.pth") for path in files_below(cut))
    call(main_stage2.main, *said.partition("main_stage2.py ")[2].split())
    assert left_behind(run_folder(cut, "stage2"), cut) == whole


def test_an_epoch_cut_off_within_a_stack_goes_on_to_the_same_bits(digits, frozen):
    config = settle(digits, *SWEEP, "--finetune_epoch", "2")
    plans = plan_heads(config)[0][1:]

    def stop() -> None:
        if cut[0].step == 3:
            raise SystemExit

    whole, cut = ([HeadRun(plan, frozen, config) for plan in plans] for _ in range(2))
    run_epoch(whole, 0, ["val"])
    with pytest.raises(SystemExit):
        run_epoch(cut, 0, ["val"], stop)
    resumed = [HeadRun(plan, frozen, config) for plan in plans]
    for head, state in zip(resumed, [head.state() for head in cut], strict=True):
        head.restore(state)
    run_epoch(resumed[4:], 0, ["val"])
    run_epoch(resumed[:4], 0, ["val"])
    assert all(same_state(*pair) for pair in zip(whole, resumed, strict=True))
    assert [head.progress for head in whole] == [head.progress for head in resumed]


def test_a_head_of_a_file_from_before_heads_were_stacked_goes_on_to_the_same_bits(digits, frozen):
    config = settle(digits, *SWEEP, "--finetune_epoch", "2")
    plans = plan_heads(config)[0][1:]
    whole = [HeadRun(plan, frozen, config) for plan in plans]
    run_epoch(whole, 0, ["val"])
    older = [HeadRun(plan, frozen, config) for plan in plans]
    for head, kept in zip(older, whole, strict=True):
        state = kept.state()
        buffers = state.pop("momentum").values()
        state["optimizer"] = {"state": {n: {"momentum_buffer": b} for n, b in enumerate(buffers)}}
        head.restore(state)
    run_epoch(whole, 1, ["val"])
    run_epoch(older, 1, ["val"])
    assert all(same_state(*pair) for pair in zip(whole, older, strict=True))
    with pytest.raises(ValueError, match="within an epoch"):
        older[0].restore({**state, "partial": {"step": 1}})


def test_what_is_saved_of_a_head_holds_no_memory_of_its_stack(digits, frozen):
    config = settle(digits, *SWEEP, "--finetune_epoch", "1", "--select", "val")
    heads = [HeadRun(plan, frozen, config) for plan in plan_heads(config)[0][1:]]
    run_epoch(heads, 0, ["val"])
    keep_best(heads)
    for head in heads:
        state = head.state()
        parts = [state[name] for name in ("weights", "momentum", "best_state")]
        for tensors in (*parts, head_content(frozen.fc, head)["model"]):
            for name, tensor in tensors.items():
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
