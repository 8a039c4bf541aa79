"""Tables that a command writes into a page between two marker lines; the text around them is hand-written."""

from pathlib import Path

from utils.base.errors import UserError
from utils.base.files import write_atomically


def marked(name: str, command: str, table: str) -> str:
    """A table between its markers; `table` ends with a newline."""
    return f"<!-- {name}: {command} -->\n{table}<!-- end of {name} -->\n"


def put(page: Path, name: str, command: str, table: str) -> None:
    """Put the table in place of the one that stands between its markers in `page`.

    Raises:
        UserError: the markers are not there, or the page cannot be written.
    """
    start, end = marked(name, command, "|").split("|")
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"{page} lacks the lines {start!r} and {end!r}: put them in")
    text = f"{before}{marked(name, command, table)}{after}"
    write_atomically(page, lambda handle: handle.write(text.encode()))
