"""Bad inputs of the whole program: a row an input, with the one line that it must end in.

A row names a script, its words ({root} is the row's own folder, {bad} the file that `make` spoils there, the
rest are the sound things of the Kitchen), and what the line says, as a regular expression.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import evaluate
import main_stage1
import main_stage2
from datasets import check, to_folder
from utils.export.__main__ import main as export_main
from utils.features.__main__ import main as features_main
from utils.plots import drawing
from utils.settings.parse import CHECK, EVALUATE, STAGE1, STAGE2

FOLDER, PACK, PLOTS = "datasets.to_folder", "utils.features", "utils.plots"
EXPORT = "utils.export"
MAINS = {
    STAGE1: main_stage1.main,
    STAGE2: main_stage2.main,
    EVALUATE: evaluate.main,
    CHECK: check.main,
    FOLDER: to_folder.main,
    PACK: features_main,
    PLOTS: drawing.main,
    EXPORT: export_main,
}
_HASHED = 1 << 22  # bytes; of larger files, which are holes, size and time tell


@dataclass(frozen=True)
class Kitchen:
    """Sound inputs, made once, which every row leaves as they are."""

    stage1: Path  # checkpoints and the run folder of Digits-LT
    stage2: Path
    run: Path
    pack: Path
    pets: Path  # class folders, and a checkpoint of them
    pets1: Path
    lists: Path
    inat: Path
    imagenet: Path
    tables: Path  # a run folder of stage 2 to draw


Make = Callable[[Path, Kitchen], object]


@dataclass(frozen=True)
class Row:
    """`started`: it can be known only after the run folder is there. `listed`: standard output says it.

    `unprivileged`: root's power over permissions is laid down. `program`: run as a file as well.
    """

    id: str
    script: str
    words: str | tuple[str, ...]
    expected: str
    make: Make | None = None
    started: bool = False
    listed: bool = False
    unprivileged: bool = False
    program: bool = False

    def argv(self, root: Path, kitchen: Kitchen) -> list[str]:
        """The command line, which keeps what it writes below `root`."""
        words = self.words.split() if isinstance(self.words, str) else self.words
        known = vars(kitchen) | {"root": root, "bad": root / "bad"}
        argv = [word.format(**known) for word in words]
        if self.script in (STAGE1, STAGE2, EVALUATE):
            for option, place in (("--out", "out"), ("--ckpt_dir", "ckpt")):
                argv += [] if option in argv else [option, str(root / place)]
        return argv


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, size, and content or the link's target, by its path."""
    found = {}
    for path in (Path(top, name) for top, below, files in os.walk(folder) for name in (*below, *files)):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(status.st_mode):
            small = status.st_size < _HASHED
            content = hashlib.sha256(path.read_bytes()).hexdigest() if small else status.st_mtime_ns
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        found[str(path)] = (stat.S_IFMT(status.st_mode), size, content)
    return found
