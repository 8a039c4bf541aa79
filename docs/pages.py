"""Tables that a command writes into a page between two marker lines; the text around them is hand-written."""

from pathlib import Path

from utils.base.errors import UserError
from utils.base.files import write_atomically


def marked(name: str, command: str, table: str) -> str:
    """A table between its markers; `table` ends with a newline."""
    return f"{_start(name, command)}{table}{_end(name)}"


def put(page: Path, name: str, command: str, table: str) -> None:
    """Put the table in place of the one that stands between its markers in `page`.

    Raises:
        UserError: the markers are not there, or the page cannot be written.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(_start(name, command))
    _, end, after = rest.partition(_end(name))
    if not end:
        raise UserError(f"{page} lacks the lines {_start(name, command)!r} and {_end(name)!r}: put them in")
    text = f"{before}{start}{table}{end}{after}"
    write_atomically(page, lambda handle: handle.write(text.encode()))


def _start(name: str, command: str) -> str:
    return f"<!-- {name}: {command} -->\n"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->\n"
