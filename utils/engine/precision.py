"""Mixed precision and compilation, put into a network once, where every loop passes.

Shapes: N batch, D feature.
"""

import math
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from utils.base.errors import UserError
from utils.engine.scoring import CPU_ROWS, EVAL_BATCH
from utils.settings.config import Config

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TIMED_CALLS = 3


class Compiled:
    """A forward pass that torch.compile makes for batches of the lengths `full`; others run as they are.

    So a last, smaller batch costs no compilation of its own, and which way a batch goes depends on its length
    alone. Give `tell` a function to hear, with the second training batch of the `steps`, what compiling cost
    and after how many steps that has paid.
    """

    def __init__(self, model: nn.Module, full: Collection[int]) -> None:
        self.model, self.full = model, full
        self.plain, self.fast = model.forward_features, torch.compile(model.forward_features, dynamic=False)
        self.tell: Callable[[str], None] | None = None
        self.steps, self._started = math.inf, 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Features [N, D] of a batch."""
        if len(x) not in self.full:
            return self.plain(x)
        if self.tell and self.model.training:
            self._watch(x)
        return self.fast(x)

    def _watch(self, x: Tensor) -> None:
        if not self._started:
            self._started = time.perf_counter()
            return
        tell, self.tell = self.tell, None
        cost = time.perf_counter() - self._started
        tell(
            verdict(cost, _seconds(self.model, self.plain, x), _seconds(self.model, self.fast, x), self.steps)
        )


def verdict(cost: float, plain: float, fast: float, steps: float) -> str:
    """A line: does compiling for `cost` seconds pay within `steps` steps of `plain` or `fast` seconds?"""
    line = f"--compile: {cost:.0f} s for the first step; a pass and back {fast:.3f} s, {plain:.3f} s without"
    if fast >= plain:
        return f"{line}: it does not pay here, leave it out"
    needed = math.ceil(cost / (plain - fast))
    advice = "" if needed <= steps else f", this run has {steps}: leave it out"
    return f"{line}: it pays after {needed} steps{advice}"


def _seconds(model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest of a few forward and backward passes, which leave no trace in `model` or random state."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    seconds = []
    with torch.random.fork_rng():
        for _ in range(TIMED_CALLS):
            started = time.perf_counter()
            torch.autograd.grad(forward(x).sum(), weights, allow_unused=True)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - started)
    for buffer, value in before:
        buffer.copy_(value)
    return min(seconds)


def speed_up(
    model: nn.Module, config: Config, device: torch.device, batch_size: int = EVAL_BATCH
) -> Compiled | None:
    """Run the backbone of `model` as `--amp` and `--compile` say; what it gives out stays float32.

    The classifier stays in float32: its logits decide the loss, and it costs next to nothing. Full batches,
    in training of `batch_size`, run compiled; returns what does that.

    Raises:
        UserError: fp16 on a device that cannot train in it.
    """
    if config.amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs a CUDA device, this run is on {device.type}: take bf16 or off")
    full = {batch_size, CPU_ROWS} if device.type == "cpu" else {batch_size, EVAL_BATCH, 2 * EVAL_BATCH}
    compiled = Compiled(model, full) if config.compile else None
    if compiled:
        model.forward_features = compiled
    if config.amp != "off":
        model.forward_features = _autocast(model.forward_features, device.type, _TYPES[config.amp])
    return compiled


def slow_bf16(config: Config, device: torch.device) -> str | None:
    """A note where `--amp bf16` costs time in place of saving it: on a CPU without instructions for it."""
    known = hasattr(torch.cpu, "get_capabilities")  # torch 2.11 may not say
    if config.amp != "bf16" or device.type != "cpu" or not known:
        return None
    has = torch.cpu.get_capabilities()
    if any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return None
    return (
        "--amp bf16: this CPU has no instructions for it, the run will be several times slower than without"
    )


def _autocast(forward: Callable, device: str, dtype: torch.dtype) -> Callable:
    def mixed(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            features = forward(x)
        return features.float()

    return mixed


def loss_scaler(config: Config) -> torch.amp.GradScaler:
    """What keeps fp16 gradients in range; of every other precision it changes nothing."""
    return torch.amp.GradScaler("cuda", enabled=config.amp == "fp16")
