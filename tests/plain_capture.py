"""Graphed steps without a GPU: a capture whose replay calls the step, with results where a graph's lie."""

import torch

from utils.engine.graphs import Work


class PlainCapture:
    """In place of CudaCapture. Its results lie in the same places at every replay, as a graph's do."""

    def __init__(self) -> None:
        self.asides = self.captures = self.replays = 0

    def aside(self, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
        self.asides += 1
        return work()

    def capture(self, work: Work) -> Work:
        self.captures += 1
        places: list[torch.Tensor] = []

        def replay() -> tuple[torch.Tensor, torch.Tensor]:
            self.replays += 1
            results = work()
            if not places:
                places.extend(torch.empty_like(result) for result in results)
            for place, result in zip(places, results, strict=True):
                place.copy_(result)
            return places[0], places[1]

        return replay
