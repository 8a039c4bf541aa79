"""The table of stage-2 methods: what each learns, from which start, on which sampler, with which settings.

A method is one entry here: a head of `models.HEADS`, a loss of `losses.LOSSES`, its source's settings, and
its options. A user's own is one outside: `--method my_methods:build` takes what that function gives.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from losses import LOSSES
from models import HEADS
from utils.settings.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, SHARE, Range

# candidates of --select val where the user names none: learning rates around the method's own
LR_FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TAUS = tuple(round(0.1 * step, 1) for step in range(21))
PATHS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
RHOS = (0.6, 0.9, 1.2)
EQUAL_EPOCHS = 20
TRAINING = ("finetune_lr", "finetune_epoch", "finetune_wd")
# options of the methods below, each an argument of stage 2: name -> its range, its help
DECLARED: dict[str, tuple[Range, str]] = {
    "tau": (NOT_NEGATIVE, "tau_norm: power of the row norms; la, bsce: weight of log frequencies, 0 or more"),
    "rho": (NOT_NEGATIVE, "disalign, marc: class weights go with frequency to the -ρ, 0 or more"),
    "beta": (BELOW_ONE, "cb, wb: β of the effective number of images, 0 to below 1"),
    "gamma": (NOT_NEGATIVE, "focal: γ of (1 - p)^γ, 0 or more"),
    "max_margin": (NOT_NEGATIVE, "ldam: margin of the rarest class, 0 or more"),
    "scale": (ABOVE_ZERO, "ldam, etf: factor on the cosines, above 0"),
    "alpha": (NOT_NEGATIVE, "lade: weight of the regulariser, 0 or more"),
    "lam": (NOT_NEGATIVE, "lade: weight of its square, 0 or more"),
    "eps_head": (BELOW_ONE, "label_aware: smoothing of the most frequent class, 0 to below 1"),
    "eps_tail": (BELOW_ONE, "label_aware: smoothing of the rarest class, 0 to below 1"),
    "max_norm": (SHARE, "wb: row norms may reach the least plus this share of their range, 0 to 1"),
    "power": (NOT_NEGATIVE, "los_weighted: penalty of a class goes with frequency to this power; 1: LOS"),
    "logreg_c": (ABOVE_ZERO, "logreg: C of scikit-learn, the inverse of the penalty, above 0"),
}
OPTIONS = ("label_smooth", "path", *DECLARED)


@dataclass(frozen=True)
class Method:
    """`epochs` 0: nothing is trained; None: the preset's. `lr` None: the preset's; else at batch `per_batch`.

    `head` and `loss` are names in the two tables; of a method outside they may be a class and a function.
    `options` are those that a user may set, with the source's values (None: the run's own); each goes to the
    head, to the loss or to both, by the names of their parameters. Those that no method here has are declared
    by `ranges`, and set by `--option name=value`. `candidates` are tried under --select val beside the run's
    own value. `fixed` are options of the head that make the method what it is. `shifted`: its source steps
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
    fixed: dict = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    differs: str = ""

    @property
    def trained(self) -> bool:
        return self.epochs != 0

    def takes(self, option: str) -> bool:
        return option in self.options or (self.trained and option in TRAINING)

    def head_options(self, options: dict) -> dict:
        return self.fixed | _fitting(self.head if callable(self.head) else HEADS[self.head], options)

    def loss_options(self, options: dict) -> dict:
        return _fitting(self.loss if callable(self.loss) else LOSSES[self.loss], options)


def _fitting(kind: Callable, options: dict) -> dict:
    known = inspect.signature(kind).parameters
    return {name: value for name, value in options.items() if name in known}


_KANG = "Kang et al. 2020"
_LIKE_KANG = {"sampler": "balanced", "lr": 0.2, "per_batch": 512, "shifted": True}
# where a source trains whole networks, epochs and lr are ours; lr chosen on validation (ResNet-32, ratio 100)

