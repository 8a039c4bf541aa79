"""Mixed precision and compilation, put into a network once, where every loop passes.

Shapes: N batch, D feature.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from utils.base.errors import UserError
from utils.engine.scoring import CPU_ROWS, EVAL_BATCH
from utils.engine.wide_convolutions import widen
from utils.settings.config import Config

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[[Tensor], Tensor]


def speed_up(model: nn.Module, config: Config, device: torch.device, batch_size: int = EVAL_BATCH) -> None:
    """Run the backbone of `model` as `--amp` and `--compile` say; what it gives out stays float32.

    The classifier stays in float32: its logits decide the loss, and it costs next to nothing. Full batches,
    in training of `batch_size`, run compiled.
    """
    if config.amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs a CUDA device, this run is on {device.type}: take bf16 or off")
    if config.compile:
        full = {batch_size, CPU_ROWS} if device.type == "cpu" else {batch_size, EVAL_BATCH, 2 * EVAL_BATCH}
        model.forward_features = _compiled(model.forward_features, full)
    if config.amp == "bf16" and device.type == "cpu" and not config.compile and "amx_bf16" in _instructions():
        widen(model)
    if config.amp != "off":
        model.forward_features = _autocast(model.forward_features, device.type, _TYPES[config.amp])
    if config.compile or config.amp != "off":  # a user's network may have another way to its logits
        model.forward = lambda x: model.fc(model.forward_features(x))


def _compiled(forward: Forward, full: Collection[int]) -> Forward:
    """Batches of the lengths `full` run compiled, others as they are: a last, smaller one compiles nothing.

    So which way a batch goes depends on its length alone.
    """
    fast = torch.compile(forward, dynamic=False)
    return lambda x: (fast if len(x) in full else forward)(x)


def _autocast(forward: Forward, device: str, dtype: torch.dtype) -> Forward:
    def mixed(x: Tensor) -> Tensor:
        """Features [N, D] of a batch."""
        with torch.autocast(device, dtype):
            features = forward(x)
        return features.float()

    return mixed


def slow_bf16(config: Config, device: torch.device) -> str | None:
    """A note where `--amp bf16` costs time in place of saving it: on a CPU without instructions for it."""
    if config.amp != "bf16" or device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    if _instructions() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return None
    return "--amp bf16: this CPU has no instructions for it, the run will be several times slower"


def _instructions() -> set[str]:
    """What this CPU can do, by torch's names; none where torch (2.11) does not say."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return {name for name, has in known.items() if has}


def loss_scaler(config: Config) -> torch.amp.GradScaler:
    """What keeps fp16 gradients in range; of every other precision it changes nothing."""
    return torch.amp.GradScaler("cuda", enabled=config.amp == "fp16")
