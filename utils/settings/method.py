"""What an entry of the table of stage-2 methods says, and what follows from it."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from losses import LOSSES
from models import HEADS
from utils.settings.ranges import Range

# the settings of training in short -> their arguments
ARGUMENTS = {"lr": "finetune_lr", "epochs": "finetune_epoch", "wd": "finetune_wd"}
TRAINING = tuple(ARGUMENTS.values())


@dataclass(frozen=True)
class Method:
    """`epochs` 0: nothing is trained; None: the preset's. `lr` None: the preset's; else at batch `per_batch`.

    `head` and `loss` are names in the two tables; of a method outside they may be a class and a function.
    `options` are those that a user may set, with the source's values (None: the run's own); each goes to the
    head, to the loss or to both, by the names of their parameters. Those that no method here has are declared
    by `ranges`, and set by `--option name=value`. `candidates` are tried under --select val. `by_ratio`: what
    the source has for imbalance ratios. `own`: what holds instead on features of a user's own, which are
    standardised (ours, docs/features.md). `factors` on the learning rate, by the names of what is learned.
    `fixed` are options of the head that make the method what it is. `published` and `second_hand` name the
    settings that are so, with spaces between; all others are ours. `shifted`: its source steps
    the cosine before the first epoch, so that of E epochs the last has a learning rate of 0. `differs` names
    what its source does otherwise.
    """

    name: str
    what: str
    source: str
    learns: str = "classifier"
    start: str = "stage 1"
    head: str | Callable = "linear"
    loss: str | Callable | None = None
    sampler: str = "natural"
    epochs: int | None = 0
    lr: float | None = None
    per_batch: int = 64
    wd: float | None = None
    shifted: bool = False
    options: dict = field(default_factory=dict)
    candidates: dict = field(default_factory=dict)
    by_ratio: Mapping[float, dict] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    published: str = ""
    second_hand: str = ""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    differs: str = ""

    @property
    def trained(self) -> bool:
        return self.epochs != 0

    def takes(self, option: str) -> bool:
        return option in self.options or (self.trained and option in TRAINING)

    def kind(self, setting: str) -> str:
        """Where the source's value of a setting is from: lr, epochs, wd, batch, schedule or an option."""
        kinds = {"published": self.published, "second-hand": self.second_hand}
        return next((kind for kind, names in kinds.items() if setting in names.split()), "ours")

    def at_ratio(self, ratio: float | None) -> dict:
        """The source's settings for the ratio that is nearest to this one."""
        return at_nearest(self.by_ratio, ratio) if ratio and self.by_ratio else {}

    @property
    def settings(self) -> tuple[str, ...]:
        """What has a kind."""
        return (*((*ARGUMENTS, "batch", "schedule") if self.trained else ()), *self.options)

    def head_options(self, options: dict) -> dict:
        return self.fixed | _fitting(self.head if callable(self.head) else HEADS[self.head], options)

    def loss_options(self, options: dict) -> dict:
        return _fitting(self.loss if callable(self.loss) else LOSSES[self.loss], options)


def at_nearest(by_ratio: Mapping[float, object], ratio: float) -> object:
    """What stands at the imbalance ratio nearest to this one, as factors go."""
    return by_ratio[min(by_ratio, key=lambda own: abs(math.log(own / ratio)))]


def _fitting(kind: Callable, options: dict) -> dict:
    known = inspect.signature(kind).parameters
    return {name: value for name, value in options.items() if name in known}