# fmt: off
_TABLE = (
    Method("stage1", "the stage-1 classifier, unchanged", "-", learns="nothing"),
    Method("ce", "cross-entropy: the control for more epochs", "LOS with δ = 0",
           loss="ce", epochs=None, options={"path": None}),
    Method("los", "label over-smoothing", "Sun et al. 2025; published for ResNet-34",
           loss="los", epochs=None, options={"label_smooth": None, "path": None},
           candidates={"label_smooth": (0.5, 0.9)}),
    Method("los_step", "one full-batch step of LOS in closed form", "ours, from LOS to first order",
           learns="nothing", head="los_step", options={"path": 5.0}, candidates={"path": PATHS}),
    Method("crt", "classifier re-training", f"{_KANG}; all published",
           start="fresh", fixed={"fresh": True}, loss="ce", epochs=10, **_LIKE_KANG),
    Method("lws", "learnable weight scaling", f"{_KANG}; all published",
           learns="K scales", head="lws", loss="ce", epochs=5, **_LIKE_KANG),
    Method("tau_norm", "rows divided by their norm to the τ, no bias", _KANG,
           learns="nothing", head="tau_norm", options={"tau": 1.0}, candidates={"tau": TAUS}),
    Method("ncm", "nearest class mean, cosine", _KANG, learns="nothing", start="features", head="ncm",
           differs="its source leaves the class means at their length"),
    Method("cb", "class-balanced weights", "Cui et al. 2019; epochs, lr ours",
           loss="cb", epochs=20, lr=0.003, options={"beta": 0.9999}),
    Method("focal", "focal loss", "Lin et al. 2017; epochs, lr ours",
           loss="focal", epochs=20, lr=0.01, options={"gamma": 1.0}, candidates={"gamma": (0.5, 1.0, 2.0)}),
    Method("ldam", "margins by frequency, cosine classifier", "Cao et al. 2019; epochs, lr ours",
           head="ldam", loss="ldam", epochs=20, lr=1e-5, options={"max_margin": 0.5, "scale": 30.0},
           differs="its source weights the rare classes up late (DRW)"),
    Method("bsce", "Balanced Softmax", "Ren et al. 2020; epochs, lr ours",
           loss="bsce", epochs=20, lr=0.01, options={"tau": 1.0}),
    Method("la", "logit adjustment after training", "Menon et al. 2021",
           learns="nothing", head="la", options={"tau": 1.0}, candidates={"tau": TAUS}),
    Method("lade", "label distribution disentangling", "Hong et al. 2021; epochs, lr ours",
           loss="lade", epochs=20, lr=0.003, options={"alpha": 0.1, "lam": 0.01}),
    Method("disalign", "confidence-aware alignment", "Zhang et al. 2021; epochs published, lr ours",
           learns="K scales, K shifts, confidence", head="disalign", loss="power", epochs=10, lr=0.01,
           options={"rho": 1.2}, candidates={"rho": RHOS}),
    Method("marc", "margin calibration", "Wang et al. 2022; lr published (batch taken as 64), epochs ours",
           learns="K scales, K shifts", head="marc", loss="power", epochs=10, lr=0.05,
           options={"rho": 1.2}, candidates={"rho": RHOS}),
    Method("wb", "weight balancing: decay, MaxNorm", "Alshammari et al. 2022; published (second-hand)",
           loss="wb", epochs=10, lr=0.01, wd=0.1, shifted=True,
           options={"beta": 0.9999, "max_norm": 0.1}, candidates={"finetune_wd": (0.001, 0.01)}),
    Method("label_aware", "smoothing by frequency, MiSLAS",
           "Zhong et al. 2021; ε of ratio 100 and epochs published, lr ours",
           learns="classifier, K scales", head="lws", fixed={"whole": True}, loss="label_aware",
           sampler="balanced", epochs=10, lr=0.003, options={"eps_head": 0.4, "eps_tail": 0.1}),
    Method("etf", "fixed equiangular prototypes", "Yang et al. 2022; epochs, lr ours",
           learns="D x K map", start="fresh", head="etf", loss="ce", epochs=20, lr=0.01,
           options={"scale": 30.0},
           differs="its source has the dot-regression loss, and features of width K - 1 or more"),
    Method("los_weighted", "LOS, class penalties by π^a", "ours, from the identity of LOS; uses the counts",
           loss="los_weighted", epochs=None, options={"label_smooth": None, "path": None, "power": 0.75},
           candidates={"power": (0.25, 0.5, 1.0, 1.25)}),
    Method("samn", "row norms rising with rarity", "Zhang et al. 2026; all published, as we read it",
           head="samn", loss="ce", epochs=20, lr=5e-4),
    Method("logreg", "logistic regression, classes alike", "scikit-learn",
           learns="classifier, at once", start="features", head="logreg",
           options={"logreg_c": 1.0}, candidates={"logreg_c": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}),
)
# fmt: on
METHODS = {method.name: method for method in _TABLE}
