"""A declared grid of runs: a TOML file of cells, checked whole before anything runs.

What stands above the first [[cells]] holds for every cell that does not say otherwise. A cell is made for
each of its ratios and stage-1 seeds. Keys:

    dataset, network           as the arguments of the scripts; preset where absent
    imb_ratio, seeds           a value or a list; seeds are those of stage 1
    recipe, stage2             further words of main_stage1.py and of main_stage2.py
    methods                    "all", or a list of names
    stage2_seeds               a value or a list
    select                     "last", "val", "test", or a list of them: a stage 2 each
    views                      "fresh": a new view an epoch; or a number
    features                   a feature pack in place of stage 1 and images; views is then "pack". The pack
                               itself names its data set, its network and its seed
"""

import os
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from utils.base.errors import UserError, reason
from utils.base.files import open_regular
from utils.heads.plan import plan_heads
from utils.packs.pack import read_pack
from utils.reproduce.cell import Cell
from utils.run.checkpoint import RELEASED
from utils.settings.checks import check_against
from utils.settings.commands import option
from utils.settings.config import resolve
from utils.settings.parse import parse
from utils.settings.table import FIXED_BY_CHECKPOINT, INHERITED, STAGE1, STAGE2, Mark, marked

GRIDS = Path(__file__).resolve().parent / "grids"
# key -> may it be a list, the kinds of one value
_KEYS = {
    **dict.fromkeys(("dataset", "network", "recipe", "stage2", "features"), (False, (str,))),
    "views": (False, (str, int)),
    "imb_ratio": (True, (int, float)),
    **dict.fromkeys(("seeds", "stage2_seeds"), (True, (int,))),
    **dict.fromkeys(("methods", "select"), (True, (str,))),
}
_NEEDED = ("seeds", "methods", "stage2_seeds", "select", "views")


def read_grid(name: str, data_dir: Path | None = None, out: Path = Path("output")) -> list[Cell]:
    """The cells of `thin`, `paper` or a file, in its order; every word is checked as the scripts would.

    Their runs are to lie below `out`.
    """
    shipped = {place.stem: place for place in sorted(GRIDS.glob("*.toml"))}
    path = shipped.get(name, Path(os.path.expanduser(name)))
    try:
        with open_regular(path) as handle:
            tables = tomllib.loads(handle.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        known = f"known: {', '.join(shipped)}, or a file"
        raise UserError(f"grid {path} cannot be read: {reason(error)} ({known})") from error
    cells = tables.pop("cells", [])
    if not (isinstance(cells, list) and cells and all(isinstance(cell, dict) for cell in cells)):
        raise UserError(f"grid {path} has no [[cells]]: there is nothing to run")
    found = []
    for number, cell in enumerate(cells, 1):
        try:
            found += _expand(tables | cell, data_dir, out)
        except (UserError, ValueError, RecursionError) as error:
            raise UserError(f"grid {path}, cell {number}: {error}") from error
    names = [cell.name for cell in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"grid {path} names a stage 1 twice: {twice[0]}")
    return found


def _expand(table: dict, data_dir: Path | None, out: Path) -> Iterator[Cell]:
    values = {key: _values(key, value) for key, value in table.items()}
    one = {key: found[0] for key, found in values.items() if not _KEYS[key][0]}
    views, pack = one.get("views"), None
    if ("features" in one) != (views == "pack"):
        raise UserError(f'features and views = "pack" belong together, got views {views!r:.60}')
    if "features" in one:
        place = Path(os.path.expanduser(one["features"]))
        released = RELEASED.parent.parent / place  # a shipped grid runs in any folder
        pack = read_pack(released if released.exists() and not place.exists() else place)
        values.setdefault("seeds", [pack.facts.get("seed") or 0])
    for key in _NEEDED:
        if key not in values:
            raise UserError(f"it needs {key}")
    if pack and len(values["seeds"]) > 1:
        raise UserError(f"a pack is of one stage 1: seeds names {len(values['seeds'])}")
    if views not in ("fresh", "pack") and not isinstance(views, int):
        raise UserError(f'views must be "fresh", "pack" or a number, got {views!r:.60}')
    if ":" in one.get("network", ""):
        of_whom = "is code that no file may choose to run: call the scripts"
        raise UserError(f"network {one['network']!r:.60} {of_whom}")
    extra = [" ".join(one.get(key, "").split()) for key in ("recipe", "stage2")]
    lists = [tuple(values[key]) for key in ("methods", "stage2_seeds", "select")]
    for ratio, seed in product(values.get("imb_ratio", [None]), values["seeds"]):
        named = {key: one[key] for key in ("dataset", "network") if key in one}
        named |= {} if ratio is None else {"imb_ratio": ratio}
        if pack:
            check_against(pack.known, named)
            words = ()
        else:
            named |= {} if data_dir is None else {"data_dir": data_dir}
            words = tuple(word for key, value in named.items() for word in option(key, value))
        cell = Cell(out, words, seed, *extra, *lists, views, pack)
        _check(cell)
        yield cell


def _values(key: str, value: object) -> list:
    if key not in _KEYS:
        raise UserError(f"unknown key {key!r:.60}, known: {', '.join(_KEYS)}")
    several, kinds = _KEYS[key]
    values = value if several and isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{key} is empty")
    if any(type(one) not in kinds or "\0" in str(one) for one in values):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{key} takes {wanted}{', or a list' if several else ''}, got {value!r:.60}")
    if len(set(values)) < len(values):
        raise UserError(f"{key} names a value twice: {value!r:.60}")
    return values


def _check(cell: Cell) -> None:
    """Every word of both stages, and that the free words leave alone what the grid and the runner say."""
    taken = marked(Mark.CELL, Mark.RUNNER)
    for script, key, text in ((STAGE1, "recipe", cell.recipe), (STAGE2, "stage2", cell.stage2_recipe)):
        for name in parse(script, shlex.split(text)):
            if name == "help":
                raise UserError(f"{key} may not ask for help")
            if name in taken:
                raise UserError(f"{key} may not say --{name}: a key of the grid or the runner says it")
    known = cell.pack.known if cell.pack else cell.config().as_dict()
    known = {name: known[name] for name in (*FIXED_BY_CHECKPOINT, *INHERITED) if name in known}
    for select in cell.selections:
        plans, _ = plan_heads(resolve(STAGE2, parse(STAGE2, cell.stage2_words(select)), known))
        settings = Counter(method for method, _ in {(plan.method.name, plan.setting) for plan in plans})
        several = next((method for method, count in settings.items() if count > 1), None)
        if select == "last" and several:  # a table is sorted by its test figures, which must not choose one
            way_out = "name one here, and another in a grid file of its own, which takes the same stage 1"
            raise UserError(f'select "last" chooses no setting of {several}: {way_out}')
