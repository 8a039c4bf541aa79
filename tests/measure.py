"""CPU time and peak memory of reading a file, in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# the peak of the address space: that of getrusage holds what the parent had before exec
_SCRIPT = """
import json, re, sys, time
from pathlib import Path
def memory(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
exec(sys.argv[1])
for path in map(Path, sys.argv[2:]):
    before, start = memory("VmRSS"), time.process_time()
    found = read(path)
    seconds, peak = time.process_time() - start, memory("VmHWM")
    print(json.dumps({"seconds": seconds, "megabytes": peak - before, "summary": summary(found)}))
"""


@dataclass(frozen=True)
class Measured:
    """One reading: CPU seconds, peak megabytes above those before it, what `summary` says of the result."""

    seconds: float
    megabytes: float
    summary: list


def measure(code: str, *paths: Path) -> list[Measured]:
    """Run `read(path)` for each path; `code` defines it and `summary(found)`, of numbers."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, code, *map(str, paths)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Measured(**json.loads(line)) for line in done.stdout.splitlines()]
