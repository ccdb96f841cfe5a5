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

from src import distributed

Architecture = Literal["resnet18", "resnet50"]
BatchNorm = Literal["frozen", "train"]

BRANCH_SCALE = 0.2
"""The last batch-norm scale of ResNet-50's residual branches at initialisation (LOG.md)."""


def nt_xent(views_2Bd: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, the mean over all 2B views.

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


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch is that of all processes together; alone it is the ordinary one."""

    synced = True
    standardizes = False
    """Whether the weights of the convolution in front are standardised."""
    folded: tuple[Tensor, Tensor] | None = None
    """Weights and shift of the convolution with this folded in, where nothing trains any more."""
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.synced and distributed.size() > 1):
            return super().forward(x)
        assert self.momentum is not None  # as while calibrating, which is not synced
        count = distributed.size() * x.numel() // x.shape[1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = distributed.total(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        var = distributed.total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class FrozenBatchNorm2d(SyncedBatchNorm2d):
    """Batch norm that is frozen for good after a warm-up: scale and shift learn on, the running
    statistics never change again.

    Frozen statistics say nothing about the weights of later on. So that activations cannot drift
    away from them, the weights of the convolution in front are standardised on the way (Qiao et
    al. 2019, "Weight Standardization"; by length as in Brock et al. 2021, "Characterizing signal
    propagation"): every filter keeps mean 0 and length 1. Not so with weights from elsewhere, to
    which their statistics belong.
    """

    frozen = False
    standardizes = True

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(mode and not self.frozen)  # type: ignore[return-value]


def _conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(conv(x))`. With fixed statistics batch norm is one affine map per channel and folds
    into the convolution: no second pass over the activations, forward or backward."""
    assert isinstance(bn, SyncedBatchNorm2d)
    if not bn.training:
        return conv._conv_forward(x, *(bn.folded or _fold(conv, bn)))
    weight = standardized(conv.weight) if bn.standardizes else conv.weight
    return bn(conv._conv_forward(x, weight, None))


def _fold(conv: nn.Conv2d, bn: SyncedBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shift = bn.bias - bn.running_mean * scale
    length = scale[:, None, None, None]
    weight = standardized(conv.weight, length) if bn.standardizes else conv.weight * length
    return weight, shift


def standardized(weight_OIHW: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """Every output channel's filter with mean 0 and the given Euclidean length."""
    centred = weight_OIHW - weight_OIHW.mean((1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True)
    return centred * (length / norm.clamp_min(1e-4))


class _BasicBlock(BasicBlock):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = _conv_bn(y, self.conv2, self.bn2)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


class _Bottleneck(Bottleneck):
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_conv_bn(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(_conv_bn(y, self.conv2, self.bn2), inplace=True)
        y = _conv_bn(y, self.conv3, self.bn3)
        return F.relu(y.add_(_shortcut(x, self.downsample)), inplace=True)


def _shortcut(x: Tensor, downsample: nn.Sequential | None) -> Tensor:
    return x if downsample is None else _conv_bn(x, *downsample)  # type: ignore[arg-type]


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

        for norm in self.batch_norms():
            if isinstance(norm, FrozenBatchNorm2d):
                norm.standardizes = not pretrained

    def batch_norms(self) -> list[SyncedBatchNorm2d]:
        return [m for m in self.modules() if isinstance(m, SyncedBatchNorm2d)]

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
        """Projections (B, d) of normalised images (B, 3, H, W)."""
        return self.head(self.backbone(x_BCHW))


@torch.no_grad()
def fold_batch_norm(backbone: Backbone) -> None:
    """Fold every batch norm once and for all batches to come: nothing may train after this."""
    backbone.eval()
    for module in backbone.modules():
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        if isinstance(module, nn.Sequential):  # a block's downsampling
            pairs = [("0", "1")]
        for conv, bn in ((getattr(module, c, None), getattr(module, b, None)) for c, b in pairs):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, SyncedBatchNorm2d):
                bn.folded = _fold(conv, bn)


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
        bn.synced = False  # every process sees the same batches
        nn.BatchNorm2d.train(bn)  # frozen ones as well
    for x_BCHW in batches:
        backbone(x_BCHW)
    for bn in backbone.batch_norms():
        bn.momentum, bn.synced = 0.1, True
    backbone.train(was_training)
