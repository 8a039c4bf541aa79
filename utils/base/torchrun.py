"""What torchrun tells each process that it starts."""

import os

from utils.base.errors import UserError


def number_of(name: str) -> int:
    """What torchrun says of its processes in a variable of the environment; without torchrun 1, of sizes."""
    given = os.environ.get(name, "1" if name.endswith("WORLD_SIZE") else "")
    if not given.isdecimal() or (name.endswith("WORLD_SIZE") and not int(given)):
        raise UserError(
            f"{name} is {repr(given)[:40] if given else 'not set'}: let torchrun start several processes; "
            "for one, unset WORLD_SIZE"
        )
    return int(given)
