"""The writer of files: whole and read back or not at all, on full disks too; links; remains."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.full_disk import content, full_disks, mounted, save_under_limits, spoilt_in_place
from tests.helpers import HANG, long_form, run_stage2
from tests.test_packs import tiny
from utils.base.errors import UserError
from utils.base.files import MAX_JSON, json_text, read_json, sweep, write_atomically
from utils.packs.pack import write_pack
from utils.run import checkpoint
from utils.settings.commands import ROOT


def test_json_has_null_for_numbers_that_are_not_finite_and_everything_else_as_it_is():
    odd = {"a": [float("nan"), (float("-inf"), 1.5)], "b": {"c": float("inf"), "d": None, "é": True}}
    right = {"a": [None, [None, 1.5]], "b": {"c": None, "d": None, "é": True}}
    assert json.loads(json_text(odd, indent=1), parse_constant=pytest.fail) == right


def test_json_that_is_larger_than_any_of_ours_is_not_parsed(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"test": null}'.ljust(MAX_JSON))
    assert read_json(path) == {"test": None}
    path.write_text("[" + "[]," * (MAX_JSON // 3) + "0]")
    with pytest.raises(ValueError, match="larger than 4 MiB"):
        read_json(path)


@long_form(20, 100)
def test_a_limit_on_a_files_size_at_random_places_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path, count, record_property
):
    done = save_under_limits(tmp_path, "atomically", count)
    assert done.returncode == 0 and done.stdout.split() == [str(count)], done.stderr
    assert save_under_limits(tmp_path / "control", "in place", count).returncode != 0
    record_property("found", f"old file whole and nothing beside it, {count} of {count}; in place it is lost")


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB."""
    with mounted(tmp_path / "disk") as place:
        if place is None:
            pytest.skip("a disk can be mounted by root alone; the limit on a file's size is tested anyway")
        yield place


@long_form(20, 100)
def test_a_full_disk_at_random_places_leaves_the_old_checkpoint_and_nothing_else(
    small_disk, count, record_property
):
    assert full_disks(small_disk, count) == count
    assert spoilt_in_place(small_disk)
    record_property("found", f"old file whole and nothing beside it, {count} of {count}; in place it is lost")


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
        "import os, pathlib, sys; from utils.base.files import write_atomically as w\n"
        "w(pathlib.Path(sys.argv[1]), lambda handle: (handle.write(b'half'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=ROOT, check=False, timeout=HANG)
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


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_follows_the_umask_and_a_replaced_one_keeps_its_mode(tmp_path, umask):
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"before")
    before = os.umask(umask)
    try:
        for mode in (0o600, 0o664, 0o444):
            old.chmod(mode)
            write_pack(old, tiny())  # by a library that opens the file itself
            write_atomically(old, lambda handle: handle.write(b"after"))
            assert stat.S_IMODE(old.stat().st_mode) == mode and old.read_bytes() == b"after"
        write_atomically(new, lambda handle: handle.write(b"new"))
        write_pack(tmp_path / "pack", tiny())
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "pack")} == {0o666 & ~umask}


def test_a_private_file_is_private_while_it_is_written_anew_too(tmp_path):
    path, seen = tmp_path / "secret", []
    path.touch(mode=0o600)
    write_atomically(path, lambda handle: seen.append(stat.S_IMODE(os.stat(handle.name).st_mode)))
    assert seen == [0o600]
