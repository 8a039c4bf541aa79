"""Which device a run uses, and what it runs on, for the record."""

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from utils.base.distributed import ALONE, World
from utils.base.errors import UserError
from utils.base.torchrun import number_of

# how networks and images lie in memory: a fixed choice, since it decides the last bits
LAYOUT = torch.channels_last


def pick_device(
    name: str, gpu: int | None = None, world: World = ALONE, deterministic: bool = False
) -> torch.device:
    """`auto` takes CUDA, else the CPU; of several processes each takes a CUDA device.

    `deterministic`: torch is set so that a CUDA device repeats its bits, until the process ends.
    """
    if deterministic:
        # before CUDA starts; what has no such form raises, and `exit_cleanly` makes a line of it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if gpu is not None:
        name = f"cuda:{gpu}"
    if world.size > 1 and name.startswith("cuda:"):
        raise UserError(f"{name} for {world.size} processes: leave the number out, each takes a device")
    if world.size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{world.local_rank}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = "take auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not a device: {known}") from error
    if device.type == "cuda":
        found = torch.cuda.device_count()
        # torch keeps the number in a byte: 257 comes out as 1
        if str(device) != name or (device.index or 0) >= found:
            raise UserError(f"--device {name}, but torch sees {found} CUDA devices: try --device cpu")
        device = torch.device("cuda", device.index or 0)  # set_device takes none without a number
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"--device {name} is not supported: {known}")
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can have there at most: what is free, within its container; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found, group = [], (r"^(\d+)", "/sys/fs/cgroup/memory.max", 1)
    for pattern, path, unit in (r"MemAvailable: +(\d+)", "/proc/meminfo", 1024), group:
        with suppress(OSError):
            found += (unit * int(number) for number in re.findall(pattern, Path(path).read_text()))
    return min(found, default=None)


def environment(device: torch.device) -> dict:
    """Versions, hardware and settings, plain data: what a run's bits depend on beside its configuration."""
    convolutions, products = (
        (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
        if device.type == "cuda"
        else (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": number_of("WORLD_SIZE"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),  # to import it takes seconds
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
        "layout": str(LAYOUT).removeprefix("torch."),
        "float32_convolutions": convolutions.fp32_precision,
        "float32_products": products.fp32_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
