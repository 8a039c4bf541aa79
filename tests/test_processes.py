"""Loader processes: how they start, stay, fail and end, and what they hold."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch

from datasets.images.decode import read_image
from datasets.images.on_disk import FileImages, ViewedFiles
from datasets.types import FileSet, PathTable
from tests.helpers import wait_until
from tests.odd_images import broken_files, file_set, png, readable_files
from tests.test_file_images import COUNT, SMALL, USUAL, gather, view_of
from utils.base.errors import UserError
from utils.base.signals import ASKING

ROOT = Path(__file__).resolve().parent.parent
WITH_TWO_PROCESSES = """
import multiprocessing, os, signal, sys, time, torch
from pathlib import Path
from datasets.images.on_disk import FileImages
from datasets.types import FileSet, PathTable
from tests.test_file_images import COUNT, SMALL
paths = PathTable(sorted(map(os.fsencode, os.listdir(sys.argv[1]))))
files = FileSet(Path(sys.argv[1]), paths, torch.zeros(24, dtype=torch.int64))
images = FileImages(files, SMALL, workers=2)
batches = images.augmented(torch.arange(COUNT).repeat(200), 4, 0, 0)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
"""
ENDS = (
    "os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit(3)",
    "raise RuntimeError",
    "sys.kept = images, batches",
    "sys.kept = images; images.itself = images; next(batches)",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FileSet:
    """24 images of every kind."""
    return file_set(tmp_path_factory.mktemp("files"), readable_files())


def processes() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_stay_for_the_next_pass_and_end_with_close(files):
    before = processes()
    images = FileImages(files, SMALL, workers=2)
    assert processes() == before  # they start with the first batch
    view_of(images)
    started = processes()
    assert len(started - before) == 2
    for view in range(2):
        view_of(images, view=view)
        next(images.batches(4))  # a pass may be left early
    assert processes() == started
    again = view_of(images)
    images.close()
    assert processes() == before
    assert torch.equal(view_of(images), again)
    images.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_pass_ends_the_one_before(files, workers):
    with closing(FileImages(files, SMALL, workers=workers)) as images:
        first = images.batches(4)
        next(first)
        next(images.batches(4))
        with pytest.raises(RuntimeError, match="later series"):
            next(first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["cut.jpg", "text.jpg", "missing.jpg"])
def test_an_unreadable_image_is_named_in_one_line_whichever_process_finds_it(tmp_path, name, workers):
    content = {f"{i}.png": png(i) for i in range(12)}
    files = file_set(tmp_path, content | {name: broken_files().get(name, (b"", ""))[0]})
    path = f"{tmp_path}/{name}"
    if name == "missing.jpg":
        Path(path).unlink()
    with closing(FileImages(files, SMALL, workers=workers)) as images:
        with pytest.raises(UserError) as expected:
            read_image(path)
        for batches in (images.batches(4), images.augmented(torch.arange(13), 4, 0, 0)):
            with pytest.raises(UserError) as caught:
                list(batches)
            assert str(caught.value) == str(expected.value)
        assert len(gather(images.batches(4, 0, 12))) == 12


def test_a_killed_process_is_a_message_that_says_what_to_try(files):
    handler, before = signal.getsignal(signal.SIGCHLD), processes()
    with closing(FileImages(files, SMALL, workers=2)) as images:
        batches = images.augmented(torch.arange(COUNT).repeat(20), 4, 0, 0)
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == handler
        for pid in processes() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="--workers 1 instead of 2"):
            list(batches)
        assert processes() == before


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_to_a_whole_job_leaves_the_loader_processes_at_work(files, number):
    before = processes()
    with closing(FileImages(files, SMALL, workers=2)) as images:
        batches = images.augmented(torch.arange(COUNT).repeat(3), 4, 0, 0)
        next(batches)
        for pid in processes() - before:
            os.kill(pid, number)
        assert len(list(batches)) == -(-3 * COUNT // 4) - 1
        assert len(processes() - before) == 2
    assert processes() == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(ASKING)


def test_no_loader_process_outlives_its_parent_however_that_ends(files):
    with ExitStack() as held:
        line = [sys.executable, "-c"]
        options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        parents = [
            held.enter_context(subprocess.Popen([*line, WITH_TWO_PROCESSES + end, files.root], **options))
            for end in ENDS
        ]
        pids = [int(pid) for parent in parents for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 * len(ENDS)
        for parent in parents:
            parent.wait()
        wait_until(lambda: not any(map(alive, pids)))


def test_no_loader_process_shares_a_lock_that_another_may_be_killed_with(files):
    """torch asks the event by which the processes end at every answer; multiprocessing's own has a lock."""
    with closing(FileImages(files, SMALL, workers=2)) as images:
        next(images.augmented(torch.arange(COUNT), 4, 0, 0))
        asked = images._processes._answers._workers_done_event
        assert not asked.is_set() and not hasattr(asked, "_cond")
    assert asked.is_set()


