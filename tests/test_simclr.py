"""The method, against the paper's own algorithm and torchvision's network."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from src.models.architectures import ARCHITECTURES
from src.models.batch_norm import (
    batch_norms,
    calibrate_batch_norm,
    standardized,
)
from src.models.resnet import ResNet
from src.models.simclr import SimCLR, nt_xent


def algorithm_1(z: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020, Algorithm 1, as written there: rows 2k-1 and 2k are views of one image."""
    n = len(z) // 2

    def s(i: int, j: int) -> Tensor:
        return z[i] @ z[j] / (z[i].norm() * z[j].norm())

    def l(i: int, j: int) -> Tensor:  # noqa: E743
        others = [torch.exp(s(i, k) / temperature) for k in range(2 * n) if k != i]
        return -torch.log(torch.exp(s(i, j) / temperature) / torch.stack(others).sum())

    return sum(l(2 * k, 2 * k + 1) + l(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_nt_xent_is_algorithm_1(temperature: float) -> None:
    first = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second = first + 0.3 * torch.randn(6, 5, dtype=torch.float64)
    ours = torch.cat([first, second]).requires_grad_()
    paper = torch.stack([first, second], 1).reshape(12, 5).requires_grad_()

    loss = nt_xent(ours, temperature)
    expected = algorithm_1(paper, temperature)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    paired = paper.grad.reshape(6, 2, 5)
    torch.testing.assert_close(ours.grad, torch.cat([paired[:, 0], paired[:, 1]]))


def test_nt_xent_is_float32_whatever_surrounds_it() -> None:
    z = 50 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    exact = nt_xent(z.double(), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, 0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    assert nt_xent(z.half(), 0.05).isfinite()


@pytest.mark.parametrize(
    ("arch", "bn"), [("resnet18", "frozen"), ("resnet50", "frozen"), ("resnet50", "train")]
)
def test_backbone_is_torchvisions(arch: Any, bn: Any) -> None:
    """Same parameter names, same features and gradients, though batch norm is folded and the
    weights of the frozen one are standardized on the way."""
    torch.manual_seed(0)
    ours = ResNet(arch, bn=bn).train(bn == "frozen")
    ours.freeze()
    theirs = torchvision.models.get_model(arch, weights=None)
    theirs.fc = torch.nn.Identity()
    for norm in batch_norms(ours):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.double(), theirs.double().eval()
    convolutions = [n for n, m in ours.named_modules() if isinstance(m, torch.nn.Conv2d)]
    if bn == "frozen":
        for name in convolutions:
            theirs.get_submodule(name).weight.data = naive_standard(ours.get_submodule(name).weight)

    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().mean().backward()
    theirs(x).square().mean().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name).grad
        if bn == "frozen" and name.removesuffix(".weight") in convolutions:
            (expected,) = torch.autograd.grad(naive_standard(parameter), parameter, expected)
        torch.testing.assert_close(parameter.grad, expected, msg=name)


def test_the_table_decides_stages_widths_and_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    """For small pictures: two stages, half as wide, and neither stride nor pooling in the stem."""
    small = ARCHITECTURES["resnet18"]._replace(blocks=(1, 3), widths=(32, 48), stem=(3, 1, 1))
    monkeypatch.setitem(ARCHITECTURES, "small", small)
    backbone = ResNet("small")
    sizes = []
    for stage in (backbone.maxpool, backbone.layer1, backbone.layer2):
        stage.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    assert backbone(torch.randn(2, 3, 24, 24)).shape == (2, 48)
    assert sizes == [(32, 24, 24), (32, 24, 24), (48, 12, 12)]
    assert [len(backbone.layer1), len(backbone.layer2)] == [1, 3]


def test_initial_weights_are_torchvisions() -> None:
    torch.manual_seed(0)
    ours = ResNet("resnet18").state_dict()
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def naive_standard(weight: Tensor) -> Tensor:
    """Every filter with mean 0 and length 1."""
    filters = weight.flatten(1)
    normalized = F.layer_norm(filters, filters.shape[1:], eps=0)  # length: root of their size
    return (normalized / filters.shape[1] ** 0.5).view_as(weight)


def test_frozen_statistics_stay_frozen_in_every_mode() -> None:
    model = SimCLR("resnet18").train()
    assert model.backbone.bn1.training  # the warm-up
    model.backbone.freeze()
    assert all(bn.training for bn in batch_norms(SimCLR("resnet18", bn="train").train().backbone))
    for part in (model, model.backbone):
        part.eval()
        part.train()
        assert not any(bn.training for bn in batch_norms(model.backbone))


def test_calibration_measures_what_each_layer_sees() -> None:
    torch.manual_seed(0)
    backbone = ResNet("resnet18").train()
    backbone.freeze()
    x = torch.randn(16, 3, 32, 32)
    calibrate_batch_norm(backbone, [x])
    first = torch.nn.functional.conv2d(x, standardized(backbone.conv1.weight), None, 2, 3)
    torch.testing.assert_close(backbone.bn1.running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(backbone.bn1.running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not backbone.bn1.training
    assert backbone.bn1.momentum == 0.1
    # The depth of the network no longer multiplies its activations.
    assert 0.05 < backbone(x).square().mean().sqrt() < 20
