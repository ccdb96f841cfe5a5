"""Small convolutions as matrix products, against PyTorch's own operation."""

import pytest
import torch
from torch import nn

from src.models.convolution import convolve
from tests.helpers.operations import Operations


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (1, 3), (6, 5)])
def test_outputs_and_gradients_are_pytorchs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], stride: int, kernel: int,
    capability: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    x = torch.randn(5, 256, *shape).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 8, kernel, stride, kernel // 2)
    inputs = (x.requires_grad_(), conv.weight, conv.bias)
    expected = conv(x)
    own = convolve(x, conv, conv.weight, conv.bias)
    assert own.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(own, expected)
    gradient = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for mine, reference in zip(torch.autograd.grad(own, inputs, gradient), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_lie_in_memory_as_weights_do(kernel: int, layout: torch.memory_format) -> None:
    """Otherwise several processes copy each of them, with a warning."""
    conv = nn.Conv2d(256, 8, kernel, padding=kernel // 2).to(memory_format=layout)
    out = convolve(torch.randn(5, 256, 3, 3), conv, conv.weight, conv.bias)
    (gradient,) = torch.autograd.grad(out.sum(), conv.weight)
    assert gradient.stride() == conv.weight.stride()


def test_mixed_precision_stays_mixed() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 256, 3, 3)
    for kernel in (1, 3):
        conv = nn.Conv2d(256, 8, kernel, padding=kernel // 2, bias=False)
        with torch.autocast("cpu", torch.bfloat16):
            own, expected = convolve(x, conv, conv.weight, None), conv(x)
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own, expected, rtol=2e-2, atol=2e-2)
        own.sum().backward()
        assert conv.weight.grad is not None
        assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "side", "training", "replaced"),
    [(3, 1, 256, 3, True, True), (3, 2, 256, 6, True, True), (3, 1, 256, 4, True, False),
     (3, 1, 128, 3, True, False), (3, 2, 128, 4, True, True), (3, 1, 256, 3, False, False),
     (1, 1, 64, 12, True, True), (1, 1, 64, 13, True, False), (1, 2, 64, 24, True, True),
     (1, 2, 64, 24, False, False)],
)  # fmt: skip
def test_the_gradient_by_the_weights_is_a_product_where_that_is_faster(
    kernel: int, stride: int, channels: int, side: int, training: bool, replaced: bool
) -> None:
    conv = nn.Conv2d(channels, 8, kernel, stride, kernel // 2)
    x = torch.randn(2, channels, side, side)
    with torch.set_grad_enabled(training):
        y = convolve(x, conv, conv.weight, conv.bias)
    with Operations() as seen:
        if training:
            y.sum().backward()
    assert ("mm" in seen.names) == replaced


@pytest.mark.parametrize(
    ("capability", "side", "expected"),
    [("AVX2", 3, False), ("AVX2", 4, True), ("AVX512", 2, True), ("DEFAULT", 1, False)],
)
def test_on_small_maps_all_of_it_is_products_without_avx512(
    monkeypatch: pytest.MonkeyPatch, capability: str, side: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    conv = nn.Conv2d(256, 8, 3, padding=1)
    with Operations() as seen:
        convolve(torch.randn(2, 256, side, side), conv, conv.weight, conv.bias)
    assert ("convolution" in seen.names) == expected


@pytest.mark.parametrize("stride", [1, 2])
def test_products_are_of_all_images_at_once(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    """PyTorch makes a slow product for each image of rows that lie apart."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    conv = nn.Conv2d(256, 8, 3, stride, padding=1)
    x = torch.randn(2, 256, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    with Operations() as seen:
        convolve(x, conv, conv.weight, conv.bias).square().sum().backward()
    assert "mm" in seen.names
    assert "bmm" not in seen.names
