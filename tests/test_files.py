"""The writer of files: whole and read back or not at all, on full disks too; links; remains."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import checkpoint_content, run_stage2
from utils import checkpoint
from utils.errors import UserError
from utils.files import sweep, write_atomically

SIZES = 20
ROOT = Path(__file__).resolve().parent.parent
UNDER_A_LIMIT = """
import resource, signal, sys, torch
from pathlib import Path
from utils import checkpoint
from utils.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, in_place = Path(sys.argv[1]), sys.argv[2] == "in place"
content = torch.load(sys.argv[3], weights_only=True)
refused = 0
for limit in map(int, sys.argv[4:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        torch.save(content, path) if in_place else checkpoint.save(path, content)
    except UserError as error:
        assert "x.pth cannot be written: File too large" in str(error), error
        refused += 1
    except RuntimeError:
        refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if checkpoint.load_plain(path)["epoch"] != 3 or len(list(path.parent.iterdir())) != 1:
        sys.exit("the old file is not what it was")
print(refused)
"""


def content(size: int = 60_000, **facts) -> dict:
    draw = torch.Generator().manual_seed(size)
    return checkpoint_content({"fc.weight": torch.randn(size, generator=draw)}, **facts)


def limits_below(size: int) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(size) for _ in range(SIZES)]


def save_under_limits(tmp_path: Path, how: str) -> subprocess.CompletedProcess:
    place = tmp_path / "place"
    checkpoint.save(place / "x.pth", content())
    torch.save(content(epoch=4), tmp_path / "new")
    limits = map(str, limits_below((place / "x.pth").stat().st_size))
    words = [sys.executable, "-c", UNDER_A_LIMIT, place / "x.pth", how, tmp_path / "new", *limits]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


def test_a_file_size_limit_at_20_random_places_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    done = save_under_limits(tmp_path, "atomically")
    assert done.returncode == 0 and done.stdout.split() == [str(SIZES)], done.stderr


def test_the_same_limits_spoil_a_file_that_is_written_in_place(tmp_path):
    assert save_under_limits(tmp_path, "in place").returncode != 0


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root alone; the limit on a file's size is tested anyway")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave about `left` bytes on the disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - left)))


def test_a_full_disk_at_20_random_places_leaves_the_old_checkpoint_and_nothing_else(small_disk):
    path = small_disk / "x.pth"
    digest = checkpoint.save(path, content())
    for left in limits_below(path.stat().st_size):
        fill(small_disk, left)
        with pytest.raises(UserError, match=r"x\.pth cannot be written: No space left on device"):
            checkpoint.save(path, content(epoch=4))
        (small_disk / "filler").unlink()
        assert [entry.name for entry in small_disk.iterdir()] == ["x.pth"]
        assert checkpoint.read(path).digest == digest


def test_a_full_disk_spoils_a_file_that_is_written_in_place(small_disk):
    path = small_disk / "x.pth"
    checkpoint.save(path, content())
    fill(small_disk, 0)
    with pytest.raises(Exception):  # noqa: B017
        torch.save(content(size=120_000), path)
    with pytest.raises(UserError, match=r"x\.pth"):
        checkpoint.read(path)


def test_a_file_that_does_not_read_back_never_takes_the_old_ones_place(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    digest = checkpoint.save(path, content())
    whole = torch.save

    def save_with_a_flipped_bit(value, handle):
        weight = value["model"]["fc.weight"].clone()
        weight.view(torch.int32)[77] ^= 1
        whole(value | {"model": value["model"] | {"fc.weight": weight}}, handle)

    monkeypatch.setattr(torch, "save", save_with_a_flipped_bit)
    with pytest.raises(UserError, match=r"x\.pth does not read back as it was written"):
        checkpoint.save(path, content(epoch=4))
    assert checkpoint.read(path).digest == digest and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyboardInterrupt()])
def test_an_exception_inside_a_save_leaves_the_old_file_and_no_temporary(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")

    def fail(handle):
        handle.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "x", fail)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_a_link_is_followed_and_stays_and_a_loop_a_folder_or_a_pipe_is_refused(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "y").write_bytes(b"old")
    (tmp_path / "x").symlink_to(tmp_path / "far" / "y")
    (tmp_path / "dangling").symlink_to(tmp_path / "far" / "new")
    for name in ("x", "dangling"):
        write_atomically(tmp_path / name, lambda handle: handle.write(b"new"))
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert len(list((tmp_path / "far").iterdir())) == 2
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "folder", "pipe"):
        with pytest.raises(UserError, match=f"{name} cannot be written"):
            write_atomically(tmp_path / name, lambda handle: handle.write(b"new"))
    assert (tmp_path / "pipe").is_fifo() and not list(tmp_path.rglob("*.los-part"))


def test_odd_names_are_written_and_read(tmp_path):
    for raw in (b"\xff\xfe.pth", b"a\nb.pth", "ä".encode() * 125, b".", b"x" * 250):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw))
        if path == tmp_path:
            with pytest.raises(UserError, match="cannot be written: Is a directory"):
                checkpoint.save(path, content(5))
            continue
        digest = checkpoint.save(path, content(5))
        assert checkpoint.read(path).digest == digest


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.pth cannot be written"):
        checkpoint.save(tmp_path / "file" / "x.pth", content(5))


def test_the_sweep_takes_old_temporaries_of_ours_and_nothing_else(tmp_path):
    ours, fresh = tmp_path / ".last.pth.abcd_123.los-part", tmp_path / ".last.pth.abcd_124.los-part"
    others = [tmp_path / name for name in ("last.pth", ".last.pth.abcd1234.part", "a.abcd_123.los-part")]
    for path in (ours, fresh, *others):
        path.write_bytes(b"x")
    folder, link = tmp_path / ".f.abcd_125.los-part", tmp_path / ".l.abcd_126.los-part"
    folder.mkdir()
    link.symlink_to(others[0])
    for path in (ours, *others, folder):
        os.utime(path, (time.time() - 4000,) * 2)
    assert sweep(tmp_path) == [ours]
    assert all(path.exists() for path in (fresh, *others, folder, link)) and not ours.exists()
    assert sweep(tmp_path / "absent") == []


def test_a_run_sweeps_its_folders_at_its_start(digits, tmp_path):
    stale = tmp_path / "ckpt" / "digits_lt" / "IR=50" / ".resnet8_stage2.pth.abcd1234.los-part"
    stale.parent.mkdir(parents=True)
    for name, age in ((stale, 7200), (stale.with_name(".x.pth.abcd1234.los-part"), 0)):
        name.write_bytes(b"half")
        os.utime(name, (time.time() - age,) * 2)
    run_stage2(tmp_path, "--pretrained_pth", digits.stage1, "--finetune_epoch", "1", "--seed", "0")
    assert not stale.exists() and stale.with_name(".x.pth.abcd1234.los-part").exists()


def test_a_writer_that_is_killed_leaves_only_what_the_sweep_takes(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    code = (
        "import os, pathlib, sys; from utils.files import write_atomically as w\n"
        "w(pathlib.Path(sys.argv[1]), lambda handle: (handle.write(b'half'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=ROOT, check=False, timeout=60)
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    assert len(sweep(tmp_path, older_than=-1)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_weights_that_change_while_they_are_saved_do_not_take_the_old_files_place(tmp_path, monkeypatch):
    path, value = tmp_path / "x.pth", content(epoch=4)
    digest = checkpoint.save(path, content())
    whole = torch.save

    def save_what_has_just_changed(given, handle):
        value["model"]["fc.weight"][77] += 1
        whole(given, handle)

    monkeypatch.setattr(torch, "save", save_what_has_just_changed)
    with pytest.raises(UserError, match=r"x\.pth does not read back as it was written"):
        checkpoint.save(path, value)
    assert checkpoint.read(path).digest == digest
