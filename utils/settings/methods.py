"""The table of stage-2 methods: what each learns, from which start, on which sampler, with which settings.

A method is one entry here: a head of `models.HEADS`, a loss of `losses.LOSSES`, its source's settings, and
its options. A user's own is one outside: `--method my_methods:build` takes what that function gives.
"""

from utils.settings.method import Method
from utils.settings.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, SHARE, Range

# --select val tries as many settings of each method: values of its option times learning rates, at which the
# logits move by 10^n to first order (utils/heads/move.py); a head that starts afresh has farther to go
SETTINGS = 21
MOVES = {"stage 1": (-1.0, 3.0), "fresh": (0.0, 5.0)}  # start -> the least and the largest n
TAUS = tuple(round(0.1 * step, 1) for step in range(SETTINGS))
PATHS = tuple(float(f"{10 ** (step / 10 - 0.5):.2g}") for step in range(SETTINGS))  # 0.32 to 32
PENALTIES = tuple(10.0**power for power in range(-8, 0))
RHOS = (0.9, 1.2, 1.5)
EQUAL_EPOCHS = 20
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

_KANG = "Kang et al. 2020"
# cosine, as everywhere here; where a source trains whole networks this recipe stands in, kind `ours`
_LIKE_KANG = {"epochs": 10, "lr": 0.2, "per_batch": 512, "wd": 5e-4}
_RECIPE = "lr epochs wd batch"
_LOS = f"{_RECIPE} schedule label_smooth"  # on CIFAR100-LT; elsewhere a run's preset says what is ours

