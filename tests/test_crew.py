"""Heads that several processes share: the bits of one process, whatever ends a run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import losses
import main_stage2
from tests.helpers import call, files_below, refusal, run_folder, run_stage2
from tests.stage2 import frozen_features, left_behind, result_lines, same_state, settle
from utils.base.signals import Stopped
from utils.heads import crew
from utils.heads.crew import Crew
from utils.heads.plan import plan_heads
from utils.heads.stack import start_heads, train_heads
from utils.run import checkpoint
from utils.settings.data import scored_parts

ROOT = Path(__file__).resolve().parent.parent
SIX = ("--method", "los,crt,ncm,marc,wb,lws", "--seeds", "0,1", "--finetune_epoch", "4")


@pytest.fixture
def two_processes(monkeypatch) -> None:
    """A crew of two whatever the threads are, and work enough for it."""
    monkeypatch.setattr(crew, "WORTH_STEPS", 1)
    monkeypatch.setattr(main_stage2, "Crew", lambda size, asked: Crew(2, asked))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def at_step_of_a_child(
    step: int, epoch: int, act: Callable[[], None], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process that is there first, `act` comes before that optimiser step of it in that epoch."""
    here, count, now, real, run = os.getpid(), [0], [0], torch.optim.SGD.step, Crew.run_epoch

    def counted(self, *args, **options):
        count[0] += os.getpid() != here
        if count[0] == step and now[0] == epoch:
            with contextlib.suppress(FileExistsError):  # the other one is there already
                marker.mkdir()
                act()
        return real(self, *args, **options)

    def run_epoch(self, heads, epoch, scored):
        now[0] = epoch
        run(self, heads, epoch, scored)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    monkeypatch.setattr(Crew, "run_epoch", run_epoch)


@pytest.mark.parametrize("words", [SIX, (*SIX, "--select", "val"), (*SIX, "--views", "2")])
def test_two_processes_train_the_heads_of_one_to_the_bit(digits, tmp_path, two_processes, monkeypatch, words):
    words = (*words, "--pretrained_pth", digits.stage1)
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    forked = []
    real = Crew.run_epoch
    monkeypatch.setattr(Crew, "run_epoch", lambda *given: (forked.append(given[2]), real(*given)))
    said = run_stage2(shared, *words)
    assert forked == list(range(max(forked) + 1)) and len(forked) >= 4
    monkeypatch.setattr(crew, "WORTH_STEPS", 10**9)
    assert result_lines(run_stage2(alone, *words)) == result_lines(said)
    assert len(forked) == max(forked) + 1
    assert left_behind(run_folder(shared, "stage2"), shared) == left_behind(
        run_folder(alone, "stage2"), alone
    )


def test_the_heads_of_a_crew_are_shared_by_time_and_none_twice(digits, two_processes):
    config = settle(digits, "--method", "all", "--views", "0")
    frozen = frozen_features(digits, "--views", "0")
    scored = scored_parts(frozen.labels, config.select)
    heads = start_heads(plan_heads(config)[0], frozen, scored, config)
    for seconds, head in enumerate(heads):
        head._spent = float(seconds)
    shares = Crew(3)._shares(heads)
    assert sorted(id(head) for share in shares for head in share) == sorted(map(id, heads))
    sums = [sum(head.seconds for head in share) for share in shares]
    assert max(sums) - min(sums) <= 2
    train_heads(heads, frozen, scored, crew=Crew(3))
    again = start_heads(plan_heads(config)[0], frozen, scored, config)
    train_heads(again, frozen, scored)
    assert all(same_state(*pair) for pair in zip(heads, again, strict=True))
    assert all(head.seconds > 0 for head in heads if head.plan.method.trained)


def test_a_head_that_diverges_in_a_crew_ends_alone(digits, tmp_path, two_processes):
    words = ("--method", "los,crt", "--finetune_lr", "0.001,1e38", "--finetune_epoch", "3", "--seed", "0")
    text = run_stage2(tmp_path, *words, "--pretrained_pth", digits.stage1)
    assert text.count(" ended: the loss is nan at step 2: training stopped") == 2
    assert len([line for line in result_lines(text) if "overall" in line]) == 2


