"""Loader processes: how they start, stay, fail and end, and what they hold."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.utils.data import dataloader

from datasets.images.decode import read_image
from datasets.images.on_disk import FileImages, ViewedFiles
from datasets.types import FileSet, PathTable
from tests.helpers import HANG, wait_until
from tests.kills import alive
from tests.odd_images import broken_files, file_set, png
from tests.test_file_images import SMALL, USUAL, gather, view_of
from utils.base.errors import UserError
from utils.base.signals import ASKING

ROOT = Path(__file__).resolve().parent.parent
ENDS = 6
COUNT = 8
ORDER = torch.arange(COUNT)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FileSet:
    return file_set(tmp_path_factory.mktemp("files"), {f"{i}.png": png(i) for i in range(COUNT)})


def processes() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


def forked(files: FileSet, *asked: str, before: Sequence[str] = ()) -> list[list[str]]:
    """The words of every line that tests/forked_loaders.py prints."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.forked_loaders", str(files.root), *asked],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG,
    )
    return [line.split(maxsplit=5) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def told(files) -> list[list[str]]:
    """What forks say of their ends and under limits, those on processes only where root can set them."""
    return forked(files, "ends", "files:5,15", *["processes:1"] * (os.geteuid() == 0))


def test_processes_stay_for_the_next_pass_and_end_with_close(files):
    before = processes()
    images = FileImages(files, SMALL, workers=2)
    assert processes() == before  # they start with the first batch
    view_of(images, ORDER)
    started = processes()
    assert len(started - before) == 2
    for view in range(2):
        view_of(images, ORDER, view=view)
        next(images.batches(4))  # a pass may be left early
    assert processes() == started
    again = view_of(images, ORDER)
    images.close()
    assert processes() == before
    assert torch.equal(view_of(images, ORDER), again)
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
@pytest.mark.parametrize("name", ["cut.jpg", "missing.jpg"])
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


def test_a_killed_process_is_a_message_that_says_what_to_try(files, monkeypatch):
    # torch looks for dead processes every five seconds: here more often
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    handler, before = signal.getsignal(signal.SIGCHLD), processes()
    with closing(FileImages(files, SMALL, workers=2)) as images:
        batches = images.augmented(ORDER.repeat(20), 4, 0, 0)
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == handler
        for pid in processes() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="--workers 1 instead of 2"):
            list(batches)
        assert processes() == before


def test_a_signal_to_a_whole_job_leaves_the_loader_processes_at_work(files):
    before = processes()
    with closing(FileImages(files, SMALL, workers=2)) as images:
        batches = images.augmented(ORDER.repeat(4), 4, 0, 0)
        next(batches)
        for pid in processes() - before:
            for number in ASKING:
                os.kill(pid, number)
        assert len(list(batches)) == COUNT - 1
        assert len(processes() - before) == 2
    assert processes() == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(ASKING)


def test_no_loader_process_shares_a_lock_that_another_may_be_killed_with(files):
    """torch asks the event by which the processes end at every answer; multiprocessing's own has a lock."""
    with closing(FileImages(files, SMALL, workers=2)) as images:
        next(images.augmented(ORDER, 4, 0, 0))
        asked = images._processes._answers._workers_done_event
        assert not asked.is_set() and not hasattr(asked, "_cond")
    assert asked.is_set()


def test_no_loader_process_outlives_its_parent_however_that_ends_and_the_users_own_is_asked_to(told):
    """Python ends a daemon by SIGTERM, which it may take; loader processes alone are killed."""
    pids = [int(pid) for kind, *pids in told if kind == "ends" for pid in pids]
    assert len(pids) == 2 * ENDS and ["goodbye"] in told
    wait_until(lambda: not any(map(alive, pids)))


def check_refusals(found: list[list[str]], limits: int) -> None:
    """Without loader processes it works; with them it does, or it ends in one line that says so."""
    assert len(found) == 3 * limits
    refused = 0
    for _, workers, status, left, lines, *text in found:
        assert left == "none"
        if workers == "0" or status == "0":
            assert (status, lines) == ("0", "0"), text
        else:
            refused += 1
            assert (status, lines) == ("2", "1") and "--workers 0, which needs none" in text[0], text
    assert refused > limits / 2


@pytest.mark.parametrize(("kind", "limits"), [("files", 2), ("processes", 1)])
def test_loader_processes_under_a_limit_end_in_one_line_and_without_them_it_works(told, kind, limits):
    found = [line for line in told if line[0] == kind]
    if kind == "processes" and not found:
        pytest.skip("root alone may become nobody")
    check_refusals(found, limits)


@pytest.mark.long
def test_loader_processes_under_every_limit_end_in_one_line(files):
    found = forked(files, "files:5,10,15,20,25", "processes:1,2,3,5")
    for kind, limits in (("files", 5), ("processes", 4)):
        check_refusals([line for line in found if line[0] == kind], limits)


def test_loader_processes_without_shared_memory_end_in_one_line(files):
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    private = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if os.geteuid() != 0 or subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm cannot be mounted here")
    check_refusals(forked(files, "memory:1", before=private), 1)


def test_a_loader_process_of_inaturalist_holds_arrays_of_32_megabytes():
    paths = [b"train_val2018/Plantae/%d/%032x.jpg" % (i % 8142, i) for i in range(437_513)]
    table = PathTable(paths)
    held = ViewedFiles(FileSet(Path("data"), table, torch.zeros(len(table), dtype=torch.int64)), USUAL)
    size = table.block.nbytes + table.ends.nbytes
    assert len(table) == 437_513 and size < 32e6
    assert len(pickle.dumps(held)) < size + 2000  # no further table
    assert table.raw(437_512) == paths[-1]
