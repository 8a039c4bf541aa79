"""Command lines for people: each that is printed can be run as it stands, from where the user is."""

import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.settings.table import arguments_of

if TYPE_CHECKING:
    from utils.settings.config import Config

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


def said(config: "Config", script: str, names: Iterable[str]) -> list[str]:
    """What the user gave of the settings `names` of a configuration, as words of a command of `script`."""
    words = []
    for argument in arguments_of(script):
        name = argument.name
        if name in names and name in config and config.source(name) == "given":
            words += option(name, getattr(config, name))
    return words


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
