"""SimCLR: a ResNet backbone with frozen batch normalization, a projection head, and NT-Xent.

Shape letters: B images in a batch, 2B views, C channels, H x W pixels, D features, d projections.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations" (method: section 2, Algorithm 1); He et al. 2016 (ResNet).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from src.models.batch_norm import FrozenBatchNorm2d, SyncedBatchNorm2d, batch_norms, conv_bn
from src.runtime import distributed

Architecture = Literal["resnet18", "resnet50"]
BatchNorm = Literal["frozen", "train"]

BRANCH_SCALE = 0.2
"""The last batch-norm scale of ResNet-50's residual branches at initialization (LOG.md)."""


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
        everything = torch.cat([first, second])
        own = distributed.own_rows(len(everything), device=z.device)
        logits = z @ everything.T / temperature  # cosine similarities
        logits.scatter_(1, own[:, None], float("-inf"))  # a view is not its own negative
        return F.cross_entropy(logits, (own + len(first)) % len(everything))


class _BasicBlock(BasicBlock):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = conv_bn(y, self.conv2, self.bn2)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


class _Bottleneck(Bottleneck):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_bn(y, self.conv2, self.bn2), inplace=True)
        y = conv_bn(y, self.conv3, self.bn3)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


def _shortcut(x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    return x if downsample is None else conv_bn(x, *downsample)  # type: ignore[arg-type]


class Backbone(ResNet):
    """torchvision's ResNet without its classifier, under the same parameter names.

    Args:
        arch: `resnet18` (D = 512) or `resnet50` (D = 2048).
        small_images: a 3x3 stride-1 stem without max pooling, for images of about 32 pixels
            (Chen et al. 2020, appendix B.9).
        bn: `frozen`, see `FrozenBatchNorm2d`, or `train`, ordinary batch norm.
        pretrained: its weights come from elsewhere.
    """

    bn1: nn.BatchNorm2d
    feature_dim: int

    def __init__(
        self,
        arch: Architecture,
        small_images: bool = False,
        bn: BatchNorm = "frozen",
        pretrained: bool = False,
    ):
        norm = FrozenBatchNorm2d if bn == "frozen" else SyncedBatchNorm2d
        if arch == "resnet18":
            super().__init__(_BasicBlock, [2, 2, 2, 2], norm_layer=norm)
        else:
            super().__init__(_Bottleneck, [3, 4, 6, 3], norm_layer=norm)
            for block in self.modules():
                if isinstance(block, _Bottleneck):  # sixteen branches at full scale do not train
                    nn.init.constant_(block.bn3.weight, BRANCH_SCALE)
        self.feature_dim = {"resnet18": 512, "resnet50": 2048}[arch]
        self.fc = nn.Identity()  # type: ignore[assignment]
        if small_images:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()  # type: ignore[assignment]

        for norm in batch_norms(self):
            if isinstance(norm, FrozenBatchNorm2d):
                norm.standardizes = not pretrained

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) of normalized images (B, 3, H, W)."""
        x = F.relu(conv_bn(x_BCHW, self.conv1, self.bn1), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        return x.mean(dim=(2, 3))  # global average pooling


class SimCLR(nn.Module):
    """Backbone and projection head.

    Args:
        arch: backbone architecture.
        small_images: see `Backbone`.
        hidden_dim: width of the head's hidden layer.
        projection_dim: d, the width of the projections that NT-Xent sees.
        bn: see `Backbone`.
        pretrained: see `Backbone`.
    """

    def __init__(
        self,
        arch: Architecture = "resnet50",
        small_images: bool = False,
        hidden_dim: int = 512,
        projection_dim: int = 128,
        bn: BatchNorm = "frozen",
        pretrained: bool = False,
    ):
        super().__init__()
        self.backbone = Backbone(arch, small_images, bn, pretrained)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.feature_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim),
        )
        self.projection_dim = projection_dim

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projections (B, d) of normalized images (B, 3, H, W)."""
        return self.head(self.backbone(x_BCHW))
