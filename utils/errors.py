"""The one error class for users' mistakes, and the one place where it is caught."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that says what is wrong and what to do."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run `main`; a UserError becomes one line on standard error and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
