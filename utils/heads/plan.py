"""From the user's words to the heads of a run: methods, settings, seeds, and who decides each value."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from utils.base.errors import UserError
from utils.run.facts import OWN
from utils.settings.chosen import chosen_methods
from utils.settings.config import Config, several
from utils.settings.method import ARGUMENTS, TRAINING, Method
from utils.settings.methods import EQUAL_EPOCHS, METHODS, MOVES, OPTIONS, SETTINGS


@dataclass(frozen=True)
class HeadPlan:
    """One head to train: a method with every option settled.

    `lr` None: `path` or `move` in the options decides it.
    """

    method: Method
    options: dict
    epochs: int
    lr: float | None
    wd: float
    seed: int
    named: bool = True  # False: the stage-1 classifier as the first row of a table that did not ask for it
    digits: int = 10  # with which the setting is written
    kinds: dict = field(default_factory=dict)  # of each setting: where its value is from

    @property
    def setting(self) -> str:
        """Every option as name=value, in one string that tells the settings of a method apart."""
        shown = dict(self.options)
        if self.method.trained:
            shown = {"finetune_lr": self.lr, "finetune_epoch": self.epochs, "finetune_wd": self.wd} | shown
            if not self.wd:
                del shown["finetune_wd"]
        return " ".join(
            f"{name}={value:.{self.digits}g}" for name, value in shown.items() if value is not None
        )

    @property
    def key(self) -> dict:
        """What tells the heads of a run apart."""
        return {"method": self.method.name, "setting": self.setting, "seed": self.seed}


def plan_heads(config: Config) -> tuple[list[HeadPlan], list[str]]:
    """Every head that the run trains, in the order of methods, settings, seeds; and notes for the log.

    Where the user names several values of an option, every combination is a setting of its own. Under
    `--select val` an option that the user leaves open takes the method's candidates.

    Raises:
        UserError: an unknown method, or an option that none of the methods has.
    """
    methods = chosen_methods(config.method)
    open_ = ("preset", "published", "checkpoint")  # beginnings: a preset may be scaled with the batch size
    given = [name for name in (*TRAINING, *OPTIONS) if not config.source(name).startswith(open_)]
    notes = []
    for option in given:
        if idle := [method.name for method in methods if not method.takes(option)]:
            notes.append(f"{', '.join(idle)}: no use for --{_as_given(option, config)}")
    plans, own = [], own_options(config.option, methods)
    for method in methods:
        choices = _choices(method, config, given, own)
        kinds = _kinds(method, config, {*given, *own}, choices)
        for values in product(*choices.values()):
            setting = dict(zip(choices, values, strict=True))
            epochs, lr, wd = (
                setting.pop(name, 0) for name in ("finetune_epoch", "finetune_lr", "finetune_wd")
            )
            # what is not trained has no use for a second seed
            seeds = config.seeds if method.trained else config.seeds[:1]
            plans += [HeadPlan(method, setting, epochs, lr, wd, seed, kinds=kinds) for seed in seeds]
    alike = Counter(tuple(plan.key.values()) for plan in plans)
    plans = [replace(p, digits=17) if alike[tuple(p.key.values())] > 1 else p for p in plans]
    stage1 = METHODS["stage1"]
    if stage1 not in methods and config.bn_mode != "train":
        plans.insert(0, HeadPlan(stage1, {}, 0, 0, 0, config.seed, named=False))
    return plans, notes


def _as_given(option: str, config: Config) -> str:
    """The user's own word for an option."""
    return config.source(option).removeprefix("from --") if "from --" in config.source(option) else option


def own_options(text: str | None, methods: list[Method]) -> dict[str, list[float]]:
    """What `--option` says of the options that methods from outside declare, in their ranges."""
    said: dict[str, list[float]] = {}
    for word in (text or "").split():
        name, _, values = word.partition("=")
        ranges = [method.ranges[name] for method in methods if name in method.ranges]
        if not ranges:
            known = ", ".join(name for method in methods for name in method.ranges) or "none"
            way = f"say --{name}" if name in OPTIONS else f"known: {known}"
            raise UserError(f"--option {word}: no method of this run declares it, {way}")
        try:
            said[name] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(f"--option {word} is not written as name=value or name=value,value") from error
        for own, value in product(ranges, said[name]):
            if not (math.isfinite(value) and own.holds(value)):
                raise UserError(f"--option {name} must be {own.words}, got {value:g}")
        if len(set(said[name])) < len(said[name]):
            raise UserError(f"--option {name} names a value twice: {values}")
    return said


def _choices(
    method: Method, config: Config, given: list[str], said: dict[str, list[float]]
) -> dict[str, list]:
    """Option -> the values to try, for one method; `said` are those of `--option`."""
    searching, users = config.select == "val", {*given, *said}
    open_ = {name: list(own) for name, own in method.candidates.items() if searching and name not in users}
    usual = dict(method.options)
    if method.trained:
        usual |= {"finetune_epoch": method.epochs, "finetune_wd": method.wd, "finetune_lr": method.lr}
    usual |= {name: value for name, value in _suited(method, config).items() if name in usual}
    if method.trained and config.budget == "equal":
        usual["finetune_epoch"] = EQUAL_EPOCHS
    if usual.get("finetune_lr") is not None:
        usual["finetune_lr"] = usual["finetune_lr"] * config.batch_size / method.per_batch
    if usual.get("path") is not None:  # of los_step: that of the data, where they have one
        usual["path"] = config.path or usual["path"]
    choices = {}
    for name, value in usual.items():
        asked = said.get(name) or several(getattr(config, name, value))
        choices[name] = open_.get(name) or (asked if name in users or value is None else [value])
    if method.trained and "finetune_lr" not in given:
        if searching and not ("path" in given and "path" in choices):
            tried = math.prod(map(len, open_.values()))
            choices["move"] = moves(*MOVES[method.start], SETTINGS // tried)
            choices["finetune_lr"] = [None]
        elif choices.get("path", [None]) != [None]:
            return choices | {"finetune_lr": [None]}
    if method.trained:
        choices.pop("path", None)
    return choices


def moves(first: float, last: float, count: int) -> list[float]:
    """`count` powers of ten from 10^first to 10^last, to two digits."""
    steps = (first + (last - first) * step / max(1, count - 1) for step in range(count))
    return [float(f"{10**step:.2g}") for step in steps]


def _suited(method: Method, config: Config) -> Mapping:
    """The settings that the method has for this imbalance ratio, or for features of a user's own."""
    return {**method.at_ratio(config.imb_ratio), **(method.own if config.preset == OWN else {})}


def _kinds(method: Method, config: Config, users: set[str], choices: dict[str, list]) -> dict[str, str]:
    """Setting -> published, second-hand, ours, given (by the user) or chosen (by validation)."""
    kinds, others = {}, [] if config.imb_ratio in method.by_ratio else list(method.by_ratio.values())
    others += [method.own] * (config.preset == OWN)
    for name in method.settings:
        option = ARGUMENTS.get(name, name)
        values = choices.get(option, [None])
        ours = any(option in settings for settings in others)
        ours |= option == "finetune_epoch" and config.budget == "equal"
        ours |= method.epochs is None and option in config and config.source(option).startswith("preset")
        if option in users:
            kinds[name] = "given"
        elif len(values) > 1 or (name == "lr" and "move" in choices):
            kinds[name] = "chosen"
        elif values != [None] or name in ("batch", "schedule"):
            kinds[name] = "ours" if ours else method.kind(name)
    return kinds
