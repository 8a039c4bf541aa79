"""One resolved configuration for a run: the user's word over a checkpoint's facts over the preset.

The three scripts begin here: help, lists and refusals come before torch, which takes seconds to load.
"""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
from losses.gaps import label_smooth_for_gap
from utils.base.errors import UserError, exit_cleanly, say
from utils.base.torchrun import number_of
from utils.settings.checks import check_against, check_given, check_ranges, check_settled
from utils.settings.chosen import listing
from utils.settings.commands import option
from utils.settings.help import help_text
from utils.settings.parse import parse
from utils.settings.presets import PUBLISHED, preset_for
from utils.settings.sizes import by_size
from utils.settings.table import EVALUATE, STAGE1, STAGE2, arguments_of

DEFAULT_DATASET = "cifar100_lt"
_FROM_FILES = {"resume", "features", "pretrained_pth"}  # with them a file decides what is left open


@dataclass(frozen=True)
class Config:
    """Read-only settings of one run, by name: `config.lr`. `source(name)` tells where a value came from."""

    _values: dict
    _sources: dict
    unused: tuple[str, ...] = ()  # words of the public code that the script has no use for
    preset: str = ""  # whose defaults they are: a data set's, or `features`, of a user's own

    def __getattr__(self, name: str) -> object:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"this run has no setting {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def source(self, name: str) -> str:
        return self._sources[name]

    def given_words(self, script: str, names: Iterable[str]) -> list[str]:
        """What the user gave of the settings `names`, as words of a command of `script`."""
        of_script = (argument.name for argument in arguments_of(script))
        given = [name for name in of_script if name in names and self._sources.get(name) == "given"]
        return [word for name in given for word in option(name, self._values[name])]

    @property
    def data_name(self) -> str:
        """The data set's name in paths: of a user's own images with their folder's."""
        return datasets.data_name(self.dataset, self.data_dir) if self._of_images else self.dataset

    @property
    def place_name(self) -> str:
        """The name of the folder in which its models are left and looked for."""
        if not self._of_images:
            return self.dataset
        return datasets.place_name(self.dataset, self.data_dir, self.train_list)

    @property
    def _of_images(self) -> bool:
        """A pack may have the name of any data set."""
        return "data_dir" in self and not self._values.get("features")

    def as_dict(self) -> dict:
        """Plain data, ready for JSON and for a checkpoint."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in self._values.items()}


def resolve(script: str, given: dict, known: dict | None = None) -> Config:
    """Merge `given` (the user's), `known` (a checkpoint's, None: not read yet) and the preset; check all."""
    check_given(script, given)
    if "imb_ratio" in given and known and known.get("imb_ratio", 1) is None:
        raise UserError("--imb_ratio has no meaning here: the checkpoint or pack has class counts of its own")
    settled = known is not None
    known = {name: value for name, value in (known or {}).items() if value is not None}
    check_against(known, given)
    said = known | given
    dataset = said.get("dataset", DEFAULT_DATASET)
    preset = preset_for(dataset, said.get("network"), known.get("preset"), said.get("imb_ratio"))
    of_size, sized = by_size(said)
    preset |= sized
    if "path" in known:  # a default that the pack knows
        preset["path"] = known.pop("path")
    published = PUBLISHED.get(known.get("preset", dataset), {})
    preset["budget"] = _usual_budget(said.get("method", preset["method"]))
    if said.get("budget", preset["budget"]) != "preset":
        preset |= published
    if said.get("allow_partial"):
        preset["num_class"] = None  # the classes are those that are there
    protocol = {"select": "test", "bn_mode": "train"} if given.get("protocol") == "published" else {}
    if protocol and dataset in datasets.FILE_DATASETS:  # CIFAR has mirror averaging anyway
        protocol["tta"] = not (given.get("no_tta") or said.get("no_flip"))
    if (protocol | said).get("bn_mode") == "train":
        preset["views"] = None
    if script == STAGE1:
        preset["label_smooth"] = None  # the data set's is stage 2's
    names = [argument.name for argument in arguments_of(script)]
    origins = {"given": given, "protocol": protocol, "checkpoint": known, of_size: sized, "preset": preset}
    sources = {name: next(label for label, origin in origins.items() if name in origin) for name in names}
    values = {name: origins[label][name] for name, label in sources.items()}
    _scale_rates(values, sources, preset)
    if "val_fraction" in given and sources.get("val_source") == "preset":
        values["val_source"], sources["val_source"] = "heldout", "from --val_fraction"
    own = {name for name in published if sources.get(name) == "preset" and values[name] == published[name]}
    sources |= dict.fromkeys(own, "published")
    check_settled(given, values, preset["num_class"])
    if script == STAGE2:
        _settle_label_smooth(given, values, sources, settled)
    if values.get("workers", 0) is None:
        values["workers"], sources["workers"] = default_workers(), "from the cores"
    if sources.get("warmup_epochs") in ("preset", of_size):
        values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] - 1)
    if "seed" in values and values["seed"] is None and not values.get("seeds"):
        values["seed"], sources["seed"] = secrets.randbelow(2**31), "drawn"
    if "seeds" in values:
        _settle_seeds(values, sources)
    if script in (STAGE1, STAGE2):
        values["cur_stage"] = "stage1" if script == STAGE1 else "stage2"
    unused = tuple(name for name in given if name not in names)
    return Config(values, sources, unused, known.get("preset", dataset))


def _scale_rates(values: dict, sources: dict, preset: dict) -> None:
    """The linear rule: where the user changes the batch size alone, a preset's learning rate goes with it.

    The way that training goes, rate times steps, so stays as long as it was (Goyal et al. 2017).
    """
    usual = preset["batch_size"]
    if values.get("batch_size", usual) == usual:
        return
    for name in ("lr", "finetune_lr"):
        if sources.get(name) not in (None, "given", "checkpoint") and values[name] is not None:
            values[name] *= values["batch_size"] / usual
            sources[name] += f", times batch size / {usual}"


def _usual_budget(method: str) -> str:
    """Methods that are compared take their sources' settings, one alone what suits the network."""
    return "source" if method == "all" or "," in method else "preset"


