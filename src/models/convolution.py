"""Convolutions of small maps as matrix products, while training on a CPU.

oneDNN is slow for few pixels and many channels, above all in the gradient of the weights: with 512
channels on 3 x 3 pixels it takes twice as long as a product with AVX2, seven times with AMX. On one
pixel it also multiplies the eight taps that only see padding. Figures are in docs/log.md.

Shape letters: N images, C and O channels in and out, H x W pixels, K kernel.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

MAX_SIDE_1X1 = 12
"""Largest side at which a 1x1 convolution is faster as a product; strided ones always are."""
MAX_SIDE, CHANNELS_PER_SIDE = 3, 64
"""Largest output side at which a 3x3 convolution is faster, and the input channels it needs per
pixel of that side."""
Part = tuple[slice, slice, slice]


def convolve(x_NCHW: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv` with other weights (O, C, K, K) and this bias."""
    kernel, stride, side = conv.kernel_size[0], conv.stride[0], max(x_NCHW.shape[2:])
    gains = (kernel == 1 and (stride > 1 or side <= MAX_SIDE_1X1)) or (
        kernel == 3 and side <= min(MAX_SIDE, conv.in_channels // CHANNELS_PER_SIDE) * stride
    )
    if (
        not gains
        or x_NCHW.device.type != "cpu"
        or not torch.is_grad_enabled()  # predictions and ONNX keep the plain operation
        or torch.compiler.is_compiling()
    ):
        return conv._conv_forward(x_NCHW, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x_NCHW, weight = x_NCHW.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    convolution = PixelConvolution if kernel == 1 else SmallConvolution
    return convolution.apply(x_NCHW, weight, bias, stride)  # type: ignore[no-any-return]


class PixelConvolution(torch.autograd.Function):
    """A 1x1 convolution as one product."""

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: Tensor, weight_OC11: Tensor, bias_O: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_OC11)
        ctx.stride = stride
        x = _pixels(x_NCHW)[:, ::stride, ::stride]
        out, rows = _new_map(x, len(weight_OC11)), x.flatten(0, 2)
        written, matrix_CO = _pixels(out).view(len(rows), -1), weight_OC11.flatten(1).T
        if bias_O is None:
            torch.mm(rows, matrix_CO, out=written)
        else:
            torch.addmm(bias_O, rows, matrix_CO, out=written)
        return out

    @staticmethod
    def backward(ctx: Any, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x_NCHW, weight_OC11), stride = ctx.saved_tensors, ctx.stride
        gradient = _pixels(gradient_NOHW)
        by_rows = _product(gradient, weight_OC11.flatten(1))
        by_x = by_rows.permute(0, 3, 1, 2)
        if stride > 1:
            by_x = torch.zeros_like(x_NCHW, memory_format=torch.channels_last)
            _pixels(by_x)[:, ::stride, ::stride] = by_rows
        rows = _pixels(x_NCHW)[:, ::stride, ::stride].flatten(0, 2)
        by_weight = gradient.flatten(0, 2).T @ rows
        by_bias = gradient.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        return by_x, by_weight.as_strided(weight_OC11.shape, weight_OC11.stride()), by_bias, None


class SmallConvolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1. The gradient of the weights is one product for each of the
    nine taps; in float32 without AVX-512, so are the output and the gradient of the input."""

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: Tensor, weight_OC33: Tensor, bias_O: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_OC33)
        ctx.stride = stride
        if not _all_gains(x_NCHW):
            return F.conv2d(x_NCHW, weight_OC33, bias_O, stride, 1)
        x, taps_33CO = _pixels(x_NCHW), weight_OC33.permute(2, 3, 1, 0).contiguous()
        out = _new_map(x[:, ::stride, ::stride], len(weight_OC33)).zero_()
        if bias_O is not None:
            out += bias_O[:, None, None]
        for tap, read, written in _taps(x.shape[1], x.shape[2], stride):
            _pixels(out)[written] += _product(x[read], taps_33CO[tap])
        return out

    @staticmethod
    def backward(ctx: Any, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x_NCHW, weight_OC33), stride = ctx.saved_tensors, ctx.stride
        x, gradient = _pixels(x_NCHW), _pixels(gradient_NOHW)
        taps_33OC = weight_OC33.permute(2, 3, 0, 1).contiguous()
        all_gains = _all_gains(x_NCHW)
        if all_gains:
            by_x = torch.zeros_like(x_NCHW, memory_format=torch.channels_last)
        else:
            by_x = conv2d_input(x_NCHW.shape, weight_OC33, gradient_NOHW, stride, padding=1)
        by_taps = torch.zeros_like(taps_33OC)
        for tap, read, written in _taps(x.shape[1], x.shape[2], stride):
            by_taps[tap] = gradient[written].flatten(0, 2).T @ x[read].flatten(0, 2)
            if all_gains:
                _pixels(by_x)[read] += _product(gradient[written], taps_33OC[tap])
        by_bias = gradient.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        by_weight = torch.empty_like(weight_OC33).copy_(by_taps.permute(2, 3, 0, 1))
        return by_x, by_weight, by_bias, None


def _pixels(x_NCHW: Tensor) -> Tensor:
    """The same memory as (N, H, W, C)."""
    return x_NCHW.permute(0, 2, 3, 1)


def _new_map(like_NHWC: Tensor, channels: int) -> Tensor:
    """An empty tensor (N, channels, H, W), channels last in memory."""
    n, height, width, _ = like_NHWC.shape
    return torch.empty(
        (n, channels, height, width), dtype=like_NHWC.dtype, memory_format=torch.channels_last
    )


def _all_gains(x: Tensor) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return x.dtype == torch.float32 and not capability.startswith("AVX512")


def _product(x_NHWC: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix` as one product; on strided rows, `@` would make one for each image."""
    return (x_NHWC.flatten(0, 2) @ matrix).view(*x_NHWC.shape[:3], -1)


def _taps(height: int, width: int, stride: int) -> Iterator[tuple[tuple[int, int], Part, Part]]:
    """Each tap with the pixels that it reads and writes, if any."""

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
