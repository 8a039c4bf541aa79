"""The methods that a command line names: those of the table, and a user's own."""

import difflib
import re

from losses import LOSSES
from models import HEADS
from utils.base.errors import UserError
from utils.base.lazy import current_folder_first, named_function, one_line
from utils.settings.method import Method
from utils.settings.methods import METHODS, OPTIONS


def chosen_methods(text: str) -> list[Method]:
    """The methods that `--method` names; `all` puts the control rows first."""
    names = METHODS if text == "all" else dict.fromkeys(name.strip() for name in text.split(","))
    for name in names:
        if name in ("all", "list"):
            raise UserError(f"--method {name} stands alone, without other names")
        if name not in METHODS and ":" not in name:
            lower = name.lower()
            near = [lower] if lower in METHODS else difflib.get_close_matches(lower, METHODS)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(METHODS)}, all, list"
            raise UserError(f"--method has no {name!r}, {hint}")
    return [METHODS[name] if name in METHODS else _own_method(name) for name in names]


def _own_method(name: str) -> Method:
    """What a function of the user's, `module:function`, gives."""
    with current_folder_first():
        try:
            function = named_function(name, "method")
        except ValueError as error:
            raise UserError(f"--{error}") from error
        try:
            method = function()
        except Exception as error:  # a user's function can raise anything
            raise UserError(f"--method {name} fails: {one_line(error)}") from error
    if not isinstance(method, Method):
        raise UserError(f"--method {name} gives no Method (utils.settings.method), but {method!r:.60}")
    if not re.fullmatch(r"\w+", method.name) or method.name in METHODS:  # it stands in tables and lines
        problem = f"--method {name} gives a method of the name {method.name!r:.40}, which is taken"
        raise UserError(f"{problem}, or has other than letters, digits and _")
    if not (callable(method.head) or method.head in HEADS):
        raise UserError(f"--method {name}: there is no head {method.head!r:.60}, known: {', '.join(HEADS)}")
    if method.trained and not (callable(method.loss) or method.loss in LOSSES):
        raise UserError(f"--method {name}: there is no loss {method.loss!r:.60}, known: {', '.join(LOSSES)}")
    for option, value in method.options.items():
        allowed = method.ranges.get(option)
        if allowed is None and option not in OPTIONS:
            raise UserError(f"--method {name} has an option {option} without a range: add it to its ranges")
        if allowed and (value is None or not allowed.holds(value)):
            raise UserError(f"--method {name}: its {option} is {value}, it must be {allowed.words}")
    return method


def lead_method(text: str, publish: str | None = None, select: str = "last") -> str | None:
    """The method whose head is published: the first named, `los` under `all`; None: that which does best."""
    methods = chosen_methods(text)
    if publish == "best" or (publish is None and select == "val" and len(methods) > 1):
        return None
    return "los" if text == "all" else methods[0].name


def listing() -> str:
    """The table of `--method list`."""
    header = ("method", "what it is", "learns", "start", "sampler", "loss", "epochs", "lr @ batch", "options")
    rows = [header, *(_cells(method) for method in METHODS.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    sources = [f"  {method.name:<{widths[0]}}  {_source(method)}" for method in METHODS.values()]
    return "\n".join([*lines, "", "sources", *sources])


def _source(method: Method) -> str:
    """Source, and of which kind each setting is."""
    kinds: dict[str, list[str]] = {}
    for name in method.settings:
        kinds.setdefault(method.kind(name), []).append(name)
    told = [f"{kind}: {' '.join(names)}" for kind, names in kinds.items()]
    return "; ".join(filter(None, [method.source, method.differs, *told]))


def _cells(method: Method) -> tuple[str, ...]:
    words = [f"{name}={'preset' if value is None else value}" for name, value in method.options.items()]
    words += [f"finetune_wd={method.wd:g}"] if method.wd else []
    sampler, epochs, lr = "-", "-", "-"
    if method.trained:
        sampler, epochs = method.sampler, "preset" if method.epochs is None else str(method.epochs)
        lr = "preset" if method.lr is None else f"{method.lr:g} @ {method.per_batch}"
    head = (method.name, method.what, method.learns, method.start, sampler, method.loss or "-")
    return (*head, epochs, lr, " ".join(words) or "-")
