"""Whole commands as a user gives them, from the start of Python to its end, each in a process of its own.

The start of main_stage2.py where nothing is to be computed, every method on a released pack, and a sweep of
84 settings of LOS, of which the heads alone are told: what 20 epochs take more than one does, scaled to 20.
"""

import resource
import subprocess
import sys
import tempfile

from benchmarks import common
from benchmarks.common import ROOT, SEED, Bench, Findings, row
from utils.run.checkpoint import RELEASED

START_TARGET, EPOCHS = 1.5, 20  # seconds at most; of the sweep
STARTS = {
    "--method list": ["--method", "list"],
    "--help": ["--help"],
    "a refused argument": ["--imb_ratio", "x"],
}
REFUSED = 2
DELTAS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
RATES = (1e-5, 2e-5, 3e-5, 5e-5, 7e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3)


def whole(*words: str) -> None:
    """Run main_stage2.py to its end; its files go to a folder that is thrown away.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = ["--out", folder, "--ckpt_dir", folder, "--device", "cpu", "--quiet"]
        command = [sys.executable, "main_stage2.py", *words, *(places if "--features" in words else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, REFUSED if words == ("--imb_ratio", "x") else 0):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")


def on_pack(network: str, *words: str) -> list[str]:
    pack = RELEASED / "cifar100_lt" / "IR=100" / f"{network}_features.safetensors"
    return ["--features", str(pack), *words]


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The rows; each whole command names its own network. Those that compute are run once."""
    starts, deltas, rates, epochs, commands = STARTS, DELTAS, RATES, EPOCHS, {}
    if bench.quick:
        starts, deltas, rates, epochs = {"--help": STARTS["--help"]}, DELTAS[:2], RATES[:2], 2
    else:
        every = ["--method", "all", "--seeds", "0,1,2"]
        commands["--method all --seeds 0,1,2, resnet32 pack"] = on_pack("resnet32", *every)
        for name in ("resnet32", "resnet34"):
            words = on_pack(name, "--method", "all", "--select", "val", "--seed", str(SEED))
            commands[f"--method all --select val, {name} pack"] = words
    swept = [",".join(map(str, values)) for values in (deltas, rates)]
    sweep = ["--method", "los", "--label_smooth", swept[0], "--finetune_lr", swept[1]]
    sweep = on_pack("resnet32", *sweep, "--seed", str(SEED), "--finetune_epoch")
    works = {name: lambda words=words: whole(*words) for name, words in starts.items()}
    rows = [
        row(f"main_stage2.py {name}", "-", "s", seconds, target=START_TARGET)
        for name, seconds in common.alternate(works, turns, warm=False).items()
    ]
    before = cpu_seconds()
    works = {name: lambda words=words: whole(*words) for name, words in commands.items()}
    works |= {n: lambda n=n: whole(*sweep, str(n)) for n in (1, epochs)}
    seconds = common.alternate(works, 1, warm=False)
    rows += [row(f"main_stage2.py {name}", "-", "s", seconds[name]) for name in commands]
    heads = (seconds[epochs][0] - seconds[1][0]) * epochs / (epochs - 1)
    settings = f"{len(deltas) * len(rates)} settings of los, {epochs} epochs"
    rows.append(row(f"{settings}, resnet32 pack, heads alone", "-", "s", [max(heads, 0.0)]))
    note = (
        f"commands: those that compute took {cpu_seconds() - before:.0f} s of processor time in all; heads "
        f"alone: a sweep of {epochs} epochs less one of a single epoch, times {epochs}/{epochs - 1}"
    )
    return Findings(rows, [note])


def cpu_seconds() -> float:
    """Processor time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
