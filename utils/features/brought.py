"""What a user brings: arrays in .npy files, and features without a classifier, to which one is fitted.

Shapes: N images, D feature, K classes, V views.
"""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.long_tail import held_out_mask
from models import build_head
from models.heads.means import MOST, logistic_rows
from utils.base.errors import UserError, reason
from utils.base.files import require_file
from utils.features.scale import Scale
from utils.packs.pack import narrowed

PENALTIES = (0.01, 0.1, 1.0, 10.0)
_SPLITS = 3  # of the training features, where there are no validation features


def fit_classifier(
    features: Tensor, y: Tensor, num_class: int, val: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, str]:
    """A logistic regression on features [N, D], labels `y` [N]: weights [K, D], biases [K], a line on it.

    Its penalty is the one with the least loss, classes alike, on validation or held-out training features: by
    accuracy a sharper one may win, from which methods that correct probabilities gain less.
    """
    start, scale = time.perf_counter(), Scale.of(features)
    x, where = scale.apply(features), "validation"
    if val is not None:
        splits = [(x, y, scale.apply(val[0]), val[1])]
    else:
        where = f"{_SPLITS} held-out fifths of them"
        masks = [torch.from_numpy(held_out_mask(y.numpy(), 0.2, seed)) for seed in range(_SPLITS)]
        splits = [(x[~mask], y[~mask], x[mask], y[mask]) for mask in masks if mask.any()]
    tried = PENALTIES if x.numel() * num_class <= MOST and splits else (1.0,)

    @cache  # what was scored on validation images was fitted to all training features
    def made(penalty: float | None, x: Tensor, y: Tensor) -> nn.Module:
        """A logistic regression; None: nearest class mean."""
        fc = nn.Linear(x.shape[1], num_class)
        if penalty is None:
            return build_head("ncm", fc, features=x, labels=y)
        rows, bias = logistic_rows(x, y, penalty)
        fc.load_state_dict({"weight": rows, "bias": bias})
        return fc

    @torch.no_grad()
    def score(penalty: float | None) -> tuple[float, float]:
        """Negative loss, classes alike, and accuracy in percent where it was not fitted."""
        logits = torch.cat([made(penalty, x, y)(held) for x, y, held, _ in splits])
        labels = torch.cat([labels for *_, labels in splits])
        loss = F.cross_entropy(logits, labels, 1 / labels.bincount(minlength=num_class).clamp(min=1))
        return -float(loss), 100 * float((logits.argmax(dim=1) == labels).double().mean())

    scores = {penalty: score(penalty) for penalty in tried} if len(tried) > 1 else {1.0: (0.0,)}
    best = max(scores, key=scores.get)
    fc = made(best, x, y)
    told = f"logistic regression on {len(y)} training features, C = {best:g}"
    if len(tried) > 1:
        told += f" of {', '.join(f'{penalty:g}' for penalty in tried)}"
        told += f", {scores[best][1]:.2f}% on {where}, nearest class mean {score(None)[1]:.2f}%"
    fits = 100 * (fc(x).argmax(dim=1) == y).double().mean()
    told += f"; training accuracy {fits:.2f}%; {time.perf_counter() - start:.1f} s"
    weight, bias = scale.folded(fc.weight, fc.bias)
    return weight.float(), bias.float(), told


def load_array(path: Path, kinds: str, dimensions: Sequence[int], expected: str) -> np.ndarray:
    """The mapped array of a .npy file, of a NumPy kind (f: float, i and u: integer) and dimension allowed."""
    require_file(path)
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # never unpickles; "c": PyTorch wants it writable
    except Exception as error:  # a broken file can raise nearly anything
        why, way_out = f"is no .npy file of numbers ({reason(error):.200})", "write one with numpy.save"
        if "Python objects" in str(error):  # as pandas gives text
            why, way_out = "holds Python objects", "save ARRAY.astype(str) if it is text"
        raise UserError(f"{path} {why}: {way_out}") from error
    if array.dtype.kind not in kinds or array.ndim not in dimensions:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected {expected}")
    return array


def load_floats(path: Path, dtype: type, axes: str) -> Tensor:
    """Floats of a .npy file as `dtype`, with the dimensions of `axes`, "[N, D] or [V, N, D]"."""
    dimensions = [option.count(",") + 1 for option in axes.split(" or ")]
    array = load_array(path, "f", dimensions, f"floats {axes}")
    advice = "take --dtype fp32, or scale them" if dtype is np.float16 else "scale them"
    return torch.from_numpy(narrowed(array, dtype, str(path), advice))
