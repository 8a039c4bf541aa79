"""What `--help` prints: the arguments that people change, with the defaults of the data set at hand."""

from textwrap import wrap

from utils.settings.table import Argument, arguments_of

# the arguments of `--help`, in its order; `--help all` has every one, in the groups of the table
_OFTEN = (
    *("imb_ratio", "cur_stage", "network", "dataset", "data_dir", "pretrained_pth", "features"),
    *("epochs", "lr", "wd", "finetune_epoch", "finetune_lr", "batch_size", "label_smooth", "method"),
    *("select", "seeds", "save_features", "predictions", "predict", "seed", "device", "resume", "out"),
)
_COLUMN, _WIDTH = 28, 110


def help_text(script: str, doc: str, values: dict, whole: bool) -> str:
    """The help of a script: of its often used arguments, or the `whole`, with `values` as the defaults.

    `doc` begins with a summary and has the script's commands in indented lines.
    """
    summary, *rest = doc.strip().splitlines()
    rows = {argument.name: argument for argument in arguments_of(script)}
    examples = [line[2:] for line in rest if line.startswith("    python")]
    lines = [f"usage: {script} [--argument value] ...", "", summary, "", "examples:", *examples[:2]]
    if whole:
        for group in dict.fromkeys(argument.group for argument in rows.values()):
            lines += ["", f"{group}:"]
            lines += [line for row in rows.values() if row.group == group for line in _lines(row, values)]
        return "\n".join(lines)
    at = ", ".join(str(values[name]) for name in ("dataset", "network") if values.get(name))
    lines += ["", f"what people change, with the defaults of {at}:"]
    lines += [line for name in _OFTEN if name in rows for line in _lines(rows[name], values)]
    others = len(rows.keys() - set(_OFTEN))
    return "\n".join(
        [*lines, "", f"`--help all` has the other {others} arguments, docs/arguments.md their ranges"]
    )


def _lines(argument: Argument, values: dict) -> list[str]:
    """An argument and what it takes, beside its meaning and its default."""
    takes = "" if argument.kind is bool else f" {argument.kind.__name__.upper()}"
    name = f"  --{argument.name}{takes}"
    choices = f"; one of {', '.join(argument.choices)}" if argument.choices else ""
    value = values.get(argument.name)
    default = "" if value is None or value is False else f" [{shown(value)}]"
    meaning = wrap(f"{argument.help}{choices}{default}", _WIDTH - _COLUMN)
    first = f"{name:<{_COLUMN - 1}} {meaning[0]}" if len(name) < _COLUMN else f"{name}  {meaning[0]}"
    return [first, *(" " * _COLUMN + line for line in meaning[1:])]


def shown(value: object) -> str:
    """A default, for people."""
    if value is None or value is False:
        return "" if value is None else "off"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
