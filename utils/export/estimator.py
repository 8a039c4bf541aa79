"""Stage 2 on features of one's own as an estimator of scikit-learn.

    from utils.export import LongTailClassifier

    LongTailClassifier(method="los").fit(X, y).predict_proba(X_test)

Shapes: N rows, D feature, K classes.
"""

from inspect import Parameter, signature
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from datasets.long_tail import held_out_mask
from models.heads.los_path import usual_path
from utils.base.errors import SettingError, UserError
from utils.features.brought import fit_classifier
from utils.features.frozen import pack_representation
from utils.features.logits import head_logits
from utils.heads.epochs import all_epochs, start_heads, train_epoch
from utils.heads.head import copied
from utils.heads.outcome import choose, lead_of
from utils.heads.plan import plan_heads
from utils.packs.pack import Pack, check
from utils.run.facts import OWN
from utils.settings.chosen import lead_method
from utils.settings.config import resolve
from utils.settings.data import scored_parts
from utils.settings.table import ARGUMENTS, STAGE2

_GROUPS = ("optimisation", "label over-smoothing", "options of methods (commas make a sweep)")
# arguments of stage 2 that are arguments here
OPTIONS = ("budget", *(one.name for one in ARGUMENTS if one.group in _GROUPS and STAGE2 in one.scripts))


class LongTailClassifier(ClassifierMixin, BaseEstimator):
    """What `main_stage2.py --features` trains on the same rows, labels of any kind, features of any scale.

    `method` and each of `options` are what stage 2 calls so (docs/arguments.md), None: its default. A list of
    values is a sweep. `select="val"` chooses epoch and settings on the rows X_val of `fit`, or else on the
    share `val_fraction` of each class, which then does not train. Of several methods the one that does best
    there is taken, with "last" the first named. `random_state` is the seed, None one that is drawn. Features
    become float32.
    """

    def __init__(
        self,
        method: str = "los",
        select: str = "last",
        val_fraction: float = 0.2,
        random_state: int | None = 0,
        **options: object,
    ) -> None:
        self.method, self.select, self.val_fraction = method, select, val_fraction
        self.random_state = random_state
        for name in OPTIONS:
            setattr(self, name, options.pop(name, None))
        for name in options:
            known = "say random_state" if name == "seed" else f"an option of no method: {', '.join(OPTIONS)}"
            raise TypeError(f"LongTailClassifier got {name}, {known}")

    def fit(
        self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None
    ) -> Self:
        """Train on X [N, D] with labels y [N]. Raises ValueError: arrays, a method or an option are wrong."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise SettingError(f"y holds one class only, {self.classes_[0]}: at least 2 are needed")
        val = None
        if (X_val is None) != (y_val is None):
            raise SettingError("X_val and y_val belong together: give both or none")
        if X_val is not None:
            X_val, y_val = validate_data(self, X_val, y_val, dtype=np.float32, reset=False)
            if unknown := set(y_val) - set(self.classes_):
                raise SettingError(f"y_val holds {unknown.pop()}, which is no label of y")
            val = _tensor(X_val), torch.from_numpy(np.searchsorted(self.classes_, y_val))
        try:
            self._train(_tensor(X), torch.from_numpy(labels), val)
        except UserError as error:
            raise SettingError(str(error).replace("--", "")) from error
        return self

    def _train(self, x: Tensor, labels: Tensor, val: tuple[Tensor, Tensor] | None) -> None:
        if self.select not in ("last", "val"):
            raise UserError(f"select must be last or val, got {self.select!r}")
        facts = {"dataset": "estimator", "imb_ratio": None, "network": "features", "preset": OWN}
        facts |= {"num_class": len(self.classes_), "class_names": [str(name) for name in self.classes_]}
        facts["val_source"] = "own" if val or self.select == "val" else "none"
        method = "los" if self.method is None else self.method
        if isinstance(method, list | tuple):
            method = ",".join(map(str, method))
        if not isinstance(method, str):
            raise UserError(f"method must be a name or several, got {method!r:.60}")
        given = {"method": method, "select": self.select, "seed": self.random_state}
        given |= {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        config = resolve(STAGE2, given, facts | {"path": usual_path(labels.bincount().tolist())})
        if self.select == "val" and val is None:
            mask = torch.from_numpy(held_out_mask(labels.numpy(), self.val_fraction, config.seed))
            if not mask.any():
                raise UserError("no class has a row to spare for validation: give X_val and y_val")
            val, x, labels = (x[mask], labels[mask]), x[~mask], labels[~mask]
        fc_weight, fc_bias, _ = fit_classifier(x, labels, len(self.classes_), val)
        facts |= {"class_counts": labels.bincount().tolist(), "val_clean": bool(val)}
        facts |= {"train_views": "plain", "stage1_digest": None}
        held = (val[0][None], val[1]) if val else (None, None)
        # without validation rows a pack needs a test part, on which nothing is done here
        pack = Pack(x[None], labels, x[None, :1], labels[:1], *held, fc_weight, fc_bias, facts)
        check(pack)
        frozen = pack_representation(pack, torch.device("cpu"))
        scored = scored_parts(frozen.labels, config.select)
        heads = start_heads(plan_heads(config)[0], frozen, scored, config)
        for epoch in all_epochs(heads):
            train_epoch(heads, epoch, scored, workers=torch.get_num_threads())
        lead = lead_of(choose(heads, config.select), lead_method(method, None, config.select))
        lead.load_chosen()
        lead.head.load_state_dict(copied(lead.head.state_dict()), assign=True)  # not views into a stack
        self.head_, self.scale_ = lead.head.requires_grad_(False), frozen.scale
        self.method_, self.setting_ = lead.plan.method.name, lead.plan.setting

    def _logits(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        x = _tensor(validate_data(self, X, dtype=np.float32, reset=False))
        return head_logits(self.head_, self.scale_.apply(x)[None])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Softmax probabilities [N, K] in the order of `classes_`."""
        return self._logits(X).double().softmax(dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray:
        """The label of each row [N]."""
        first = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[first]


def _tensor(array: NDArray) -> Tensor:
    """torch warns of arrays that it may not write to."""
    return torch.from_numpy(np.require(array, requirements="CW"))


# scikit-learn reads the names of the options here, and so does help()
_own = signature(LongTailClassifier.__init__)
_parameters = [one for one in _own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
_parameters += [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=object) for name in OPTIONS]
LongTailClassifier.__init__.__signature__ = _own.replace(parameters=_parameters)
