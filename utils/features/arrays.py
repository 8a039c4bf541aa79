"""Arrays in .npy files of the user's: mapped, never unpickled, refused in a line.

Shapes: N images, D feature, V views.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.base.errors import UserError, reason
from utils.base.files import require_file
from utils.packs.pack import narrowed


def load_array(path: Path, kinds: str, dimensions: Sequence[int], expected: str) -> np.ndarray:
    """The mapped array of a .npy file, of a NumPy kind (f: float, i and u: integer) and dimension allowed."""
    require_file(path)
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # never unpickles; "c": PyTorch wants it writable
    except Exception as error:  # a broken file can raise nearly anything
        why = f"is no .npy file of numbers ({reason(error):.200})"
        raise UserError(f"{path} {why}: write one with numpy.save") from error
    if array.dtype.kind not in kinds or array.ndim not in dimensions:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected {expected}")
    return array


def load_floats(path: Path, dtype: type, axes: str) -> Tensor:
    """Floats of a .npy file as `dtype`, with the dimensions of `axes`, "[N, D] or [V, N, D]"."""
    dimensions = [option.count(",") + 1 for option in axes.split(" or ")]
    array = load_array(path, "f", dimensions, f"floats {axes}")
    advice = "take --dtype fp32, or scale them" if dtype is np.float16 else "scale them"
    return torch.from_numpy(narrowed(array, dtype, str(path), advice))
