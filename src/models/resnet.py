"""The ResNets of `ARCHITECTURES`.

Shape letters: B images in a batch, C channels, H x W pixels, D features.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from src.models.architectures import ARCHITECTURES
from src.models.backbone import Backbone, State
from src.models.batch_norm import SyncedBatchNorm2d, conv_bn, standardized
from src.runtime.flag_choices import BatchNorm

Norm = Callable[[int], SyncedBatchNorm2d]

BRANCH_SCALE = 0.2
"""The last batch-norm scale of a bottleneck's residual branch at initialization (docs/log.md)."""


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Sequential | None, norm: Norm
    ):
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, width, 3, stride), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = conv_bn(y, self.conv2, self.bn2)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


class _Bottleneck(nn.Module):
    """With the stride in the 3x3 convolution, as torchvision has it."""

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, downsample: nn.Sequential | None, norm: Norm
    ):
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, width, 1), norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), norm(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_bn(y, self.conv2, self.bn2), inplace=True)
        y = conv_bn(y, self.conv3, self.bn3)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)


def _shortcut(x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    return x if downsample is None else conv_bn(x, *downsample)  # type: ignore[arg-type]


_BLOCKS = {"basic": _BasicBlock, "bottleneck": _Bottleneck}


class ResNet(Backbone):
    """A ResNet without its classifier, under torchvision's parameter names.

    With frozen statistics and random weights, the weights of every convolution are standardized,
    see `SyncedBatchNorm2d`; pretrained ones are not: their statistics fit them.

    Args:
        arch: a name in `ARCHITECTURES`.
        bn: as in `Backbone`.
        pretrained: whether weights will be loaded.
    """

    def __init__(self, arch: str, bn: BatchNorm = "frozen", pretrained: bool = False):
        super().__init__(bn)
        kind, blocks, widths, (kernel, stride, pooling) = ARCHITECTURES[arch]
        block = _BLOCKS[kind]
        norm = partial(SyncedBatchNorm2d, standardizes=bn == "frozen" and not pretrained)
        self.conv1 = _conv(3, widths[0], kernel, stride)
        self.bn1 = norm(widths[0])
        self.maxpool = nn.MaxPool2d(2 * pooling - 1, pooling, pooling - 1)
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        channels = widths[0]
        for i, name in enumerate(self.stages):
            stage = nn.Sequential()
            for j in range(blocks[i]):
                stride, out = (2 if i > 0 and j == 0 else 1), widths[i] * block.expansion
                downsample = None
                if stride != 1 or channels != out:
                    downsample = nn.Sequential(_conv(channels, out, 1, stride), norm(out))
                stage.append(block(channels, widths[i], stride, downsample, norm))
                channels = out
            self.add_module(name, stage)
        self.feature_dim = channels

        nn.Linear(channels, 1000)  # torchvision's classifier; without it a seed would draw others
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, _Bottleneck):  # many branches at full scale do not train
                nn.init.constant_(module.bn3.weight, BRANCH_SCALE)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) of normalized images (B, 3, H, W)."""
        x = self.maxpool(F.relu(conv_bn(x_BCHW, self.conv1, self.bn1), inplace=True))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))  # global average pooling

    def published_state(self) -> State:
        """For torchvision: filters that are standardized in every forward pass here are so in the
        state."""
        state = super().published_state()
        if self.bn1.standardizes:
            state |= {name: standardized(v) for name, v in state.items() if v.ndim == 4}
        return state
