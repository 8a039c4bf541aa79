"""`make torture`: its rows can be called, its table says what failed, no process is left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from tests import torture, torture_rows
from tests.kills import descendants, finished
from tests.torture_rows import ROWS, NotTried, Row


def row(work: Callable[[Path, int], str]) -> Row:
    return Row("a row", "{} times", 2, 9, work, 1)


def test_every_row_can_be_called_and_tries_more_in_the_long_form():
    assert len({one.what for one in ROWS}) == len(ROWS) >= 20
    assert all(
        callable(one.work) and one.quick <= one.long and "{" in one.tried for one in ROWS if one.long > 1
    )
    assert sum(one.seconds for one in ROWS) < 25 * 60


def test_a_row_by_the_command_line_ends_in_a_table(tmp_path):
    words = [
        sys.executable,
        "-m",
        "tests.torture",
        "--quick",
        "--only",
        "pack cut",
        "--out",
        tmp_path / "t.md",
    ]
    code, out, error = finished([*words, "--only", "pack cut", "--out", tmp_path / "t.md"])
    assert code == 0, error
    assert out == (tmp_path / "t.md").read_text() and "1 rows (quick form), 0 failed" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith("| a pack cut off")
    assert "1/1 a pack cut off" in error and "done in" in error
    with pytest.raises(SystemExit, match="2"):
        torture.main(["--only", "no such row"])


def fail(folder: Path, count: int) -> str:
    raise AssertionError("broken | here")


def leave_processes_behind(folder: Path, count: int) -> str:
    for _ in range(count):
        subprocess.Popen(["sleep", "100"], start_new_session=True)
    return "left"


def hang(folder: Path, count: int) -> str:
    subprocess.run(["sleep", "100"], check=True)
    return "never"


def leave(folder: Path, count: int) -> str:
    raise NotTried("no disk")


def die(folder: Path, count: int) -> str:
    os._exit(3)


@pytest.mark.parametrize(
    ("work", "failed", "found"),
    [
        (fail, True, "AssertionError: broken | here"),
        (leave_processes_behind, False, "left"),
        (hang, True, "not done after 2 s"),
        (leave, False, "not tried: no disk"),
        (die, True, "its process ended"),
    ],
)
def test_a_row_ends_with_what_it_found_and_leaves_no_process_behind(work, failed, found):
    outcome = torture.try_row(row(work), quick=True, limit=2 if work is hang else 60)
    assert (outcome.failed, outcome.found, outcome.tried) == (failed, found, "2 times")
    assert ("**FAILED**" in outcome.line) == failed and outcome.line.count("|") == 4
    assert not descendants(os.getpid())


def test_a_failed_row_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(torture, "ROWS", [row(fail), row(leave)])
    assert torture.main(["--quick"]) == 1
    assert "2 rows (quick form), 1 failed" in capsys.readouterr().out
    monkeypatch.setattr(torture, "ROWS", [row(leave)])
    assert torture.main(["--quick"]) == 0


def test_a_control_fails_where_the_protection_is_there_after_all(tmp_path, monkeypatch):
    monkeypatch.setattr(torture_rows, "unnoticed_flips", lambda folder, count: 0)
    with pytest.raises(AssertionError):
        torture_rows.without_digest(tmp_path, 4)
