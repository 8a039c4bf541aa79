"""Processor, cores, threads, load and versions: what the figures depend on."""

import os
import platform
from datetime import datetime
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision


def processor() -> str:
    """The processor's own name, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def load() -> str:
    """Processes at work, mean of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def facts() -> dict[str, str]:
    """Name -> value, for people and for columns of a table."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }


def machine_line() -> str:
    """The same in a line, with the load now."""
    now = facts()
    return (
        f"{now['processor']}, {now['cores']} cores, {now['threads']} thread(s), {now['instructions']}, load "
        f"at the end {load()}; torch {now['torch']}, torchvision {now['torchvision']}"
    )
