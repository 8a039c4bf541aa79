"""One scale for features that a user brought, so that each learning rate and weight decay has one meaning.

Encoders give features of any length, and no recipe is published for them. Features of this project's networks
stay as they are: the published recipes are stated in them.

Shapes: N training images, D feature, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.heads import INPUT
from utils.base.errors import UserError

# root mean square of the length of standardised training features, for any D: chosen on validation
LENGTH = 16.0
_ROWS = 4096  # in float64 at a time
_CONSTANT = 1e-6  # of a feature's mean, taken in float64: what varies less is how float32 rounds values


@dataclass(frozen=True)
class Scale:
    """x -> (x - centre) * factor, feature by feature; float64 [D] on the CPU, the factor 0 of a constant."""

    centre: Tensor
    factor: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Scale":
        """That gives training features [N, D] a mean of 0, all of them one variance, and LENGTH.

        Raises UserError: no feature varies.
        """
        chunks = features.split(_ROWS)
        centre = sum(chunk.double().sum(dim=0) for chunk in chunks) / len(features)
        squares = sum((chunk.double() - centre).square().sum(dim=0) for chunk in chunks)
        deviation = (squares / len(features)).sqrt()
        varies = deviation > _CONSTANT * centre.abs()
        if not varies.any():
            raise UserError("all training features are alike: there is nothing to learn from them")
        centre = centre.float().double()  # as it is subtracted
        return cls(centre, torch.where(varies, LENGTH / varies.sum().sqrt() / deviation, 0.0))

    def apply(self, features: Tensor) -> Tensor:
        """features [..., D] -> float32 [..., D]."""
        centre, factor = (numbers.float().to(features.device) for numbers in (self.centre, self.factor))
        return torch.sub(features, centre).mul_(factor)

    def state(self) -> dict[str, Tensor]:
        """For a head that is not affine, and takes features as they come with these in its state."""
        return dict(zip(INPUT, (self.centre.float(), self.factor.float()), strict=True))

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """`weight` [K, D] and `bias` [K] for features as they come, of those for standardised ones."""
        rows = weight.detach().cpu().double() * self.factor
        return rows.to(weight), (bias.detach().cpu() - rows @ self.centre).to(bias)

    def unfolded(self, fc: nn.Linear) -> nn.Linear:
        """The classifier of standardised features that is `fc`, which takes them as they come."""
        rows, own = fc.weight.detach().double(), nn.Linear(fc.in_features, fc.out_features)
        scaled = torch.where(self.factor > 0, rows / self.factor, 0.0)
        own.load_state_dict({"weight": scaled, "bias": fc.bias.detach() + rows @ self.centre})
        return own
