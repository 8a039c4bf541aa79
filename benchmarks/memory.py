"""Peak resident memory of both stages and of encode, run as a user runs them. Target: under 2.5 GB.

    python -m benchmarks.memory [--network resnet34] [--seconds 60]

About two and a half minutes: each script runs in a process of its own, on the CPU, for one epoch or for
`--seconds`, whichever ends first. A wide network is asked to end within its first epoch, before it evaluates:
to cover that give more `--seconds` or take a thin network. Stage 2 starts from random weights; everything is
written to a temporary folder. The peak is the system's own record; 1 GB is 10^9 bytes. Needs the CIFAR-100
files. A ResNet-18 encodes photographs and eight times as many, at 64 pixels: its peak should not follow.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.encode import write_photographs
from models import NETWORKS, build_model
from utils.report.table import markdown_lines

TARGET_GB = 2.5
PHOTOGRAPHS = (400, 3200)


def watch(command: list[str], seconds: float, log: Path) -> tuple[float, str]:
    """Run `command` for at most `seconds`; its peak in GB and how it ended.

    Raises:
        SystemExit: the command failed by itself.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=common.ROOT, stdout=output, stderr=subprocess.STDOUT)
    alarm = threading.Timer(seconds, process.terminate)
    alarm.start()
    _, status, used = os.wait4(process.pid, 0)
    stopped = not alarm.is_alive()
    alarm.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not stopped:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-500:]}")
    return used.ru_maxrss * 1024 / 1e9, f"stopped after {seconds:g} s" if stopped else "ran to its end"


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--network", default="resnet34", choices=tuple(NETWORKS))
    parser.add_argument("--seconds", type=common.positive, default=60, help="longest run of each script")
    args = parser.parse_args(argv)
    if not common.has_cifar100(args.data_dir):
        parser.error(f"no CIFAR-100 in {args.data_dir}: the scripts would have to download it first")
    data, what = common.load_cifar100_lt(args.data_dir)
    lines = [["script", "peak resident memory, GB", ""]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(common.fresh_model(args.network, data).state_dict(), folder / "stage1.pth")
        shared = f"--network {args.network} --imb_ratio {common.IMB_RATIO} --device cpu --seed 0".split()
        shared += ["--data_dir", str(args.data_dir.resolve()), "--out", name, "--ckpt_dir", name]
        own = {
            "main_stage1.py": ["--epochs", "1"],
            "main_stage2.py": ["--finetune_epoch", "1", "--pretrained_pth", str(folder / "stage1.pth")],
        }
        commands = {script: [script, *shared, *words] for script, words in own.items()}
        torch.save(build_model("resnet18", 2, stem="imagenet").state_dict(), folder / "encoder.pth")
        for count in PHOTOGRAPHS:
            write_photographs(folder / str(count), count)
            words = ["-m", "utils.features", "encode", "--network", "resnet18", "--image_size", "64"]
            words += ["--weights", str(folder / "encoder.pth"), "--out", f"{folder}/{count}.pack"]
            words += ["--dataset", "folder", "--data_dir", f"{folder}/{count}", "--device", "cpu"]
            commands[f"encode, {count} photographs"] = words
        for script, words in commands.items():
            peak, ending = watch([sys.executable, *words], args.seconds, folder / f"{script}.log")
            verdict = "under" if peak < TARGET_GB else "NOT under"
            lines.append([script, f"{peak:.2f}", f"{ending}; {verdict} {TARGET_GB} GB"])
    title = f"## Memory, {args.network}, {what}, batches of 64"
    common.publish([title, markdown_lines(lines)], args.out)


if __name__ == "__main__":
    main()
