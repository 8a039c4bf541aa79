"""One resolved configuration for a run: the user's word over a checkpoint's facts over the preset."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import data_name, place_name
from losses.label_over_smooth import check_label_smooth, label_smooth_for_gap
from utils.base.distributed import number_of
from utils.base.errors import UserError
from utils.base.seeding import draw_seed
from utils.settings.checks import check_against, check_network, check_pairs, check_ranges
from utils.settings.parse import ARGUMENTS, EVALUATE, STAGE1
from utils.settings.presets import preset_for

DEFAULT_DATASET = "cifar100_lt"


class Config:
    """Read-only settings of one run, by name: `config.lr`. `source(name)` tells where a value came from."""

    def __init__(self, values: dict, sources: dict) -> None:
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_sources", sources)

    def __getattr__(self, name: str) -> object:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"this run has no setting {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a configuration is fixed once it is resolved")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def source(self, name: str) -> str:
        return self._sources[name]

    @property
    def data_name(self) -> str:
        """The data set's name in paths: of a user's own images with their folder's."""
        return data_name(self.dataset, self.data_dir) if self._of_images else self.dataset

    @property
    def place_name(self) -> str:
        """The name of the folder in which its models are left and looked for."""
        return place_name(self.dataset, self.data_dir, self.train_list) if self._of_images else self.dataset

    @property
    def _of_images(self) -> bool:
        """A pack may have the name of any data set."""
        return "data_dir" in self and not self._values.get("features")

    def as_dict(self) -> dict:
        """Plain data, ready for JSON and for a checkpoint."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in self._values.items()
        }


def resolve(script: str, given: dict, known: dict | None = None) -> Config:
    """Merge `given` (the user's), `known` (a checkpoint's, None: not read yet) and the preset; check all.

    Raises:
        UserError: a value out of range, arguments that contradict each other, the script or the checkpoint.
    """
    if "imb_ratio" in given and known and known.get("imb_ratio", 1) is None:
        raise UserError("--imb_ratio has no meaning here: the checkpoint or pack has class counts of its own")
    settled = known is not None
    known = {name: value for name, value in (known or {}).items() if value is not None}
    check_against(known, given)
    dataset = given.get("dataset", known.get("dataset", DEFAULT_DATASET))
    preset = preset_for(dataset, given.get("network", known.get("network")), known.get("preset"))
    values, sources = {}, {}
    for name in (argument.name for argument in ARGUMENTS if script in argument.scripts):
        origin, label = next(
            (origin, label)
            for origin, label in (
                (given, "given"),
                (known, "checkpoint"),
                (preset, "preset"),
                ({name: None}, "preset"),
            )
            if name in origin
        )
        values[name], sources[name] = origin[name], label
    _scale_rates(values, sources, preset)
    check_ranges(values)
    check_network(values, sources)
    check_pairs(script, given, known, values, preset)
    if "label_smooth" in values:
        _settle_label_smooth(given, values, sources, settled)
    if values.get("workers", 0) is None:
        values["workers"], sources["workers"] = default_workers(), "from the cores"
    if sources.get("warmup_epochs") == "preset":
        values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] - 1)
    if "seed" in values and values["seed"] is None and not values.get("seeds"):
        values["seed"], sources["seed"] = draw_seed(), "drawn"
    if "seeds" in values:
        _settle_seeds(given, values, sources)
    if script != EVALUATE:
        values["cur_stage"] = "stage1" if script == STAGE1 else "stage2"
    return Config(values, sources)


def _scale_rates(values: dict, sources: dict, preset: dict) -> None:
    """The linear rule: where the user changes the batch size alone, a preset's learning rate goes with it.

    The way that training goes, rate times steps, so stays as long as it was (Goyal et al. 2017).
    """
    usual = preset["batch_size"]
    if values.get("batch_size", usual) == usual:
        return
    for name in ("lr", "finetune_lr"):
        if sources.get(name) == "preset" and values[name] is not None and values["batch_size"] > 0:
            values[name] *= values["batch_size"] / usual
            sources[name] = f"preset, times batch size / {usual}"


def default_workers() -> int:
    """Loader processes of this process: a core each, one left for itself, at most 16."""
    sharing = number_of("LOCAL_WORLD_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // sharing - 1))


def _settle_seeds(given: dict, values: dict, sources: dict) -> None:
    """Fill `seed` or `seeds` from whichever of the two was given; `seeds` becomes a list."""
    if "seed" in given and "seeds" in given:
        raise UserError("--seed and --seeds say the same thing: give one of them")
    seeds = values["seeds"]
    if seeds is None:
        values["seeds"], sources["seeds"] = [values["seed"]], "from --seed"
        return
    values["seeds"] = seeds if isinstance(seeds, list) else [seeds]
    values["seed"], sources["seed"] = values["seeds"][0], "from --seeds"


def _settle_label_smooth(given: dict, values: dict, sources: dict, settled: bool) -> None:
    """Fill `label_smooth` from whichever of δ and the gap was given, or is the preset.

    Not `settled`: the checkpoint that may know the number of classes has still to be found.
    """
    if "label_smooth" in given and "logit_gap" in given:
        raise UserError("--label_smooth and --logit_gap say the same thing: give one of them")
    try:
        if "logit_gap" in given or values["label_smooth"] is None:
            if values["num_class"] is None and not settled:
                return
            if values["num_class"] is None:
                raise UserError("a logit gap needs the number of classes, unknown here: say --num_class")
            values["label_smooth"] = _each(
                values["logit_gap"], lambda gap: label_smooth_for_gap(gap, values["num_class"])
            )
            deltas = values["label_smooth"]
            if 0.0 in (deltas if isinstance(deltas, list) else [deltas]):
                raise UserError(
                    f"--logit_gap {values['logit_gap']} is beyond all numbers, δ would be 0: that is "
                    "cross-entropy, --label_smooth 0"
                )
            sources["label_smooth"] = "from --logit_gap" if "logit_gap" in given else "preset"
        _each(values["label_smooth"], check_label_smooth)
        several = values["label_smooth"] if isinstance(values["label_smooth"], list) else []
        if len(set(several)) < len(several):
            raise UserError(f"--logit_gap names values that are the same δ: {values['logit_gap']}")
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _each(value: float | list[float], change: Callable[[float], float]) -> float | list[float]:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def describe(config: Config) -> list[str]:
    """The resolved configuration, a line a value, with where it came from; without what nobody set."""
    rows = [
        (name, json.dumps(value, ensure_ascii=False), config.source(name))
        for name, value in config.as_dict().items()
        if value is not None
    ]
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {value:<24} {source}" for name, value, source in rows]