# fmt: off
_TABLE = (
    Method("stage1", "the stage-1 classifier, unchanged", "-", learns="nothing"),
    Method("ce", "cross-entropy: the control for more epochs", "LOS with δ = 0",
           loss="ce", epochs=None, options={"path": None}, published=_LOS),
    Method("los", "label over-smoothing", "Sun et al. 2025, for ResNet-34 on CIFAR100-LT",
           loss="los", epochs=None, options={"label_smooth": None, "path": None},
           candidates={"label_smooth": (0.2, 0.5, 0.98)}, published=_LOS),
    Method("los_step", "one full-batch step of LOS in closed form", "ours, from LOS to first order",
           learns="nothing", head="los_step", options={"path": 5.0}, candidates={"path": PATHS}),
    Method("crt", "classifier re-training", _KANG,
           start="fresh", fixed={"fresh": True}, loss="ce", sampler="balanced", shifted=True,
           **_LIKE_KANG, published=f"{_RECIPE} schedule"),
    Method("lws", "learnable weight scaling", _KANG,
           learns="K scales", head="lws", loss="ce", sampler="balanced", shifted=True,
           **_LIKE_KANG | {"epochs": 5}, published=f"{_RECIPE} schedule"),
    Method("tau_norm", "rows divided by their norm to the τ, no bias", f"{_KANG}, who choose τ on validation",
           learns="nothing", head="tau_norm", options={"tau": 1.0}, candidates={"tau": TAUS}),
    Method("ncm", "nearest class mean, cosine", _KANG, learns="nothing", start="features", head="ncm",
           differs="its source leaves the class means at their length"),
    Method("cb", "class-balanced weights", "Cui et al. 2019",
           loss="cb", **_LIKE_KANG, options={"beta": 0.9999}, candidates={"beta": (0.999, 0.9999, 0.99999)},
           published="beta"),
    Method("focal", "focal loss", "Lin et al. 2017",
           loss="focal", **_LIKE_KANG, options={"gamma": 1.0}, candidates={"gamma": (1.0, 4.0, 10.0)},
           published="gamma"),
    Method("ldam", "margins by frequency, cosine classifier", "Cao et al. 2019",
           head="ldam", loss="ldam", **_LIKE_KANG, options={"max_margin": 0.5, "scale": 30.0},
           candidates={"max_margin": (0.0, 0.2, 0.5)}, published="max_margin scale",
           differs="its source weights the rare classes up late (DRW)"),
    Method("bsce", "Balanced Softmax", "Ren et al. 2020, decoupled: 2,000 steps of 512 images",
           start="fresh", fixed={"fresh": True}, loss="bsce", epochs=20, lr=0.1, per_batch=512, wd=5e-4,
           options={"tau": 1.0}, candidates={"tau": (0.5, 1.0, 1.5)},
           by_ratio={ratio: {"finetune_epoch": n} for ratio, n in ((100, 94), (50, 81), (10, 52))},
           own={"finetune_lr": 0.4}, published=f"{_RECIPE} tau"),
    Method("la", "logit adjustment after training", "Menon et al. 2021",
           learns="nothing", head="la", options={"tau": 1.0}, candidates={"tau": TAUS}, published="tau"),
    Method("lade", "label distribution disentangling", "Hong et al. 2021",
           loss="lade", **_LIKE_KANG, options={"alpha": 0.1, "lam": 0.01},
           candidates={"alpha": (0.1, 1.0, 10.0)}, published="alpha lam"),
    Method("disalign", "confidence-aware alignment", "Zhang et al. 2021",
           learns="K scales, K shifts, confidence", head="disalign", loss="power", epochs=10, lr=0.1,
           per_batch=256, wd=5e-4, options={"rho": 1.2}, candidates={"rho": RHOS},
           published=f"{_RECIPE} rho"),
    Method("marc", "margin calibration", "Wang et al. 2022",
           learns="K scales, K shifts", head="marc", loss="power", epochs=10, lr=0.05, per_batch=512, wd=5e-4,
           options={"rho": 1.2}, candidates={"rho": RHOS}, published="lr wd batch rho"),
    Method("wb", "weight balancing: decay, MaxNorm", "Alshammari et al. 2022",
           loss="wb", epochs=10, lr=0.01, wd=0.1, shifted=True, options={"beta": 0.9999, "max_norm": 0.1},
           candidates={"finetune_wd": (0.00001, 0.001, 0.1)}, own={"finetune_wd": 0.01},
           published="schedule", second_hand=f"{_RECIPE} beta max_norm"),
    Method("label_aware", "smoothing by frequency, MiSLAS", "Zhong et al. 2021",
           learns="classifier, K scales", head="lws", fixed={"whole": True}, loss="label_aware",
           sampler="balanced", epochs=10, lr=0.1, per_batch=128, wd=2e-4,
           factors={"weight": 0.2, "bias": 0.2}, options={"eps_head": 0.4, "eps_tail": 0.1},
           candidates={"eps_head": (0.2, 0.3, 0.4)},
           by_ratio={ratio: {"eps_head": head, "eps_tail": tail}
                     for ratio, head, tail in ((100, 0.4, 0.1), (50, 0.3, 0.0), (10, 0.2, 0.0))},
           published=f"{_RECIPE} eps_head eps_tail",
           differs="its source lets batch-norm follow the sampler"),
    Method("etf", "fixed equiangular prototypes", "Yang et al. 2022",
           learns="D x K map", start="fresh", head="etf", loss="ce", **_LIKE_KANG,
           options={"scale": 30.0}, candidates={"scale": (10.0, 30.0, 90.0)},
           differs="its source has the dot-regression loss, and features of width K - 1 or more"),
    Method("los_weighted", "LOS, class penalties by π^a", "ours, from the identity of LOS; uses the counts",
           loss="los_weighted", epochs=None, options={"label_smooth": None, "path": None, "power": 0.5},
           candidates={"power": (0.25, 0.5, 1.0)}),
    Method("samn", "row norms rising with rarity", "Zhang et al. 2026, as we read it",
           head="samn", loss="ce", epochs=20, lr=5e-4, second_hand=f"{_RECIPE} schedule"),
    Method("logreg", "logistic regression, classes alike", "scikit-learn",
           learns="classifier, at once", start="features", head="logreg",
           options={"logreg_c": 1.0}, candidates={"logreg_c": PENALTIES}),
)
# fmt: on
METHODS = {method.name: method for method in _TABLE}