class Mistaken(torch.nn.Module):
    """A loss with a mistake in its code: it takes the logits to be of another shape."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.view(3, -1).mean()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_in_the_code_of_a_loss_keeps_its_traceback_and_ends_the_run(
    digits, tmp_path, monkeypatch, capfd, processes
):
    monkeypatch.setitem(losses.LOSSES, "focal", Mistaken)
    monkeypatch.setattr(crew, "WORTH_STEPS", 1)
    monkeypatch.setattr(main_stage2, "Crew", lambda size, asked: Crew(processes, asked))
    words = ("--method", "los,focal", "--finetune_epoch", "2", "--seed", "0", "--views", "0")
    with pytest.raises(RuntimeError, match="see the traceback above" if processes > 1 else "shape") as raised:
        run_stage2(tmp_path, *words, "--pretrained_pth", digits.stage1)
    told = capfd.readouterr().err if processes > 1 else str(raised.traceback[-1].statement)
    assert "return logits.view(3, -1).mean()" in told
    assert not (tmp_path / "ckpt").exists() and not children()


def test_a_head_whose_setting_is_refused_or_that_runs_out_of_memory_ends_alone(digits, tmp_path, monkeypatch):
    class Hungry(Mistaken):
        def forward(self, logits, targets):
            return torch.empty(2**58, dtype=torch.float64).sum()

    monkeypatch.setitem(losses.LOSSES, "bsce", Hungry)
    words = ("--method", "los,ce,bsce", "--label_smooth", "0.5,0", "--path", "2", "--finetune_epoch", "2")
    text = run_stage2(tmp_path, *words, "--seed", "0", "--pretrained_pth", digits.stage1)
    assert "--path has no meaning at δ = 0" in text and "can't allocate memory" in text
    assert [line["method"] for line in result_lines(text)] == ["ce", "los"]


@pytest.mark.parametrize(("step", "epoch"), [(1, 0), (12, 0), (8, 2)])
def test_a_signal_ends_all_processes_after_their_step_and_a_resume_to_the_same_bits(
    digits, tmp_path, two_processes, monkeypatch, step, epoch
):
    words = (*SIX, "--pretrained_pth", digits.stage1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage2(whole, *words)
    parent, before = os.getpid(), children()
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        at_step_of_a_child(step, epoch, lambda: os.kill(parent, signal.SIGTERM), tmp_path / "told", patch)
        run_stage2(cut, *words)
    assert caught.value.code == 143 and children() == before
    folder = run_folder(cut, "stage2")
    said = (folder / "log.txt").read_text().splitlines()[-1]
    assert said.startswith("stopped by a signal after ")
    assert not any(path.name.endswith("_stage2.pth") for path in files_below(cut))
    call(main_stage2.main, *said.partition("main_stage2.py ")[2].split())
    assert left_behind(folder, cut) == left_behind(run_folder(whole, "stage2"), whole)


def test_a_killed_process_of_a_crew_ends_the_run_with_a_line_and_a_resume_ends_equal(
    digits, tmp_path, two_processes, monkeypatch
):
    words = (*SIX, "--pretrained_pth", digits.stage1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage2(whole, *words)
    before = children()
    with monkeypatch.context() as patch:
        at_step_of_a_child(9, 2, lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "killed", patch)
        message = refusal(main_stage2.main, "--dataset", "digits_lt", *outputs(cut), *words)
    assert message.startswith("a process that trains heads died") and "OMP_NUM_THREADS=1" in message
    assert children() == before
    folder = run_folder(cut, "stage2")
    saved = len(checkpoint.read(folder / "last.pth").facts["heads"])
    assert saved in (0, 12)  # epochs this short may not save
    call(main_stage2.main, "--resume", folder)
    assert left_behind(folder, cut) == left_behind(run_folder(whole, "stage2"), whole)


def test_a_run_takes_as_many_processes_as_torch_has_threads_and_one_where_it_saves_within_epochs(
    digits, tmp_path, monkeypatch
):
    sizes, threads = [], torch.get_num_threads()
    monkeypatch.setattr(main_stage2, "Crew", lambda size, asked: (sizes.append(size), Crew(1))[1])
    words = ("--method", "los", "--finetune_epoch", "1", "--views", "0", "--pretrained_pth", digits.stage1)
    torch.set_num_threads(3)
    try:
        run_stage2(tmp_path / "three", *words)
        run_stage2(tmp_path / "one", *words, "--save_every", "10m")
    finally:
        torch.set_num_threads(threads)
    assert sizes == [3, 1]


def outputs(root: Path) -> list[str]:
    return ["--out", str(root / "out"), "--ckpt_dir", str(root / "ckpt")]


def test_the_processes_of_a_crew_end_with_the_run_that_is_killed(digits, tmp_path):
    words = [*SIX[:4], "--finetune_epoch", "2000", "--pretrained_pth", str(digits.stage1)]
    code = (
        "import sys, main_stage2\nfrom utils.heads import crew\ncrew.WORTH_STEPS = 1\n"
        "main_stage2.Crew = lambda size, asked: crew.Crew(2, asked)\nmain_stage2.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "--dataset", "digits_lt", *outputs(tmp_path), *words]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    listed = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    try:
        while len(found := listed.read_text().split()) < 2:
            assert started.poll() is None
            time.sleep(0.002)
    finally:
        started.kill()
        started.wait()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in found):
        assert time.monotonic() < until
        time.sleep(0.01)
