"""Stage 2 on features of iNaturalist's size (437,513 x 2048, 8142 classes): what memory it takes.

    python -m benchmarks.big_pack [--rows 437513] [--seconds 120] [--folder /tmp]

Needs about 4 GB of disk in `--folder`. The features are random, the class counts those of the law at ratio
500. Anonymous memory (RssAnon) is what must fit; pages of the mapped file (RssFile) the system takes back as
it likes. Stage 2 is stopped after `--seconds`, within its first epoch. 1 GB is 10^9 bytes.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.memory import POLL_SECONDS, ROOT, end
from utils.packs.pack import Pack, write_pack

WIDTH, CLASSES, TEST_ROWS, CHUNK = 2048, 8142, 24_426, 8192


def random_features(path: Path, rows: int, seed: int, width: int = WIDTH) -> Tensor:
    """float16 [1, rows, width] in a file of its own, mapped into memory."""
    features = torch.from_file(str(path), shared=True, size=rows * width, dtype=torch.float16)
    features = features.view(1, rows, width)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rows, CHUNK):
        part = features[0, start : start + CHUNK]
        part.copy_(torch.randn(part.shape, generator=generator))
    return features


def long_tailed_labels(rows: int) -> Tensor:
    """Labels int64 [rows] of all classes, frequencies falling by a factor of 500."""
    shares = 500.0 ** (-torch.arange(CLASSES) / (CLASSES - 1))
    counts = (shares / shares.sum() * (rows - CLASSES)).long() + 1
    counts[0] += rows - counts.sum()
    return torch.arange(CLASSES).repeat_interleave(counts)


def make_pack(folder: Path, rows: int) -> Path:
    labels = long_tailed_labels(rows)
    facts = {"dataset": "random", "imb_ratio": None, "network": "features", "num_class": CLASSES}
    facts |= {"class_counts": torch.bincount(labels).tolist(), "class_names": list(map(str, range(CLASSES)))}
    facts |= {"val_source": "none", "val_clean": False, "train_views": "plain", "stage1_digest": None}
    test_labels = torch.arange(TEST_ROWS) % CLASSES
    pack = Pack(
        random_features(folder / "train.bin", rows, seed=0),
        labels,
        random_features(folder / "test.bin", TEST_ROWS, seed=1),
        test_labels,
        None,
        None,
        torch.randn(CLASSES, WIDTH) * 0.02,
        torch.zeros(CLASSES),
        facts,
    )
    write_pack(folder / "pack.safetensors", pack)
    return folder / "pack.safetensors"


def memory_gb(pid: int | str) -> dict[str, float]:
    """Resident anonymous and file-backed memory of a process now; empty where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines if line.startswith(("RssAnon:", "RssFile:")))
    return {name.rstrip(":"): int(kibibytes) * 1024 / 1e9 for name, kibibytes, _ in words}


def watch(command: list[str], seconds: float) -> dict[str, float]:
    """Peaks of both kinds of memory of a command that is stopped after `seconds`."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    peaks, deadline = {}, time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < deadline:
            peaks = {
                name: max(value, peaks.get(name, 0)) for name, value in memory_gb(process.pid).items()
            } or peaks
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    finally:
        end(process)
    return peaks


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--rows", type=common.positive, default=437_513, help="training features")
    parser.add_argument("--seconds", type=common.positive, default=120, help="run of stage 2")
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        pack = make_pack(Path(name), args.rows)
        size = pack.stat().st_size / 1e9
        command = [
            sys.executable,
            "main_stage2.py",
            "--features",
            str(pack),
            "--method",
            "los",
            "--seed",
            "0",
        ]
        command += ["--device", "cpu", "--out", name, "--ckpt_dir", name, "--finetune_epoch", "1"]
        peaks = watch(command, args.seconds)
    title = (
        f"## Stage 2 (los) on {args.rows:,} x {WIDTH} features of {CLASSES} classes, pack of {size:.2f} GB"
    )
    lines = [f"{name}: {value:.2f} GB at its peak" for name, value in peaks.items()]
    common.publish([title, "\n".join(lines)], args.out)


if __name__ == "__main__":
    main()
