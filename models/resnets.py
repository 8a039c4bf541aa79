"""torchvision's ResNets for small images and for photographs, and the thin ResNets of the CIFAR papers.

All keep torchvision's parameter names and shapes (conv1, bn1, layerL.B.conv1, ..., fc), so that state dicts
go both ways, strictly. Shapes: N batch, C channels, H, W, D feature, K classes.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as tv

from models.adapt import Network


class ResNet(Network, tv.ResNet):
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
            self._begin_with(nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False))

    def _begin_with(self, conv1: nn.Conv2d) -> None:
        self.conv1 = conv1
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> pooled features [N, D]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)


class SmallResNet(ResNet):
    """The same with a 3x3 stride-1 `conv1` and no max-pool. Source: the LOS paper's CIFAR100-LT runs."""

    def __init__(
        self, block: type[nn.Module], layers: Sequence[int], num_classes: int, in_channels: int, *widths: int
    ) -> None:
        super().__init__(block, layers, num_classes, 3, *widths)
        self._begin_with(nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False))
        self.maxpool = nn.Identity()


STEMS = {"small": SmallResNet, "imagenet": ResNet}


class PadShortcut(nn.Module):
    """Parameter-free shortcut: every second pixel, new channels zero. Source: He et al. 2016, option A."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C + extra, H/2, W/2], the new channels half before and half behind."""
        half = self.extra_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra_channels - half))


class ThinResNet(Network):
    """ResNet-(6n+2) of the CIFAR papers: widths 16, 32, 64, n blocks each, D = 64.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _thin_stage(16, 16, blocks)
        self.layer2 = _thin_stage(16, 32, blocks)
        self.layer3 = _thin_stage(32, 64, blocks)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> pooled features [N, D]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean(dim=(2, 3))


def _thin_stage(width_in: int, width: int, blocks: int) -> nn.Sequential:
    narrower = {"stride": 2, "downsample": PadShortcut(width - width_in)} if width_in != width else {}
    first = tv.BasicBlock(width_in, width, **narrower)
    return nn.Sequential(first, *[tv.BasicBlock(width, width) for _ in range(blocks - 1)])
