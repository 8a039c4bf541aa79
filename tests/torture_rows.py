"""What `make torture` tries, a row each: the functions of the tests with larger counts."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import fuzz, golden
from tests.attacks import limited_attack
from tests.full_disk import full_disks, mounted, save_under_limits, spoilt_in_place
from tests.helpers import places
from tests.kills import TORCHRUN, differences, finished, killed_runs, killed_under_torchrun, stopped_runs
from tests.scoring import Scored
from tests.seeds import seed_runs
from tests.spoil import DATA, cuts, flips, lost_blocks, unnoticed_blocks, unnoticed_flips


class NotTried(Exception):  # noqa: N818 - no error
    """What a row needs is not here."""


@dataclass(frozen=True)
class Row:
    """`work(folder, count)` tries so often and tells what it found; an exception is a failure."""

    what: str
    tried: str  # with the place of the count as {}
    quick: int
    long: int
    work: Callable[[Path, int], str]
    seconds: int  # of the long form, about


# ---- runs that are killed or stopped


def _epochs(count: int) -> int:
    """Enough for every kill to find the run unfinished; an epoch has 5 steps."""
    return max(10, 6 * count // 5)


def _words(stage: int, count: int) -> list[str]:
    if stage == 1:
        return ["--dataset", "digits_lt", "--epochs", str(_epochs(count)), "--seed", "0"]
    line = ["--dataset", "digits_lt", "--pretrained_pth", str(DATA / "v1_stage1.pth")]
    return [*line, "--finetune_epoch", str(_epochs(count))]


def _killed(folder: Path, count: int, script: str, words: list[str], every: int = 1) -> str:
    """Killed while it saves every so many steps, against an unbroken run that saves at the ends of epochs."""
    whole, cut = folder / "whole", folder / "cut"
    killed_runs(whole, [*words, *places(whole)], 0, script)
    killed_runs(cut, [*words, "--save_every", every, *places(cut)], count, script)
    differing = differences(cut, whole)
    assert not differing, f"other than in the unbroken run: {', '.join(differing)}"
    return f"a readable checkpoint after {count} of {count}; weights, rows and tables as unbroken"


def stage1_killed(folder: Path, count: int) -> str:
    return _killed(folder, count, "main_stage1", _words(1, count))


def los_killed(folder: Path, count: int) -> str:
    return _killed(folder, count, "main_stage2", [*_words(2, count), "--seed", "0"])


def _all(epochs: int) -> list[str]:
    words = ["--dataset", "digits_lt", "--pretrained_pth", str(DATA / "v1_stage1.pth"), "--method", "all"]
    return [*words, "--seeds", "0,1", "--finetune_epoch", str(epochs)]


def all_killed(folder: Path, count: int) -> str:
    return _killed(folder, count, "main_stage2", _all(20 if count > 5 else 3), every=10)


def killed_in_place(folder: Path, count: int) -> str:
    words = [*_words(1, 50), "--save_every", "1", *places(folder)]
    try:
        killed_runs(folder, words, count, spoil="files in place")
    except AssertionError as error:
        assert "UserError" in str(error) and "last.pth" in str(error), error
        return "a checkpoint that cannot be read"
    raise AssertionError("every checkpoint could be read: the row above would not notice")


def resumed_without_optimizer(folder: Path, count: int) -> str:
    whole, cut = folder / "whole", folder / "cut"
    words = _words(1, 5)
    killed_runs(whole, [*words, *places(whole)], 0)
    killed_runs(cut, [*words, "--save_every", "1", *places(cut)], count, spoil="no optimiser state")
    assert "weights" in differences(cut, whole), "the same weights: the rows above would not notice"
    return "other weights than unbroken"


def _stopped(folder: Path, count: int, script: str, words: list[str]) -> str:
    whole, cut = folder / "whole", folder / "cut"
    code, _, error = finished([sys.executable, script, *words, *places(whole)])
    assert code == 0, error
    said = stopped_runs([*words, *places(cut)], count, script)
    assert len(said) == count and all(line.startswith("stopped by a signal after ") for line in said)
    differing = differences(cut, whole)
    assert not differing, f"other than in the unbroken run: {', '.join(differing)}"
    return f"status 143 and how to go on, {count} of {count}; weights, rows and tables as unbroken"


def stage1_stopped(folder: Path, count: int) -> str:
    return _stopped(folder, count, "main_stage1.py", _words(1, 5 * count))


def all_stopped(folder: Path, count: int) -> str:
    return _stopped(folder, count, "main_stage2.py", _all(5 * count))


def two_processes_killed(folder: Path, count: int) -> str:
    whole, cut = folder / "whole", folder / "cut"
    words = [*_words(1, 5 * count), "--device", "cpu"]
    code, _, error = finished([*TORCHRUN, "main_stage1.py", *words, *places(whole)])
    assert code == 0, error
    killed_under_torchrun(cut, [*words, "--save_every", "1", *places(cut)], count)
    differing = differences(cut, whole)
    assert not differing, f"other than in the unbroken run: {', '.join(differing)}"
    return f"resumed {count} of {count}; weights, rows and tables as unbroken"


# ---- files


def _flipped(kind: str) -> Callable[[Path, int], str]:
    def work(folder: Path, count: int) -> str:
        found = flips(kind, folder, count)
        assert found >= 0.9 * count
        return f"{found} refused by name; {count - found} in dead bytes, content the same to the bit"

    return work


def _cut(kind: str) -> Callable[[Path, int], str]:
    def work(folder: Path, count: int) -> str:
        total = cuts(kind, folder, count)
        lost = lost_blocks(kind, folder, count)
        assert lost >= 0.9 * count
        return (
            f"{total} of {total} cuts refused by name; {lost} blocks refused, {count - lost} in dead bytes, "
            "content the same"
        )

    return work


def without_digest(folder: Path, count: int) -> str:
    flipped, blocks = unnoticed_flips(folder, count), unnoticed_blocks(folder, count)
    assert min(flipped, blocks) >= 0.75 * count
    return f"{flipped} flips and {blocks} lost blocks read as other weights without a word"


def size_limits(folder: Path, count: int) -> str:
    done = save_under_limits(folder, "atomically", count)
    assert done.returncode == 0 and done.stdout.split() == [str(count)], done.stderr
    return f"old file whole and nothing beside it, {count} of {count}"


def full_disk(folder: Path, count: int) -> str:
    with mounted(folder / "disk") as disk:
        if disk is None:
            raise NotTried("only root may mount a disk")
        kept = full_disks(disk, count)
    assert kept == count
    return f"old file whole and nothing beside it, {kept} of {count}"


def written_in_place(folder: Path, count: int) -> str:
    assert save_under_limits(folder / "limits", "in place", count).returncode != 0
    with mounted(folder / "disk") as disk:
        assert disk is None or spoilt_in_place(disk)
    return "the old file is lost under a limit" + ("" if disk is None else " and on a full disk")


def _fuzzed(target: str) -> Callable[[Path, int], str]:
    def work(folder: Path, count: int) -> str:
        fuzz.TARGETS[target](folder, count)
        return "read, or one line that names the file or argument"

    return work


def _attacked(kind: str) -> Callable[[Path, int], str]:
    def work(folder: Path, count: int) -> str:
        tried, refused, mutations, spoilt, grown = limited_attack(kind, folder, count)
        assert tried == refused
        return (
            f"{refused} of {tried} refused; of {mutations} mutations {spoilt} refused in one line, "
            f"{mutations - spoilt} read; {grown} MB of memory at most"
        )

    return work


def fuzzed_without_reader(folder: Path, count: int) -> str:
    assert fuzz.torch_alone_fails(folder, count)
    return "errors that are not ours"


# ---- the same bits


def seeds(folder: Path, count: int) -> str:
    seed_runs(folder, count)
    return "each seed the same in both, each other than the next, both stages"


def golden_losses(folder: Path, count: int) -> str:
    known, said = json.loads(golden.GOLDEN.read_text()), []
    for stage in ("stage1", "stage2"):
        far, limit = golden.furthest(golden.losses(stage), known[stage]), golden.TOLERANCE[stage]
        assert far < limit, f"{stage}: {far:.1e}"
        said.append(f"{stage} within {far:.1e} (allowed {limit:.0e})")
    return ", ".join(said)


def scored_in_many_ways(folder: Path, count: int) -> str:
    scored = Scored(folder, test_per_class=count)
    ways = dict(scored.ways())
    assert not any(ways.values()), ways
    changed = scored.changed_by_batch_statistics()
    assert changed, "the batch size does not matter to batch statistics: the row would not notice"
    return (
        f"every image once, 0 changed; with batch-norm in training mode (control) {changed} of "
        f"{len(scored.images)}"
    )


WAYS = "{} test images a class: 3 numbers of workers, 4 batch sizes, 2 orders, 2 ranks"
ROWS = [
    Row(
        "SIGKILL in stage 1, saves after every step, resume",
        "{} random moments",
        3,
        50,
        stage1_killed,
        100,
    ),
    Row("the same in stage 2 (los)", "{} random moments", 3, 50, los_killed, 100),
    Row(
        "the same under `--method all --seeds 0,1`, saves after every 10 steps",
        "{} random moments",
        2,
        50,
        all_killed,
        200,
    ),
    Row("control: files written in place", "up to {} kills", 20, 20, killed_in_place, 15),
    Row("control: the optimiser's state not resumed", "{} kills", 2, 5, resumed_without_optimizer, 20),
    Row("SIGTERM through the command line, resume as it says", "{} in one run", 2, 20, stage1_stopped, 130),
    Row("the same in stage 2 (`--method all`)", "{} in one run", 1, 5, all_stopped, 90),
    Row(
        "SIGKILL of both processes under torchrun, resume",
        "{} random moments",
        1,
        5,
        two_processes_killed,
        90,
    ),
    *(
        Row(f"one flipped bit of a {kind}", "{} random places", 500, 5000, _flipped(kind), seconds)
        for kind, seconds in (("checkpoint", 90), ("pack", 20))
    ),
    *(
        Row(
            f"a {kind} cut off; 512 bytes of zeros in it",
            "every record and {0} random lengths; {0} places",
            200,
            2000,
            _cut(kind),
            30,
        )
        for kind in ("checkpoint", "pack")
    ),
    Row("control: torch without the digest", "{0} flips, {0} blocks", 20, 200, without_digest, 10),
    Row("a limit on a file's size", "{} random sizes", 20, 100, size_limits, 12),
    Row("a full disk (tmpfs)", "{} random sizes", 20, 100, full_disk, 10),
    Row("control: the same, written in place", "up to {} sizes", 20, 100, written_in_place, 10),
    *(Row(f"random input: {target}", "{} inputs", 200, 2500, _fuzzed(target), 20) for target in fuzz.TARGETS),
    *(
        Row(f"{what} built to harm, and mutations", "all, {} mutations", 300, 2500, _attacked(kind), 110)
        for what, kind in (("a CIFAR pickle", "cifar"), ("a checkpoint", "checkpoint"))
    ),
    Row("control: torch without our reader", "up to {} inputs", 200, 2500, fuzzed_without_reader, 5),
    Row("a seed in two processes", "{} seeds, both stages", 2, 5, seeds, 70),
    Row("golden losses", "20 of each stage", 1, 1, golden_losses, 5),
    Row("scores", WAYS, 12, 100, scored_in_many_ways, 40),
]
