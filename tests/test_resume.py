"""Stage 1 stopped at any step, by a signal or a kill, ends at the bits of the unbroken run."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch

import main_stage1
from tests.helpers import call, places, run_folder, run_stage1, stopped_at_step
from tests.kills import killed_runs, stopped_runs
from utils.base.distributed import ALONE, World
from utils.base.signals import Signals
from utils.engine.loop import Progress
from utils.engine.step import DivergedError
from utils.run import checkpoint
from utils.run.saver import Saver

RUN, SHORT = (("--epochs", epochs, "--seed", "0") for epochs in ("12", "3"))


def digest(folder: Path) -> str:
    return checkpoint.content_digest(checkpoint.read(folder / "last.pth").state)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The run folder of a run that nothing stopped."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("unbroken")
    run_stage1(root, *RUN)
    torch.set_num_threads(before)
    return run_folder(root, "stage1")


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """The same of three epochs."""
    root = tmp_path_factory.mktemp("short")
    run_stage1(root, *SHORT)
    return run_folder(root, "stage1")


def assert_equal_runs(folder: Path, unbroken: Path) -> None:
    assert digest(folder) == digest(unbroken)
    ours, theirs = (checkpoint.read(place / "last.pth").facts for place in (folder, unbroken))
    assert ours["progress"] == theirs["progress"] and "partial" not in ours
    for name in ("metrics.csv", "per_class.csv"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()


def stop_at(root: Path, step: int, *argv: object) -> tuple[int, str]:
    return stopped_at_step(root, step, lambda: run_stage1(root, *argv))


@pytest.mark.parametrize("step", [1, 5, 7])
def test_a_run_stopped_at_any_step_of_an_epoch_resumes_to_the_same_bits_and_rows(tmp_path, short, step):
    code, said = stop_at(tmp_path, step, *SHORT)
    folder = run_folder(tmp_path, "stage1")
    where = f"step {(step - 1) % 5 + 1} of epoch {(step - 1) // 5 + 1}"
    assert code == 143
    assert said.startswith(f"stopped by a signal after {where}; go on with: python main_stage1.py ")
    assert said.endswith(f" --out {tmp_path}/out --ckpt_dir {tmp_path}/ckpt --resume {folder}")
    call(main_stage1.main, *said.partition("main_stage1.py ")[2].split())
    assert_equal_runs(folder, short)


def test_a_best_epoch_that_was_saved_before_a_kill_stays_the_best_where_its_repetition_is_worse(tmp_path):
    stop_at(tmp_path, 7, *SHORT, "--select", "val")
    folder = run_folder(tmp_path, "stage1")
    best = checkpoint.read(folder / "best.pth")
    progress = best.facts["progress"] | {"best_epoch": 2, "best_score": 1.0}
    checkpoint.save(folder / "best.pth", best.facts | {"model": best.state, "epoch": 2, "progress": progress})
    call(main_stage1.main, "--resume", folder, *places(tmp_path))
    assert checkpoint.read(folder / "last.pth").facts["progress"]["best_epoch"] == 2
    [left] = (tmp_path / "ckpt").glob("**/*_stage1.pth")
    assert checkpoint.read(left).facts["epoch"] == 2


def test_sigterm_at_a_random_step_through_the_command_line_says_how_to_go_on(tmp_path, unbroken):
    """tests/test_torture.py stops and kills a run many times."""
    [said] = stopped_runs(["--dataset", "digits_lt", *RUN, *places(tmp_path)], stops=1)
    assert re.match(r"stopped by a signal after (step \d of )?epoch \d+; go on with: python", said)
    assert_equal_runs(run_folder(tmp_path, "stage1"), unbroken)


def test_sigkill_at_random_moments_twice_with_saves_after_every_step(tmp_path, unbroken):
    words = ["--dataset", "digits_lt", *RUN, "--save_every", "1", *places(tmp_path)]
    assert_equal_runs(killed_runs(tmp_path, words, kills=2), unbroken)


def test_without_the_optimisers_state_a_resumed_run_ends_elsewhere(tmp_path, short, monkeypatch):
    stop_at(tmp_path, 7, *SHORT)
    monkeypatch.setattr(torch.optim.SGD, "load_state_dict", lambda self, state: None)
    folder = run_folder(tmp_path, "stage1")
    call(main_stage1.main, "--resume", folder)
    assert digest(folder) != digest(short)


def test_auto_takes_the_newest_unfinished_run_of_this_configuration_else_a_fresh_one(tmp_path):
    stop_at(tmp_path, 7, *SHORT)
    cut = run_folder(tmp_path, "stage1")
    for name, target in (("nothing", "absent"), ("loop", "loop")):  # what lies beside it is no run
        (cut.parent / name).symlink_to(target)
    spoilt = (cut / "config.json").read_bytes()
    for name, content in (("flipped", b"\xfb" + spoilt[1:]), ("deep", b"[" * 100_000), ("none", None)):
        (cut.parent / name).mkdir()
        (cut.parent / name / "last.pth").write_bytes(b"")
        if content:
            (cut.parent / name / "config.json").write_bytes(content)
        else:
            os.mkfifo(cut.parent / name / "config.json")
    text = run_stage1(tmp_path, *SHORT, "--lr", "0.05", "--resume", "auto")
    assert "--resume auto: no unfinished run of this configuration, this is a fresh one" in text
    text = run_stage1(tmp_path, *SHORT, "--resume", "auto")
    assert f"resumed {cut} at step 2 of epoch 2" in text and f"run folder {cut}" in text
    text = run_stage1(tmp_path, *SHORT, "--resume", "auto")
    assert "this is a fresh one" in text and f"run folder {cut}\n" not in text
    assert len(list(cut.parent.iterdir())) == 3 + 5


def test_a_resume_on_another_machine_says_what_differs_and_takes_a_file_of_a_code_with_more_options(tmp_path):
    stop_at(tmp_path, 7, *SHORT)
    folder = run_folder(tmp_path, "stage1")
    source = checkpoint.read(folder / "last.pth")
    facts, args = source.facts, source.facts["args"] | {"force_resume": False}
    environment = facts["environment"] | {"threads": 77, "torch": "0.1"}
    other = {"model": source.state, "environment": environment, "args": args}
    checkpoint.save(folder / "last.pth", facts | other)
    text = call(main_stage1.main, "--resume", folder)
    assert "the last bits may differ from the unbroken run's: threads was 77" in text
    assert "the last bits may differ from the unbroken run's: torch was 0.1" in text


@pytest.mark.parametrize(("every", "saves"), [("1", 6), ("4", 1), ("7", 0), (None, 0), ("1m", 0)])
def test_a_run_saves_every_so_many_steps(every, saves):
    saved = []
    saver = Saver(None, "main_stage1.py", Signals(), ALONE, every)
    saver.keeps(lambda: saved.append(saver.done), lambda: "")
    for _ in range(6):
        saver.after_step()
    assert len(saved) == saves
    saver.saved_at -= 61
    saver.after_step()
    assert len(saved) == saves + (every in ("1", "1m", "7"))


@pytest.mark.parametrize(("every", "saves"), [(None, 1), ("1000", 2)])
def test_an_epoch_shorter_than_ten_saves_is_saved_where_the_user_names_an_interval(every, saves):
    saved = []
    saver = Saver(None, "main_stage2.py", Signals(), ALONE, every)
    saver.keeps(lambda: saved.append(1), lambda: "")
    saver.after_epoch(saved=False)
    saver.cost = 3600.0  # seconds that this save is said to have taken: no machine is so busy
    saver.after_epoch(saved=False)
    assert len(saved) == saves
    saver.saved_at -= 10 * 3600
    saver.after_epoch(saved=True)
    assert len(saved) == saves
    saver.after_epoch(saved=False)
    assert len(saved) == saves + 1


def test_nothing_is_saved_after_a_loss_that_is_not_finite():
    progress = Progress()
    progress.add(torch.tensor(float("nan")), torch.tensor(1), 2)
    with pytest.raises(DivergedError):
        progress.partial()


def test_fewer_processes_take_over_what_the_others_had_done():
    """In a file of before, with a number a batch; files of now have one sum a process."""
    stored = {"step": 2, "counts": torch.tensor([[2, 8], [1, 4], [1, 3]])}
    stored |= {"losses": torch.arange(4.0), "hits": torch.arange(4)}
    cpu = torch.device("cpu")
    first, second, alone, again = (Progress() for _ in range(4))
    first.go_on(stored, World(0, 2), cpu)
    second.go_on(stored, World(1, 2), cpu)
    assert (first.step, first.images, second.images) == (2, 11, 4)
    assert (first.loss, first.hits, second.loss, second.hits) == (4, 4, 2, 2)
    alone.go_on(stored, ALONE, cpu)
    again.go_on(alone.partial(), ALONE, cpu)
    assert again.figures() == alone.figures() == {"train_loss": 6 / 15, "train_accuracy": 6 / 15}


def test_another_threads_signal_handlers_are_left_alone():
    seen = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: seen.append(Signals().__enter__().asked))
    thread.start()
    thread.join()
    assert seen == [0] and signal.getsignal(signal.SIGTERM) == before
