"""Faults of the whole program: what cannot be written, killed loaders, NaN, memory; one line, and go on.

Real runs in processes of their own, forked from one that has read the code. A fault comes while the run
stands still (SIGSTOP) in its third epoch.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.file_trees import imagenet_tree
from tests.helpers import HANG, files_below, places, run_folder, wait_until
from utils.base.errors import NoMemoryError, exit_cleanly
from utils.run import checkpoint

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 8
RUN = ("--dataset", "digits_lt", "--epochs", str(EPOCHS), "--seed", "0")
FORKING = """
import json, os, sys, evaluate, main_stage1, main_stage2
from tests.warm import warm
from utils.base.errors import exit_cleanly
warm()
for line in sys.stdin:
    script, words, out, err, before = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = [script + ".py", *words]
        break
    os.write(1, f"started {child}\\n".encode())
    os.write(1, f"{child} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
else:
    os._exit(0)
exec(before)
exit_cleanly({"main_stage1": main_stage1, "main_stage2": main_stage2, "evaluate": evaluate}[script].main)
"""
STAND_STILL = """
import os, signal, torch
def step(self, *given, real=torch.optim.SGD.step, count=[0], **options):
    count[0] += 1
    if count[0] == {0}:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(self, *given, **options)
torch.optim.SGD.step = step
"""
MEMORY = (
    "import resource\n"
    "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    "resource.setrlimit(resource.RLIMIT_AS, (taken + 32 * 2**20,) * 2)\n"
)


@dataclass
class Started:
    """A run under way."""

    pid: int
    out: Path
    err: Path
    answers: object

    def end(self) -> tuple[int, list[str]]:
        """Its exit status and the lines on standard error."""
        while (words := self.answers.readline().split())[0] != str(self.pid):
            pass
        return int(words[1]), self.err.read_text(errors="surrogateescape").splitlines()


class Program:
    """The scripts as a user starts them."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", FORKING], cwd=ROOT, env=environment, **pipes)

    def start(
        self, root: Path, script: str, *words: object, out: Path | None = None, before: str = ""
    ) -> Started:
        """`before` runs in the new process, before the script."""
        out, err = out or root / "stdout", root / "stderr"
        err.unlink(missing_ok=True)
        task = [script, [str(word) for word in words], str(out), str(err), before]
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        while (words := self.process.stdout.readline().split())[0] != "started":
            pass  # of a run whose test failed
        return Started(int(words[1]), out, err, self.process.stdout)

    def run(self, root: Path, script: str, *words: object, **options: object) -> tuple[int, list[str]]:
        return self.start(root, script, *words, **options).end()

    @contextmanager
    def held(
        self, root: Path, *words: object, dataset: str = "digits_lt_IR=50", step: int = 13
    ) -> Iterator[tuple[Started, Path]]:
        """A stage-1 run that stands still in an optimiser step, and its folder; it goes on at the end."""
        before = STAND_STILL.format(step)
        started = self.start(root, "main_stage1", *words, *places(root), before=before)
        status = Path(f"/proc/{started.pid}/stat")
        wait_until(lambda: ") T " in status.read_text(), over=lambda: not status.exists())
        try:
            yield started, run_folder(root, "stage1", dataset)
        finally:
            os.kill(started.pid, signal.SIGCONT)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=HANG)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    program = Program()
    yield program
    program.close()


@pytest.fixture(scope="module")
def unbroken(program, tmp_path_factory) -> Path:
    """The folder of a run without a fault."""
    root = tmp_path_factory.mktemp("unbroken")
    assert program.run(root, "main_stage1", *RUN, *places(root)) == (0, [])
    return run_folder(root, "stage1")


def assert_ends_as(folder: Path, unbroken: Path, *names: str) -> None:
    """The same weights and rows to the bit, a report, and files `names` of the same bytes."""
    ours, theirs = (checkpoint.read(place / "last.pth") for place in (folder, unbroken))
    assert checkpoint.content_digest(ours.state) == checkpoint.content_digest(theirs.state)
    assert ours.facts["progress"] == theirs.facts["progress"]
    for name in ("per_class.csv", *names):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    reports = [json.loads((place / "summary.json").read_text())["test"] for place in (folder, unbroken)]
    assert reports[0] == reports[1]


