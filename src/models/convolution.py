"""3x3 convolutions over one or a few pixels, as sums of matrix products.

On one pixel eight of the nine taps meet padding, on 2 x 2 pixels five of nine. oneDNN
multiplies these too, and without AVX-512 its gradient by the weights is slow: 512 channels on one
pixel take 30 times as long as the product that is left. ResNet-18 trains 2.1 times as fast at 32
pixels, 1.3 times at 48 (LOG.md).

Shape letters: N images, C and O channels in and out, H x W pixels.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MAX_SIDE, MIN_CHANNELS = 2, 256
Part = tuple[slice, slice, slice]


def convolve(x_NCHW: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv` with other weights (O, C, kernel, kernel) and this bias."""
    stride = conv.stride[0]
    if (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()  # training: predictions and ONNX keep the plain operation
        and conv.kernel_size == (3, 3)
        and conv.in_channels >= MIN_CHANNELS
        and max(x_NCHW.shape[2:]) <= MAX_SIDE * stride
        and x_NCHW.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    ):
        y = SmallConvolution.apply(x_NCHW, weight, stride)
        return y if bias is None else y + bias[:, None, None]  # type: ignore[operator]
    return conv._conv_forward(x_NCHW, weight, bias)


class SmallConvolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1: for each of the nine taps, a product of the pixels that it
    meets within the map."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_OC33: Tensor, stride: int) -> Tensor:
        x, taps_33CO = x_NCHW.permute(0, 2, 3, 1), weight_OC33.permute(2, 3, 1, 0).contiguous()
        n, height, width, _ = x.shape
        sides = ((side - 1) // stride + 1 for side in (height, width))
        out = x.new_zeros(n, *sides, len(weight_OC33))
        for tap, read, written in _taps(height, width, stride):
            out[written] += x[read] @ taps_33CO[tap]
        ctx.save_for_backward(x, taps_33CO)
        ctx.stride = stride
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient_NOHW: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (x, taps_33CO), gradient = ctx.saved_tensors, gradient_NOHW.permute(0, 2, 3, 1)
        by_x, by_taps = torch.zeros_like(x), torch.zeros_like(taps_33CO)
        for tap, read, written in _taps(x.shape[1], x.shape[2], ctx.stride):
            own = gradient[written]
            by_x[read] += own @ taps_33CO[tap].T
            by_taps[tap] = x[read].flatten(0, 2).T @ own.flatten(0, 2)
        return by_x.permute(0, 3, 1, 2), by_taps.permute(3, 2, 0, 1), None


def _taps(height: int, width: int, stride: int) -> Iterator[tuple[tuple[int, int], Part, Part]]:
    """Each tap with the pixels that it reads and those that it writes, if there are any."""

    def within(tap: int, side: int) -> tuple[slice, slice] | None:
        first, last = int(tap == 0), (side - max(tap, 1)) // stride
        if last < first:
            return None
        read = slice(first * stride + tap - 1, last * stride + tap, stride)
        return read, slice(first, last + 1)

    for i in range(3):
        for j in range(3):
            rows, columns = within(i, height), within(j, width)
            if rows and columns:
                every = slice(None)
                yield (i, j), (every, rows[0], columns[0]), (every, rows[1], columns[1])
