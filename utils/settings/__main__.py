"""Write what is generated of the pages: `python -m utils.settings`.

docs/arguments.md, the page of all arguments, and in docs/methods.md the settings of each method's source.
"""

from collections.abc import Iterable
from pathlib import Path

from utils.base.files import write_atomically
from utils.base.pages import filled
from utils.settings.help import shown
from utils.settings.method import ARGUMENTS as OF_TRAINING
from utils.settings.method import Method
from utils.settings.methods import METHODS
from utils.settings.presets import PRESETS, PUBLISHED, THIN_RATES, preset_for
from utils.settings.table import ARGUMENTS, CHECK, DATA, EVALUATE, STAGE1, STAGE2, Argument, Mark, marked

PAGE = Path(__file__).resolve().parents[2] / "docs" / "arguments.md"
METHODS_PAGE = PAGE.with_name("methods.md")
_KINDS_OF_SOURCE = ("published", "second-hand", "ours")
_INTRO = """# All arguments

`python -m utils.settings` writes this page from utils/settings/table.py and utils/settings/presets.py.

What you give wins over the checkpoint or pack that a step starts from, which wins over the default of the
data set. A run prints every value that it ended up with, and where that came from. The public code's
arguments are legal in all three scripts, which note those that they have no use for. Any other argument
without a use is an error.
"""
_SCRIPTS = {STAGE1: "stage 1", STAGE2: "stage 2", EVALUATE: "evaluate", CHECK: "check"}
_KINDS = {bool: "switch", Path: "path", str: "text", int: "whole number", float: "number"}
_BY_DATA = list(PRESETS["cifar100_lt"])
_DEFAULTS = {name: preset_for(name) for name in PRESETS if name != "list"}
_RATES = "; ".join(f"{shown(rate)} at ratio {ratio:g}" for ratio, rate in THIN_RATES.items())
_THIN = preset_for("cifar100_lt", "resnet32") | {"network": "resnet32", "finetune_lr": _RATES}
_OWN = preset_for("") | {"path": "by the [imbalance](features.md)"}
_DEFAULTS |= {"CIFAR, thin": _THIN, "own features": _OWN}


def page() -> str:
    """The page as it should be."""
    lines = [_INTRO]
    for group in dict.fromkeys(argument.group for argument in ARGUMENTS):
        rows = [_row(argument) for argument in ARGUMENTS if argument.group == group]
        lines += [f"## {group[0].upper()}{group[1:]}", ""]
        lines += [*_table(("argument", "takes", "default", "scripts", "meaning"), rows), ""]
    lines += [
        "## Defaults by data set",
        "",
        "`list` has those of `folder`; sets of fewer than 20,000 own images have others, see "
        "[own data](own_data.md). An empty field is not set, but for ",
    ]
    lines[-1] += "`--workers`: then a process takes its share of the cores, less one."
    rows = [(f"`--{name}`", *(shown(own[name]) for own in _DEFAULTS.values())) for name in _BY_DATA]
    lines += ["", *_table(("argument", *_DEFAULTS), rows), "", "## What sets some arguments apart", ""]
    lines += [f"- {mark.value}: {', '.join(f'`--{name}`' for name in marked(mark))}." for mark in Mark]
    return "\n".join(lines) + "\n"


def methods_page() -> str:
    """docs/methods.md with the settings of the methods as they should be, between two marker lines."""
    rows = []
    for method in METHODS.values():
        kinds = {kind: [n for n in method.settings if method.kind(n) == kind] for kind in _KINDS_OF_SOURCE}
        cells = (", ".join(filter(None, (_setting(method, n) for n in names))) for names in kinds.values())
        rows.append((f"`{method.name}`", method.source, *cells))
    table = "\n".join(_table(("method", "source", *_KINDS_OF_SOURCE), rows)) + "\n"
    return filled(METHODS_PAGE, "settings", "python -m utils.settings", table)


def _setting(method: Method, name: str) -> str:
    """A setting in words, nothing of one that is not set; of los and ce as published for CIFAR100-LT."""
    option = OF_TRAINING.get(name, name)
    own = {"finetune_lr": method.lr, "finetune_epoch": method.epochs, "finetune_wd": method.wd}
    own |= {"batch": method.per_batch, "schedule": "cosine"} | method.options
    value = PUBLISHED["cifar100_lt"].get(option) if own[option] is None else own[option]
    ratios = {f"{r:g}": shown(at[option]) for r, at in method.by_ratio.items() if option in at}
    if ratios:
        nearest = f"at the nearest of the ratios {'/'.join(ratios)}"
        return f"{name} {'/'.join(ratios.values())} {nearest}, {shown(value)} without a ratio"
    factors = {factor for factor in method.factors.values() if name == "lr"}
    times = "".join(f" ({', '.join(method.factors)}: times {factor:g})" for factor in factors)
    times += f" ({shown(method.own[option])} on features of your own)" if option in method.own else ""
    return "" if value is None else f"{name} {shown(value)}{times}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _row(argument: Argument) -> tuple[str, ...]:
    takes = ", ".join(f"`{choice}`" for choice in argument.choices or ()) or _KINDS[argument.kind]
    takes += f": {argument.allowed.words}" if argument.allowed else ""
    takes += "; several with commas" if argument.sweep else ""
    default = "by data set" if argument.name in _BY_DATA else shown(argument.default)
    scripts = "all" if argument.scripts == DATA else ", ".join(map(_SCRIPTS.get, argument.scripts))
    return f"`--{argument.name}`", takes, default, scripts, argument.help


if __name__ == "__main__":
    for place, text in ((PAGE, page()), (METHODS_PAGE, methods_page())):
        write_atomically(place, lambda handle, text=text: handle.write(text.encode()))