def resumes_to(program: Program, root: Path, folder: Path, unbroken: Path) -> None:
    assert program.run(root, "main_stage1", "--resume", folder) == (0, [])
    assert_ends_as(folder, unbroken, "metrics.csv")


# ---- logs that cannot be written ----


def test_standard_output_on_a_full_disk_costs_a_warning_and_nothing_else(program, unbroken, tmp_path):
    status, said = program.run(tmp_path, "main_stage1", *RUN, *places(tmp_path), out=Path("/dev/full"))
    assert said == ["warning: standard output cannot be written: No space left on device; the run goes on"]
    assert status == 0
    folder = run_folder(tmp_path, "stage1")
    assert_ends_as(folder, unbroken, "metrics.csv")
    assert (folder / "log.txt").read_text().splitlines()[-1].startswith("test overall=")


def test_a_reader_of_standard_output_that_goes_costs_a_warning(program, unbroken, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    started = program.start(tmp_path, "main_stage1", *RUN, *places(tmp_path), out=tmp_path / "pipe")
    os.set_blocking(reader, True)
    while b"epoch 1/" not in os.read(reader, 100_000):
        pass
    os.close(reader)
    assert started.end() == (0, ["warning: standard output cannot be written: Broken pipe; the run goes on"])
    assert_ends_as(run_folder(tmp_path, "stage1"), unbroken, "metrics.csv")


def test_logs_that_cannot_be_written_cost_a_warning_each(program, unbroken, tmp_path):
    with program.held(tmp_path, *RUN) as (started, folder):
        for name in ("log.txt", "metrics.csv"):
            (folder / name).unlink()
        (folder / "log.txt").symlink_to("/dev/full")
        (folder / "metrics.csv").mkdir()
    status, said = started.end()
    assert status == 0 and sorted(said) == [
        f"warning: {folder}/log.txt cannot be written: it is a pipe or a device, not a file; the run goes on",
        f"warning: {folder}/metrics.csv cannot be written: Is a directory; the run goes on",
    ]
    assert_ends_as(folder, unbroken)
    assert (tmp_path / "stdout").read_text().splitlines()[-1].startswith("test overall=")


def test_what_matters_at_the_end_is_an_error_where_it_cannot_be_written(program, unbroken, tmp_path):
    with program.held(tmp_path, *RUN) as (started, folder):
        (folder / "summary.json").mkdir()
    assert started.end() == (2, [f"error: {folder}/summary.json cannot be written: Is a directory"])
    (folder / "summary.json").rmdir()
    resumes_to(program, tmp_path, folder, unbroken)


def test_names_that_are_no_utf8_on_a_terminal_of_ascii(program, unbroken, tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xce\xb4"))
    root.mkdir()
    # JSON cannot carry such a name to the other process, the place of the run can
    before = f"import os; os.chdir({os.fsencode(root)!r}); sys.stdout.reconfigure(encoding='ascii')"
    before += "; sys.argv += ['--out', os.path.join(os.fsdecode(os.getcwdb()), 'out'), '--ckpt_dir', 'ckpt']"
    assert program.run(tmp_path, "main_stage1", *RUN, before=before) == (0, [])
    folder = run_folder(root, "stage1")
    assert_ends_as(folder, unbroken, "metrics.csv")
    assert "/\\udcff\\u03b4/out" in (tmp_path / "stdout").read_text(encoding="ascii")
    assert "/\\udcffδ/out" in (folder / "log.txt").read_text(encoding="utf-8")
    assert json.loads((folder / "config.json").read_text())["config"]["out"] == str(root / "out")


# ---- checkpoints that cannot be written ----


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For whoever runs this: root, whom permissions do not stop, sees a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mounts = (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder])
    if any(subprocess.run(words, capture_output=True, check=False).returncode for words in mounts):
        pytest.skip("root cannot mount here, and no permission stops it")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def assert_tells_of_a_checkpoint(line: str, folder: Path, reason: str) -> None:
    assert re.fullmatch(
        rf"error: {re.escape(str(folder))}/(last|best)\.pth cannot be written: {reason}", line
    )


def test_a_disk_that_is_full_in_the_middle_ends_with_a_line_and_a_resume_ends_equal(
    program, unbroken, tmp_path
):
    with program.held(tmp_path, *RUN) as (started, folder):
        size = (folder / "last.pth").stat().st_size // 2
        resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    status, said = started.end()
    assert status == 2 and len(said) == 1, said
    assert_tells_of_a_checkpoint(said[0], folder, "File too large")
    assert 0 < checkpoint.read(folder / "last.pth").facts["epoch"] < EPOCHS
    assert not list(folder.glob(".*"))
    resumes_to(program, tmp_path, folder, unbroken)


def test_a_run_folder_that_becomes_read_only_ends_with_a_line_and_a_resume_ends_equal(
    program, unbroken, tmp_path
):
    with ExitStack() as stack:
        with program.held(tmp_path, *RUN) as (started, folder):
            stack.enter_context(read_only(folder))
        status, said = started.end()
    assert status == 2
    assert_tells_of_a_checkpoint(said[-1], folder, "(Read-only file system|Permission denied)")
    assert all(line.startswith("warning: ") for line in said[:-1])
    assert 0 < checkpoint.read(folder / "last.pth").facts["epoch"] < EPOCHS
    resumes_to(program, tmp_path, folder, unbroken)


def test_a_run_folder_that_is_removed_is_made_again(program, unbroken, tmp_path):
    with program.held(tmp_path, *RUN) as (started, folder):
        shutil.rmtree(folder)
    status, said = started.end()
    assert status == 0 and len(said) <= 1, said
    assert_ends_as(folder, unbroken, "metrics.csv")


def test_a_run_folder_whose_place_a_file_takes_ends_with_a_line(program, unbroken, tmp_path):
    with program.held(tmp_path, *RUN) as (started, folder):
        shutil.copytree(folder, tmp_path / "moved")
        shutil.rmtree(folder)
        folder.touch()
    status, said = started.end()
    assert status == 2
    assert_tells_of_a_checkpoint(said[-1], folder, "(File exists|Not a directory)")
    folder.unlink()
    shutil.move(tmp_path / "moved", folder)
    resumes_to(program, tmp_path, folder, unbroken)


@pytest.mark.parametrize("name", ["out", "ckpt"])
def test_a_read_only_folder_is_refused_before_anything_is_written(program, tmp_path, name):
    (tmp_path / name).mkdir()
    with read_only(tmp_path / name):
        status, said = program.run(tmp_path, "main_stage1", *RUN, *places(tmp_path))
    assert status == 2 and len(said) == 1, said
    assert (
        said[0].startswith(f"error: cannot write to {tmp_path}/{name}/digits_lt") and "may write" in said[0]
    )
    assert [path.name for path in files_below(tmp_path)] == ["stderr", "stdout"]


# ---- loaders, NaN, memory ----


def test_a_killed_loader_process_ends_with_a_line_and_a_resume_ends_equal(program, tmp_path):
    imagenet_tree(tmp_path / "data", counts=(60, 30), test_per_class=4, val_per_class=4)
    words = ["--dataset", "imagenet_lt", "--data_dir", tmp_path / "data", "--allow_partial", "--workers", "2"]
    words += ["--network", "resnet8", "--image_size", "32", "--device", "cpu", "--seed", "0"]
    words += ["--epochs", "6", "--batch_size", "8"]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert program.run(whole, "main_stage1", *words, *places(whole)) == (0, [])
    with program.held(tmp_path, *words, dataset="imagenet_lt", step=28) as (started, folder):
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        assert len(children) == 4  # two for each of training and test images
        os.kill(int(children[0]), signal.SIGKILL)
    status, said = started.end()
    assert status == 2 and len(said) == 1 and said[0].startswith("error: a loader process died"), said
    assert 0 < checkpoint.read(folder / "last.pth").facts["epoch"] < 6
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    resumes_to(program, tmp_path, folder, run_folder(whole, "stage1", "imagenet_lt"))


def test_a_loss_that_is_no_number_ends_stage_1_with_a_line_and_last_is_kept(program, tmp_path):
    words = (*RUN, *places(tmp_path), "--lr", "1e30")
    status, said = program.run(tmp_path, "main_stage1", *words)
    assert status == 2 and len(said) == 1, said
    assert (
        "error: the loss is nan at step" in said[0]
        and "what was saved before is as it was; try a lower learning" in said[0]
    )
    assert not list(tmp_path.rglob("*.pth"))
    with program.held(tmp_path, *RUN) as (started, folder):
        os.kill(started.pid, signal.SIGTERM)
    assert started.end() == (143, [])
    source = checkpoint.read(folder / "last.pth")
    for state in source.facts["optimizer"]["state"].values():
        state["momentum_buffer"].fill_(3e38)
    digest = checkpoint.save(folder / "last.pth", source.facts | {"model": source.state})
    status, said = program.run(tmp_path, "main_stage1", "--resume", folder)
    assert status == 2 and len(said) == 1 and "saved before is as it was" in said[0], said
    assert checkpoint.read(folder / "last.pth").digest == digest


def test_a_loss_that_is_no_number_ends_stage_2_with_a_line(program, digits, tmp_path):
    words = ("--dataset", "digits_lt", "--pretrained_pth", digits.stage1, *places(tmp_path), "--seed", "0")
    status, said = program.run(tmp_path, "main_stage2", *words, "--finetune_lr", "1e38")
    assert status == 2 and len(said) == 1, said
    assert "not finite" in said[0] or "loss is" in said[0]
    assert said[0].endswith("nothing was published") and not list((tmp_path / "ckpt").rglob("*.pth"))


@pytest.mark.parametrize("script", ["main_stage1", "main_stage2"])
def test_memory_that_runs_out_is_a_line_that_says_what_to_try(program, digits, tmp_path, script):
    words = ["--dataset", "digits_lt", "--device", "cpu", *places(tmp_path)]
    large = ["--batch_size", "4096", "--network", "resnet32"]
    words += large if script == "main_stage1" else ["--pretrained_pth", digits.stage1]
    words += ["--views", "3000", "--finetune_epoch", "3000"] if script == "main_stage2" else []
    status, said = program.run(tmp_path, script, *words, before=MEMORY)
    assert status == 2 and len(said) == 1, said
    tries = {"main_stage1": "--accum 2", "main_stage2": "fewer --views"}
    assert said[0].startswith("error: out of memory") and f": try {tries[script]}" in said[0]
    assert not list((tmp_path / "ckpt").rglob("*.pth"))


def test_a_file_that_memory_does_not_hold_is_named_in_the_line_that_says_what_to_try(capsys):
    def run() -> None:
        raise NoMemoryError("a.pth cannot be read, memory has run out: unable to mmap 3 bytes")

    with pytest.raises(SystemExit) as caught:
        exit_cleanly(run)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: out of memory, a.pth cannot be read") and ": try " in said


# ---- signals where no step is to be finished ----


def told_during(number: str, where: str) -> str:
    """Code that sends the process a signal when it calls `where`."""
    return f"""
import signal
from utils.report import summary
def meanwhile(*given, real={where}, **options):
    signal.raise_signal(signal.{number})
    return real(*given, **options)
{where} = meanwhile
"""


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGUSR1", 143)])
def test_a_signal_while_there_is_nothing_to_save_is_a_line(program, tmp_path, number, status):
    words = ("--dataset", "digits_lt", "--epochs", "2", *places(tmp_path))
    said = program.run(tmp_path, "main_stage1", *words, before=told_during(number, "main_stage1.load_data"))
    assert said == (status, [f"stopped by {number}: every file that is there is whole"])
    assert not (tmp_path / "out").exists()


def test_a_signal_before_the_first_step_ends_after_it_and_one_in_the_report_lets_it_end(program, tmp_path):
    words = ("--dataset", "digits_lt", "--epochs", "2", "--seed", "0", *places(tmp_path))
    early = told_during("SIGTERM", "summary.announce")
    assert program.run(tmp_path, "main_stage1", *words, before=early) == (143, [])
    folder = run_folder(tmp_path, "stage1")
    last = (folder / "log.txt").read_text().splitlines()[-1]
    assert last.startswith("stopped by a signal after step 1 of epoch 1; go on with: python ")
    late = told_during("SIGTERM", "summary.publish")
    assert program.run(tmp_path, "main_stage1", "--resume", folder, before=late) == (0, [])
    assert (folder / "summary.json").is_file()
