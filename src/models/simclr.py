"""SimCLR: a ResNet backbone with frozen batch normalization, a projection head, and NT-Xent.

Shape letters: B images in a batch, 2B views, C channels, H x W pixels, D features, d projections.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations" (method: section 2, Algorithm 1); He et al. 2016 (ResNet).
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

Architecture = Literal["resnet18", "resnet50"]
BatchNorm = Literal["frozen", "train"]


def nt_xent(views_2Bd: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, the mean over all 2B views.

    Args:
        views_2Bd: projections of shape (2B, d); rows i and i + B are views of the same image.
        temperature: the paper's tau, above 0.

    Returns:
        A scalar. At random projections it is close to ln(2B - 1).

    Computed in float32 (float64 for float64 input) whatever the precision around it.
    Source: Chen et al. 2020, equation 1 and Algorithm 1.
    """
    with torch.autocast(views_2Bd.device.type, enabled=False):
        dtype = torch.promote_types(views_2Bd.dtype, torch.float32)
        z = F.normalize(views_2Bd.to(dtype), dim=1)
        logits = z @ z.T / temperature  # (2B, 2B) cosine similarities
        logits.fill_diagonal_(float("-inf"))  # a view is not its own negative
        positives = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return F.cross_entropy(logits, positives)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that is frozen for good after a warm-up: scale and shift learn on, the running
    statistics never change again.

    Frozen statistics say nothing about the weights of later on. So that activations cannot drift
    away from them, the weights of the convolution in front are standardised on the way (Qiao et
    al. 2019, "Weight Standardization"; by length as in Brock et al. 2021, "Characterizing signal
    propagation"): every filter keeps mean 0 and length 1.
    """

    frozen = False

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(mode and not self.frozen)  # type: ignore[return-value]


def _conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(conv(x))`. With fixed statistics batch norm is one affine map per channel and folds
    into the convolution: no second pass over the activations, forward or backward."""
    weight = conv.weight
    if isinstance(bn, FrozenBatchNorm2d):
        weight = standardized(weight)
    if bn.training:
        return bn(conv._conv_forward(x, weight, None))
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # type: ignore[operator]
    shift = bn.bias - bn.running_mean * scale  # type: ignore[operator]
    return conv._conv_forward(x, weight * scale[:, None, None, None], shift)


def standardized(weight_OIHW: Tensor) -> Tensor:
    """Every output channel's filter with mean 0 and Euclidean length 1."""
    centred = weight_OIHW - weight_OIHW.mean((1, 2, 3), keepdim=True)
    return centred / (centred.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()


class _BasicBlock(BasicBlock):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = _conv_bn(y, self.conv2, self.bn2)
        return F.relu(y + _shortcut(x, self.downsample), inplace=True)


class _Bottleneck(Bottleneck):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(_conv_bn(y, self.conv2, self.bn2), inplace=True)
        y = _conv_bn(y, self.conv3, self.bn3)
        return F.relu(y + _shortcut(x, self.downsample), inplace=True)


def _shortcut(x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    return x if downsample is None else _conv_bn(x, *downsample)  # type: ignore[arg-type]


class Backbone(ResNet):
    """torchvision's ResNet without its classifier, under the same parameter names.

    Args:
        arch: `resnet18` (D = 512) or `resnet50` (D = 2048).
        small_images: a 3x3 stride-1 stem without max pooling, for images of about 32 pixels
            (Chen et al. 2020, appendix B.9).
        bn: `frozen`, see `FrozenBatchNorm2d`, or `train`, ordinary batch norm.
    """

    bn1: nn.BatchNorm2d
    feature_dim: int

    def __init__(self, arch: Architecture, small_images: bool = False, bn: BatchNorm = "frozen"):
        norm = FrozenBatchNorm2d if bn == "frozen" else nn.BatchNorm2d
        if arch == "resnet18":
            super().__init__(_BasicBlock, [2, 2, 2, 2], norm_layer=norm)
        else:
            super().__init__(_Bottleneck, [3, 4, 6, 3], norm_layer=norm)
        self.feature_dim = {"resnet18": 512, "resnet50": 2048}[arch]
        self.fc = nn.Identity()  # type: ignore[assignment]
        if small_images:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()  # type: ignore[assignment]

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, H, W)."""
        x = F.relu(_conv_bn(x_BCHW, self.conv1, self.bn1), inplace=True)
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
    """

    def __init__(
        self,
        arch: Architecture = "resnet50",
        small_images: bool = False,
        hidden_dim: int = 512,
        projection_dim: int = 128,
        bn: BatchNorm = "frozen",
    ):
        super().__init__()
        self.backbone = Backbone(arch, small_images, bn)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.feature_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim),
        )
        self.projection_dim = projection_dim

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projections (B, d) of normalised images (B, 3, H, W)."""
        return self.head(self.backbone(x_BCHW))


def freeze_batch_norm(backbone: Backbone, frozen: bool = True) -> None:
    """From here on, training leaves the running statistics alone; ordinary batch norm stays so."""
    for bn in backbone.batch_norms():
        if isinstance(bn, FrozenBatchNorm2d):
            bn.frozen = frozen
    backbone.train(backbone.training)


@torch.no_grad()
def calibrate_batch_norm(backbone: Backbone, batches: Iterable[Tensor]) -> None:
    """Set every batch norm's running statistics to the average over `batches`.

    Each layer is normalised by its own batch statistics on the way, so the layers behind it see
    inputs of the right scale.

    Args:
        backbone: its running statistics are replaced; nothing else changes.
        batches: normalised images (B, 3, H, W).
    """
    was_training = backbone.training
    for bn in backbone.batch_norms():
        bn.reset_running_stats()
        bn.momentum = None  # cumulative average instead of an exponential one
        nn.BatchNorm2d.train(bn)  # frozen ones as well
    for x_BCHW in batches:
        backbone(x_BCHW)
    for bn in backbone.batch_norms():
        bn.momentum = 0.1
    backbone.train(was_training)
