"""The one error class for users' mistakes, and the one place where it is caught."""

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

SECONDS_TO_BE_ENDED = 3


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that says what is wrong and what to do."""


def raise_problem(problem: str) -> NoReturn:
    """What a reader does with a problem unless told to collect them: stop at the first."""
    raise UserError(problem)


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run `main`; a UserError becomes one line on standard error and exit status 2, and so does a file or
    folder that the user may not look into, wherever that shows.

    Under torchrun a mistake that the first process makes too ends the others within a moment: what is still
    there after that has something of its own to say.
    """
    try:
        main()
    except (UserError, PermissionError) as error:
        if isinstance(error, PermissionError):
            error = f"{error.filename}: {error.strerror}"
        who = ""
        if rank := int(os.environ.get("RANK", "0")):
            time.sleep(SECONDS_TO_BE_ENDED)
            who = f" (process {rank})"
        print(f"error{who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
