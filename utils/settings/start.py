"""How the three scripts begin: help, lists and refusals come before torch, which takes seconds to load."""

from collections.abc import Sequence

from utils.base.errors import exit_cleanly, say
from utils.settings.checks import check_given
from utils.settings.chosen import listing
from utils.settings.config import resolve
from utils.settings.parse import parse

_FROM_FILES = {"resume", "features", "pretrained_pth"}  # with them a file decides what is left open


def asked_for(script: str, doc: str, argv: Sequence[str] | None = None) -> dict:
    """What the user gave, by name, as far as it can be checked without a file; `doc` begins with a summary.

    Raises SystemExit where help or the list of methods was asked for, and is printed.
    """
    given = parse(script, doc.splitlines()[0], argv)
    if given.get("method") == "list":
        say(*listing().splitlines())
        raise SystemExit(0)
    if given.keys() & _FROM_FILES:
        check_given(script, given)
    else:
        resolve(script, given)
    return given


def answer_early(script: str, doc: str) -> None:
    """End here, as `exit_cleanly` says, where the command line is refused or asks for no run."""
    exit_cleanly(lambda: asked_for(script, doc))
