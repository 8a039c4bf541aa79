"""Networks as a user might write them; tests/test_own_networks.py copies this into a folder of theirs."""

import torch
from torch import nn

CONSTANT = 3
MODES = []


def tiny(num_classes):
    """Dropout and batch-norm, which a trial could disturb."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4, num_classes),
    )


class Whole(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)
        self.norm.eval()

    def forward_features(self, x):
        return self.norm(self.conv(x)).mean((2, 3))

    def forward(self, x):
        torch.rand(1)
        MODES.append((self.training, torch.is_grad_enabled()))
        return self.fc(self.forward_features(x))


class Maps(Whole):
    """As some libraries have it: forward_features gives maps, which are pooled later."""

    def forward_features(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.fc(self.forward_features(x).mean((2, 3)).relu())


class Middle(Whole):
    """A layer `fc` that is not the last, with as many outputs."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.last, self.body = nn.Linear(num_classes, num_classes), nn.Conv2d(4, 4, 1)

    def forward_features(self, x):
        return self.body(self.norm(self.conv(x)))

    def forward(self, x):
        return self.last(self.fc(self.forward_features(x).mean((2, 3))).relu())


class Beside(Whole):
    """A second classifier that nothing comes of, used after the first."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.aux = nn.Linear(4, num_classes)

    def forward(self, x):
        features = self.forward_features(x).relu()
        logits = self.fc(features)
        self.aux(features)
        return logits


class Counting(Whole):
    """A buffer that every forward changes."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


def positional(k, /):
    return tiny(k)


def only_64(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8), nn.Linear(8, num_classes))


def only_50(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7500, num_classes), nn.Linear(num_classes, num_classes))


def softmax(num_classes):
    return tiny(num_classes).append(nn.Softmax(dim=1))


def scaled(num_classes):
    class Scaled(Whole):
        def forward(self, x):
            return 2 * super().forward(x)

    return Scaled(num_classes)


def convolution(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def other_size(num_classes):
    return tiny(num_classes + 1)


def two_outputs(num_classes):
    class Two(Whole):
        def forward(self, x):
            return super().forward(x), x

    return Two(num_classes)


def reads_its_weight(num_classes):
    class Reads(Whole):
        def forward(self, x):
            x = self.forward_features(x).to(self.fc.weight.dtype)
            return self.fc(x / self.fc.weight.norm())

    return Reads(num_classes)


def lazy(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, num_classes))


def words(num_classes):
    return "a network"


def fails(num_classes):
    raise RuntimeError("no\nnet")


def two_arguments(width, depth):
    return tiny(10)


def imports_late(num_classes):
    from own_nets_beside import width

    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(3, width), nn.Linear(width, num_classes))
