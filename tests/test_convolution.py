"""Small convolutions as matrix products, against PyTorch's own operation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.models.convolution import SmallConvolution, convolve


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (1, 3), (6, 5)])
def test_outputs_and_gradients_are_pytorchs(shape: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, *shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 7, 3, 3, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    expected = F.conv2d(x, weight, None, stride, padding=1)
    own = SmallConvolution.apply(x, weight, stride)
    torch.testing.assert_close(own, expected)
    gradient = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for mine, reference in zip(torch.autograd.grad(own, inputs, gradient), theirs, strict=True):
        torch.testing.assert_close(mine, reference)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("capability", "side", "training", "expected"),
    [("AVX2", 2, True, False), ("AVX2", 3, True, True), ("AVX2", 2, False, True),
     ("AVX512", 2, True, True), ("DEFAULT", 1, True, False)],
)  # fmt: skip
def test_they_replace_the_convolution_where_that_is_slow(
    monkeypatch: pytest.MonkeyPatch, capability: str, side: int, training: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    conv = nn.Conv2d(256, 8, 3, padding=1)
    x = torch.randn(2, 256, side, side)
    with torch.set_grad_enabled(training), Operations() as seen:
        y = convolve(x, conv, conv.weight, conv.bias)
    assert ("convolution.default" in seen.names) == expected
    torch.testing.assert_close(y, conv(x), rtol=1e-4, atol=1e-4)
