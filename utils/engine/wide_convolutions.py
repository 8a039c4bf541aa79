"""Weight gradients of wide convolutions as one matrix product, for bf16 on a CPU with matrix units (AMX).

The library's own kernel for them stays far below the rate of those units where a convolution has many
channels and few pixels: it is the largest part of a step of ResNet-34 (docs/speed.md).

Shapes: N batch, C channels in, O channels out, H x W pixels out, k x k pixels of a kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# measured on CIFAR's ResNet-34: below this width the library's kernel is as fast
_CHANNELS = 256
# numbers of the matrix of patches, above which it no longer pays: 64 MiB
_PATCHES = 2**25


class WideConv2d(nn.Conv2d):
    """A 3x3 convolution of at least 256 channels; of nn.Conv2d it takes over everything but one gradient."""

    def forward(self, x: Tensor) -> Tensor:
        patches = 9 * x.numel() // (self.stride[0] * self.stride[1])
        if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")) or patches > _PATCHES:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu")
        return _Convolve.apply(x.to(dtype), self.weight.to(dtype), self.stride, self.padding)


class _Convolve(torch.autograd.Function):
    """x [N, C, ., .], weight [O, C, k, k] -> [N, O, H, W]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple:  # noqa: ANN001
        (x, weight), stride, (high, wide) = ctx.saved_tensors, ctx.stride, ctx.padding
        shape, slope = weight.shape, slope.contiguous(memory_format=torch.channels_last)
        to_input = torch.nn.grad.conv2d_input(x.shape, weight, slope, stride, ctx.padding)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, wide, wide, high, high)).contiguous()
        rows = slope.permute(0, 2, 3, 1).flatten(0, 2)  # [N H W, O]
        n, down, across, channel = padded.stride()
        size = (len(x), *slope.shape[2:], *shape[2:], shape[1])
        steps = (n, down * stride[0], across * stride[1], down, across, channel)
        patches = padded.as_strided(size, steps).reshape(len(rows), -1)  # [N H W, k k C]
        to_weight = (rows.t().contiguous() @ patches).view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        return to_input, to_weight, None, None


def widen(model: nn.Module) -> None:
    """Make WideConv2d of the convolutions that gain by it; weights, names and results stay."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.bias is None and module.padding_mode == "zeros"
        usual = plain and module.kernel_size == (3, 3) and module.padding == module.dilation == (1, 1)
        if usual and module.groups == 1 and module.in_channels >= _CHANNELS:
            module.__class__ = WideConv2d
