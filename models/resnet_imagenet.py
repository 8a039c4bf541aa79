"""ResNets for photographs: torchvision's networks, with the contract of models/__init__.py.

Names and shapes of parameters are torchvision's, so that state dicts go both ways, strictly.
Shapes: N batch, C channels, H, W, D feature, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv

from models.adapt import Network


class ImageNetResNet(Network, tv.ResNet):
    """torchvision's ResNet as it is: 7x7 stride-2 `conv1`, max-pool; `widths`: groups, channels a group.

    D = 512 with basic blocks, 2048 with bottlenecks. Initialised as torchvision does, the last batch-norm of
    a block at 1 and not at 0 (`zero_init_residual` stays off): so does the public code of Decoupling (Kang et
    al. 2020), whose settings the long-tailed field takes over.
    """

    def __init__(
        self, block: type[nn.Module], layers: Sequence[int], num_classes: int, in_channels: int, *widths: int
    ) -> None:
        super().__init__(block, list(layers), num_classes, False, *widths)
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> pooled features [N, D]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)
