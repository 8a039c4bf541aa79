"""Reading a command line: what the user gave, by name, and nothing else."""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from utils.base.errors import UserError, say
from utils.settings.commands import command
from utils.settings.table import ALL, ARGUMENTS, CHECK, EVALUATE, STAGE1, STAGE2, Argument, Mark, arguments_of

__all__ = ["ALL", "ARGUMENTS", "CHECK", "EVALUATE", "STAGE1", "STAGE2", "Parser", "parse"]


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is a UserError, whose help nobody need read to its end, and ~ the user's home.

    A shell expands the home itself in `--out ~/x`, but not in `--out=~/x`.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, _expanded)

    def _print_message(self, message: str, file: object = None) -> None:
        say(*message.splitlines())

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{_help(self.prog)}`)")


def _help(program: str) -> str:
    return command(*program.removeprefix("python -m ").split(), "--help")


def _expanded(text: str) -> Path:
    path = os.path.expanduser(text)
    if path == text and text.startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no user of {text}")
    return Path(path)


def _several(kind: type) -> Callable[[str], object]:
    """A value, or where there are commas, the list of values."""

    def convert(text: str) -> object:
        values = [kind(word) for word in text.split(",")]
        return values if len(values) > 1 else values[0]

    convert.__name__ = kind.__name__
    return convert


def parse(script: str, argv: Sequence[str] | None = None) -> dict:
    """What the user gave, by name; an argument that was not given is absent. `help`: True or "all"."""
    parser = Parser(script, allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False)
    parser.add_argument("-h", "--help", nargs="?", const=True, choices=("all",))
    for argument in ARGUMENTS:
        if script in argument.scripts or (script in ALL and Mark.PUBLIC in argument.marks):
            parser.add_argument(f"--{argument.name}", **_taken(argument))
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_explain_unknown(script, unknown[0]))
    return vars(given)


def _taken(argument: Argument) -> dict:
    """How argparse is to take an argument's value."""
    if argument.kind is bool:
        return {"action": "store_true"}
    return {"type": _several(argument.kind) if argument.sweep else argument.kind, "choices": argument.choices}


def _explain_unknown(script: str, word: str) -> str:
    name = word.removeprefix("--").partition("=")[0]
    for argument in ARGUMENTS:
        if word.startswith("--") and argument.name == name:
            there = " and ".join(argument.scripts)
            return f"--{name} is an argument of {there}, {script} has no use for it"
    here = [argument.name for argument in arguments_of(script)]
    close = difflib.get_close_matches(name.lower(), here, n=1)
    hint = f", did you mean --{close[0]}?" if close else f" (see `{_help(script)}`)"
    return f"unknown argument {word}{hint}"
