"""Tables that a command writes into a page between two marker lines; the text around them is hand-written."""

from pathlib import Path

from utils.base.errors import UserError
from utils.base.files import write_atomically


def marked(name: str, command: str, table: str) -> str:
    """A table between its markers; `table` ends with a newline."""
    return f"<!-- {name}: {command} -->\n{table}<!-- end of {name} -->\n"


def filled(page: Path, name: str, command: str, table: str) -> str:
    """The text of `page` with the table in place of the one that stands between its markers.

    Raises:
        UserError: the markers are not there.
    """
    start, end = marked(name, command, "|").split("|")
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"{page} lacks the lines {start!r} and {end!r}: put them in")
    return f"{before}{marked(name, command, table)}{after}"


def put(page: Path, name: str, command: str, table: str) -> None:
    """Write the table into the page; raises as `filled`, and where the page cannot be written."""
    text = filled(page, name, command, table)
    write_atomically(page, lambda handle: handle.write(text.encode()))
