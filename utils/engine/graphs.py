"""Whole training steps as CUDA graphs: recorded once for a shape, then replayed by one call of the host.

A step of a small network is hundreds of short kernels, which the host may take longer to start than the
device to run. A replay starts them all at once. What a graph holds are addresses, so a batch is copied into
buffers that stay, and the learning rate is a tensor on the device. See docs/gpu.md for how this is tested.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from utils.base.distributed import World
from utils.base.errors import UserError, reason
from utils.engine.step import Part, TrainStep
from utils.settings.config import Config

# a shape's first steps run one by one: libraries set themselves up, and the optimiser makes its state
WARM_STEPS = 3
MOST_GRAPHS = 2  # the whole batch, and the last one of an epoch

Work = Callable[[], tuple[Tensor, Tensor]]


class CudaCapture:
    """All that needs a CUDA device: a side stream to warm up on, and the capture itself."""

    def __init__(self) -> None:
        self._side = torch.cuda.Stream()

    def aside(self, work: Work) -> tuple[Tensor, Tensor]:
        """Do `work` on the side stream, between what came before and what comes after."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = work()
        torch.cuda.current_stream().wait_stream(self._side)
        return result

    def capture(self, work: Work) -> Work:
        """Record `work` without doing it; what comes back does it, with its results in the same places."""
        try:
            graph = torch.cuda.CUDAGraph()
            # thread_local: a loader's thread may pin memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            what = f"a training step could not be recorded ({reason(error):.300})"
            raise UserError(f"--cuda_graphs: {what}") from error

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return result

        return replay


@dataclass
class _Shape:
    """A shape of batches: the buffers that its graph reads, its steps so far, its graph once there is one."""

    inputs: Tensor
    targets: Tensor
    steps: int = 0
    replay: Work | None = None


class GraphedSteps:
    """Takes a batch as the TrainStep that it wraps does, by replaying a graph; nothing waits for the device.

    The first WARM_STEPS steps of a shape run one by one, and all of the shapes beyond MOST_GRAPHS. Those of a
    shape that cannot be recorded do, too, and `note` is told. Every step has one part. Between the steps the
    optimiser holds its learning rate as a number, as without graphs.
    """

    def __init__(self, step: TrainStep, capture: CudaCapture, note: Callable[[str], None]) -> None:
        self._step, self._capture, self._note = replace(step, look=False), capture, note
        self.optimizer = step.optimizer
        self._shapes: dict[tuple, _Shape] = {}
        device = next(step.model.parameters()).device
        self._rate = torch.zeros((), device=device)  # float32: the fused kernel reads no other

    def __call__(self, inputs: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Summed loss and hits, both [], as of TrainStep; they are good until the next step."""
        rate = self.optimizer.param_groups[0]["lr"]  # of all groups: see `train_epoch`
        self._set_rate(self._rate.fill_(rate))
        try:
            return self._take(inputs, targets, part)
        finally:
            self._set_rate(rate)

    def _set_rate(self, rate: Tensor | float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _take(self, inputs: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        key = (inputs.shape, inputs.stride(), inputs.dtype, part)
        if key not in self._shapes:
            if len(self._shapes) == MOST_GRAPHS:
                return self._step(inputs, targets, part)
            self._shapes[key] = _Shape(torch.empty_like(inputs), torch.empty_like(targets))
        shape = self._shapes[key]
        shape.inputs.copy_(inputs)
        shape.targets.copy_(targets)
        if shape.steps < WARM_STEPS:
            shape.steps += 1
            return self._capture.aside(lambda: self._step(shape.inputs, shape.targets, part))
        if shape.replay is None:
            shape.replay = self._recorded(lambda: self._step(shape.inputs, shape.targets, part))
        return shape.replay()

    def _recorded(self, work: Work) -> Work:
        """The step as a graph, or as it is where it cannot be recorded."""
        # gradients must be None here, and are: a step leaves none behind
        try:
            return self._capture.capture(work)
        except UserError as error:
            self.optimizer.zero_grad()  # a recording that broke off may leave some that no step has made
            self._note(f"{error}: steps like it run one by one")
            return work


def wanted(config: Config, device: torch.device, world: World, resumed: bool = False) -> bool:
    """Are steps to be graphed? A run that is `resumed` on a device without graphs goes on without."""
    if not config.cuda_graphs or (resumed and device.type != "cuda"):
        return False
    own = "what your code does in Python would happen once, while the step is recorded, and not again"
    for found, words, why in (
        (config.accum > 1, f"--accum {config.accum}", "a graph is a whole step in one part"),
        (config.amp == "fp16", "--amp fp16", "its loss scaling asks the host after every step; take bf16"),
        (config.compile, "--compile", "what compiling puts off could fall into the recording"),
        (world.size > 1, f"{world.size} processes", "what processes exchange is not recorded"),
        (":" in config.network, f"--network {config.network}", own),
    ):
        if found:
            raise UserError(f"--cuda_graphs does not go with {words}: {why}")
    if device.type != "cuda":
        raise UserError(f"--cuda_graphs needs a CUDA device, this run is on {device.type}")
    return True
