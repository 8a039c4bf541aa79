"""Command lines for people: each that is printed can be run as it stands, from where the user is."""

import os
import re
import shlex
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def command(program: str, *words: object, processes: int = 1) -> str:
    """The line for a shell that runs a script of this project, or a module of it by its dotted name."""
    here = False
    with suppress(OSError):  # a current folder that was removed
        here = Path.cwd() == ROOT
    if not program.endswith(".py"):
        path = "" if here else f"PYTHONPATH={_quoted(str(ROOT))} "
        return f"{path}python -m " + " ".join([program, *map(_quoted, map(str, words))])
    start = ["python"] if processes == 1 else ["torchrun", "--nproc_per_node", str(processes)]
    return " ".join(map(_quoted, [*start, program if here else str(ROOT / program), *map(str, words)]))


def option(name: str, value: object) -> list[str]:
    """An argument as words: a list with commas, a switch alone, a value that begins with - in one word."""
    if value is True:
        return [f"--{name}"]
    values = value if isinstance(value, list) else [value]
    text = ",".join(str(one).removesuffix(".0") if isinstance(one, float) else str(one) for one in values)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _quoted(word: str) -> str:
    """Bytes that no terminal shows are written out."""
    if word.isprintable():
        return shlex.quote(word)
    plain = re.sub(rb"[^\w./-]", lambda byte: b"\\x%02x" % byte[0][0], os.fsencode(word))
    return f"$'{plain.decode()}'"
