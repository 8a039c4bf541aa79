"""Mixed precision and compilation, put into a network once, where every loop passes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def speed_up(model: nn.Module, config: Config, device: torch.device) -> None:
    """Run the backbone of `model` as `--amp` and `--compile` say; what it gives out stays float32.

    The classifier stays in float32: its logits decide the loss, and it costs next to nothing.

    Raises:
        UserError: fp16 on a device that cannot train in it.
    """
    if config.amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs a CUDA device, this run is on {device.type}: take bf16 or off")
    if config.compile:
        model.forward_features = torch.compile(model.forward_features)
    if config.amp != "off":
        model.forward_features = _autocast(model.forward_features, device.type, _TYPES[config.amp])


def _autocast(forward: Callable, device: str, dtype: torch.dtype) -> Callable:
    def mixed(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            features = forward(x)
        return features.float()

    return mixed


def loss_scaler(config: Config) -> torch.amp.GradScaler:
    """What keeps fp16 gradients in range; of every other precision it changes nothing."""
    return torch.amp.GradScaler("cuda", enabled=config.amp == "fp16")