def default_workers() -> int:
    """Loader processes of this process: a core each, one left for itself, at most 16."""
    sharing = number_of("LOCAL_WORLD_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // sharing - 1))


def _settle_seeds(values: dict, sources: dict) -> None:
    """Fill `seed` or `seeds` from whichever of the two was given; `seeds` becomes a list."""
    if values["seeds"] is None:
        values["seeds"], sources["seeds"] = [values["seed"]], "from --seed"
    else:
        values["seeds"] = several(values["seeds"])
        values["seed"], sources["seed"] = values["seeds"][0], "from --seeds"


def _settle_label_smooth(given: dict, values: dict, sources: dict, settled: bool) -> None:
    """Fill `label_smooth` from the gap, where that was given or is the preset.

    Not `settled`: the checkpoint that may know the number of classes has still to be found.
    """
    if "logit_gap" not in given and values["label_smooth"] is not None:
        return
    gaps, num_class = values["logit_gap"], values["num_class"]
    if num_class is None:
        if settled:
            raise UserError("a logit gap needs the number of classes, unknown here: say --num_class")
        return
    deltas = [label_smooth_for_gap(gap, num_class) for gap in several(gaps)]
    if 0.0 in deltas:
        raise UserError(f"--logit_gap {gaps} is beyond all numbers: δ would be 0, which is cross-entropy")
    values["label_smooth"] = deltas if isinstance(gaps, list) else deltas[0]
    sources["label_smooth"] = "from --logit_gap" if "logit_gap" in given else "preset"
    check_ranges({"label_smooth": values["label_smooth"]})


def several(value: object) -> list:
    return value if isinstance(value, list) else [value]


def describe(config: Config) -> list[str]:
    """The settings that are not a preset's, one line for each place where they came from; or all of them.

    `--verbose` asks for all, a line each, without what nobody set.
    """
    values = {name: value for name, value in config.as_dict().items() if value is not None}
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    if config.verbose:
        width = max(map(len, texts))
        return [f"  {name:<{width}}  {text:<24} {config.source(name)}" for name, text in texts.items()]
    origins = dict.fromkeys(map(config.source, texts))
    shown = {
        origin: ", ".join(f"{name} {text}" for name, text in texts.items() if config.source(name) == origin)
        for origin in origins
        if origin != "preset"
    }
    return [f"  {origin}: {line}" for origin, line in shown.items()]


def asked_for(script: str, doc: str, argv: Sequence[str] | None = None) -> dict:
    """What the user gave, by name, as far as it can be checked without a file; `doc` begins with a summary.

    Raises SystemExit where help or the list of methods was asked for, and is printed: help with the defaults
    of the data set and network that the command line names.
    """
    given = parse(script, argv)
    if whole := given.pop("help", None):
        values = {argument.name: argument.default for argument in arguments_of(script)} | given
        with suppress(UserError):  # of a command line that is not whole yet
            stage = {"cur_stage": "stage2"} if script == EVALUATE else {}
            values = resolve(script, stage | given).as_dict()
        values |= {name: given.get(name) for name in ("seed", "seeds")}  # else they are drawn
        say(*help_text(script, doc, values, whole == "all").splitlines())
        raise SystemExit(0)
    if given.get("method") == "list":
        say(*listing().splitlines())
        raise SystemExit(0)
    if given.keys() & _FROM_FILES:
        check_given(script, given)
    else:
        resolve(script, given)
    return given


def answer_early(script: str, doc: str) -> None:
    """End here, as `exit_cleanly` says, where the command line is refused or asks for no run."""
    exit_cleanly(lambda: asked_for(script, doc))
