"""SimCLR: a ResNet backbone with frozen batch normalization, a projection head, and NT-Xent.

Shape letters: B images in a batch, 2B views, C channels, H x W pixels, D features, d projections.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations" (method: section 2, Algorithm 1); He et al. 2016 (ResNet).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.architectures import ARCHITECTURES, Architecture
from src.models.batch_norm import FrozenBatchNorm2d, SyncedBatchNorm2d, conv_bn
from src.runtime import distributed
from src.runtime.flag_choices import BatchNorm

Norm = type[FrozenBatchNorm2d] | type[SyncedBatchNorm2d]

BRANCH_SCALE = 0.2
"""The last batch-norm scale of a bottleneck's residual branch at initialization (docs/log.md)."""


def nt_xent(views_2Bd: Tensor, temperature: float) -> Tensor:
    """Normalized temperature-scaled cross entropy, the mean over all 2B views.

    Args:
        views_2Bd: projections of shape (2B, d); rows i and i + B are views of the same image.
        temperature: the paper's tau, above 0.

    Returns:
        A scalar. At random projections it is close to ln(2B - 1).

    Computed in float32 (float64 for float64 input) whatever the precision around it. Under
    torchrun every process passes the views of its own images, all other processes' views are
    negatives too, and the mean over the processes is the loss of the whole batch.
    Source: Chen et al. 2020, equation 1 and Algorithm 1.
    """
    with torch.autocast(views_2Bd.device.type, enabled=False):
        dtype = torch.promote_types(views_2Bd.dtype, torch.float32)
        z = F.normalize(views_2Bd.to(dtype), dim=1)
        first, second = (distributed.gather_rows(half) for half in z.chunk(2))
        candidates = torch.cat([first, second])
        own = distributed.own_rows(len(candidates), device=z.device)
        logits = z @ candidates.T / temperature  # cosine similarities
        logits.scatter_(1, own[:, None], float("-inf"))  # a view is not its own negative
        return F.cross_entropy(logits, (own + len(first)) % len(candidates))


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


class Backbone(nn.Module):
    """A ResNet without its classifier, under torchvision's parameter names.

    Args:
        arch: a name in `ARCHITECTURES`.
        bn: `frozen`, see `FrozenBatchNorm2d`, or `train`, ordinary batch norm.
        pretrained: whether weights will be loaded, which `FrozenBatchNorm2d` must not standardize.
    """

    def __init__(self, arch: Architecture, bn: BatchNorm = "frozen", pretrained: bool = False):
        super().__init__()
        kind, blocks, widths, (kernel, stride, pooling) = ARCHITECTURES[arch]
        block = _BLOCKS[kind]
        norm = FrozenBatchNorm2d if bn == "frozen" else SyncedBatchNorm2d
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
            if isinstance(module, FrozenBatchNorm2d):
                module.standardizes = not pretrained

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) of normalized images (B, 3, H, W)."""
        x = self.maxpool(F.relu(conv_bn(x_BCHW, self.conv1, self.bn1), inplace=True))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))  # global average pooling


class SimCLR(nn.Module):
    """`Backbone` and projection head."""

    projection_dim = 128
    """d, the width of the projections that NT-Xent sees."""

    def __init__(
        self, arch: Architecture = "resnet50", bn: BatchNorm = "frozen", pretrained: bool = False
    ):
        super().__init__()
        self.backbone = Backbone(arch, bn, pretrained)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.feature_dim, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, self.projection_dim),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projections (B, d) of normalized images (B, 3, H, W)."""
        return self.head(self.backbone(x_BCHW))
