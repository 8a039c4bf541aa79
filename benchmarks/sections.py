"""The parts of the table, in order: which run with which network, how many turns, how long a turn takes."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import augment, decode, evaluation, pack, stage1, stage2
from benchmarks.common import Bench
from benchmarks.table import Findings


@dataclass(frozen=True)
class Part:
    """`seconds`: of the whole part, roughly, on two cores; it tells the bar what is left."""

    section: str
    run: Callable[[Bench, str | None, int], Findings]
    turns: int
    seconds: float
    network: str | None = None

    @property
    def name(self) -> str:
        return f"{self.section} {self.network}" if self.network else self.section


PARTS = (
    Part("augment", augment.run, 9, 15),
    Part("decode", decode.run, 9, 20),
    Part("stage1", stage1.run, 5, 60, "resnet32"),
    Part("evaluate", evaluation.run, 5, 25, "resnet32"),
    Part("stage2", stage2.run, 5, 60, "resnet32"),
    Part("pack", pack.run, 3, 200),
    Part("evaluate", evaluation.run, 3, 80, "resnet34"),
    Part("stage2", stage2.run, 3, 120, "resnet34"),
    Part("stage1", stage1.run, 3, 210, "resnet34"),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))