# a run under each of some limits, in a process of its own that tells what came of it: status, lines, children
UNDER_LIMITS = """
import os, resource, signal, sys, torch
from pathlib import Path
from datasets.images.on_disk import FileImages
from datasets.types import FileSet, PathTable
from tests.test_file_images import COUNT, SMALL, USUAL
from utils.base.errors import exit_cleanly
kind, *limits = sys.argv[2:]
os.chdir(sys.argv[1])
# AVIF's decoder starts a thread of its own, which a limit on processes forbids to --workers 0 as well
paths = PathTable(sorted(os.fsencode(name) for name in os.listdir(".") if "avif" not in name))
files = FileSet(Path("."), paths, torch.zeros(len(paths), dtype=torch.int64))

def look(workers, views=SMALL):
    images = FileImages(files, views, workers=workers)
    for _ in range(2):
        list(images.augmented(torch.arange(len(files)).repeat(4), 16, 0, 0))

def run(workers, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if kind == "files":
        held = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + limit, hard))
    if kind == "processes":
        os.chmod(".", 0o755)
        os.setresuid(54_321, 54_321, 54_321)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    try:
        exit_cleanly(lambda: look(workers, USUAL if kind == "memory" else SMALL))
    finally:  # torch opens files of its own when a process ends
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sys.exit(0)

if kind != "memory":
    look(2)  # nothing is left to import: nobody may not read it
for workers, limit in [(workers, int(limit)) for limit in limits for workers in (0, 1, 3)]:
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(saying, 2)
        os.closerange(said, saying + 1)
        run(workers, limit)
    os.close(saying)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.killpg(child, signal.SIGKILL)
        left = "children"
    except ProcessLookupError:
        left = "none"
    lines = os.fdopen(said).read().splitlines()
    print(workers, limit, status, left, len(lines), *lines)
"""


@pytest.mark.parametrize(
    ("kind", "limits"), [("files", range(5, 26, 5)), ("processes", (1, 2, 3, 5)), ("memory", [1])]
)
def test_loader_processes_that_cannot_work_end_in_one_line_and_without_them_it_works(files, kind, limits):
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    private = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if kind != "files" and os.geteuid() != 0:
        pytest.skip("root alone may become nobody, or mount a small /dev/shm")
    if kind == "memory" and subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm cannot be mounted here")
    line = [*(private if kind == "memory" else []), sys.executable, "-c", UNDER_LIMITS, files.root, kind]
    done = subprocess.run(
        [*map(str, line), *map(str, limits)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split(maxsplit=5) for line in done.stdout.splitlines()]
    assert len(found) == 3 * len(limits)
    refused = 0
    for workers, _, status, left, lines, *text in found:
        assert left == "none"
        if workers == "0" or status == "0":
            assert (status, lines) == ("0", "0"), text
        else:
            refused += 1
            assert (status, lines) == ("2", "1") and "--workers 0, which needs none" in text[0], text
    assert refused > len(limits) / 2


def test_a_process_of_the_users_own_is_asked_to_end_as_ever(tmp_path):
    """Python ends a daemon by SIGTERM, which it may take; loader processes alone are killed."""
    code = (
        "import multiprocessing, pathlib, signal, sys, time\n"
        "import datasets\n"
        "def work(path):\n"
        "    def leave(*_):\n"
        "        path.write_text('goodbye')\n"
        "        sys.exit()\n"
        "    signal.signal(signal.SIGTERM, leave)\n"
        "    path.with_name('ready').touch()\n"
        "    while True: signal.pause()\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "multiprocessing.get_context('fork').Process(target=work, args=(path,), daemon=True).start()\n"
        "while not path.with_name('ready').exists(): time.sleep(0.01)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "said"], cwd=ROOT, check=True)
    assert (tmp_path / "said").read_text() == "goodbye"


def test_a_loader_process_of_inaturalist_holds_arrays_of_32_megabytes():
    paths = [b"train_val2018/Plantae/%d/%032x.jpg" % (i % 8142, i) for i in range(437_513)]
    table = PathTable(paths)
    held = ViewedFiles(FileSet(Path("data"), table, torch.zeros(len(table), dtype=torch.int64)), USUAL)
    assert len(table) == 437_513 and table.nbytes < 32e6
    assert len(pickle.dumps(held)) < table.nbytes + 2000  # no further table
    assert table.raw(437_512) == paths[-1]
