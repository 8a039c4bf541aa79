"""`python -m utils.features pack ...`: make a feature pack from arrays."""

import sys
from collections.abc import Sequence

from utils.base.errors import UserError, exit_cleanly
from utils.packs.arrays import main as pack
from utils.settings.commands import command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand `pack`, see `utils.packs.arrays`; raises UserError for another."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] != ["pack"]:
        raise UserError(f"say what to do: pack, see `{command('utils.features', 'pack', '--help')}`")
    pack(words[1:])


if __name__ == "__main__":
    exit_cleanly(main)
