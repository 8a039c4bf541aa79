"""mixup: stage 1 learns from mixtures of two images, with their labels mixed in the same shares.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; stage 1 of MiSLAS trains so (Zhong et
al., CVPR 2021). torchvision's MixUp draws from the global random stream, so a resume could not repeat it.

Shapes: N images of a part, P images of a full part, K classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from utils.base.seeding import number_for
from utils.engine.step import Steps


@dataclass(frozen=True)
class Mixup:
    """Mixes the batches of an epoch: λ x + (1 - λ) x[partner], and the same of the labels, one-hot.

    λ ~ Beta(`alpha`, `alpha`), one for all images of a part; `partner` permutes its images. A part is what a
    process takes at a time. A draw depends on (seed, epoch, number of the part in the epoch, process) only.
    """

    alpha: float
    seed: int
    steps: Steps
    num_classes: int
    device: torch.device

    def draw(self, epoch: int, number: int, rows: int) -> tuple[float, Tensor]:
        """λ, and int64 [P] the partner of each image, of part `number` of an epoch.

        Images behind the first `rows` only fill a part up: they are their own partners, and no other's.
        """
        place = (epoch, number, self.steps.world.rank)
        generator = np.random.default_rng(number_for(self.seed, "mixup", *place))
        partner = np.arange(self.steps.part_size)
        generator.shuffle(partner[:rows])
        return generator.beta(self.alpha, self.alpha), torch.from_numpy(partner)

    def __call__(
        self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int, done: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, ...] with labels [N] -> mixed images, and shares of the classes float32 [N, K].

        `batches` are this process's of the epoch but for the first `done`.
        """
        parts = islice(enumerate(self.steps.parts()), done, None)
        drawn = [self.draw(epoch, number, part.rows) for number, part in parts]
        if not drawn:
            return
        # together: a copy at every step would wait for the device
        partners = torch.stack([partner for _, partner in drawn]).to(self.device)
        classes = torch.arange(self.num_classes, device=self.device)
        for (images, labels), (share, _), row in zip(batches, drawn, partners, strict=True):
            partner = row[: len(labels)]
            truth = (labels[:, None] == classes).to(torch.float32)
            yield mixed(images, partner, share), mixed(truth, partner, share)


def mixed(values: Tensor, partner: Tensor, share: float) -> Tensor:
    """`share` of each row of `values` [N, ...], and the rest of the row that `partner` int64 [N] names."""
    return share * values + (1 - share) * values[partner]
