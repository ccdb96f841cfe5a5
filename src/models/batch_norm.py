"""Batch normalization that can be synchronized, calibrated, frozen and folded into convolutions.

Shape letters: B images, C channels, H x W pixels; convolution weights are O x I x H x W.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from src.models.convolution import convolve
from src.runtime import distributed


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes together; ordinary in a single process.

    As weights are trained, frozen statistics no longer describe the activations. With
    `standardizes`, the weights of the preceding convolution are therefore standardized in the
    forward pass (Qiao et al. 2019, "Weight Standardization"; norm as in Brock et al. 2021,
    "Characterizing signal propagation"): every filter keeps zero mean and unit norm.
    """

    synced = True
    folded: tuple[Tensor, Tensor] | None = None
    """Weights and shift of the preceding convolution with this folded in, once training is over."""
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, standardizes: bool = False):
        super().__init__(channels)
        self.standardizes = standardizes

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.synced and distributed.size() > 1):
            return super().forward(x)
        assert self.momentum is not None
        count = distributed.size() * x.numel() // x.shape[1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = distributed.total(wide.sum((0, 2, 3))) / count
        centered = wide - mean[:, None, None]
        var = distributed.total(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            # In place: as a new tensor it would be an output of the compiled graph, which the
            # splitting by DistributedDataParallel confuses with the projections.
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(conv(x))`. With fixed statistics, batch norm is one affine map per channel and is folded
    into the convolution, which saves a pass over the activations, forward and backward."""
    assert isinstance(bn, SyncedBatchNorm2d)
    if not bn.training:
        return convolve(x, conv, *(bn.folded or fold(conv, bn)))
    weight = standardized(conv.weight) if bn.standardizes else conv.weight
    return bn(convolve(x, conv, weight, None))


def fold(conv: nn.Conv2d, bn: SyncedBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and shift of one convolution that does what `conv` and then `bn` do."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shift = bn.bias - bn.running_mean * scale
    length = scale[:, None, None, None]
    weight = standardized(conv.weight, length) if bn.standardizes else conv.weight * length
    return weight, shift


def standardized(weight_OIHW: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """Every output channel's filter with zero mean and the given norm."""
    centered = weight_OIHW - weight_OIHW.mean((1, 2, 3), keepdim=True)
    norm = torch.linalg.vector_norm(centered, dim=(1, 2, 3), keepdim=True)
    return centered * (length / norm.clamp_min(1e-4))


def batch_norms(backbone: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def fold_batch_norm(backbone: nn.Module) -> None:
    """Fold every batch norm into its convolution for good: nothing may train after this."""
    backbone.eval()
    for module in backbone.modules():
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        if isinstance(module, nn.Sequential):  # a block's downsampling
            pairs = [("0", "1")]
        for conv, bn in ((getattr(module, c, None), getattr(module, b, None)) for c, b in pairs):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, SyncedBatchNorm2d):
                bn.folded = fold(conv, bn)


@torch.no_grad()
def calibrate_batch_norm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every batch norm's running statistics to the average over `batches` (B, 3, H, W).

    Each layer meanwhile normalizes by the statistics of the batch, so the layers after it see
    inputs of the right scale.
    """
    was_training = backbone.training
    momenta = [(bn, bn.momentum) for bn in batch_norms(backbone)]
    for bn, _ in momenta:
        bn.reset_running_stats()
        bn.training = True  # frozen ones as well
        if isinstance(bn, SyncedBatchNorm2d):
            bn.synced = False  # every process sees the same batches
    for count, x_BCHW in enumerate(batches, start=1):
        for bn, _ in momenta:
            bn.momentum = 1 / count  # a mean over all; None would too, but waits for the device
        backbone(x_BCHW)
    for bn, momentum in momenta:
        bn.momentum = momentum
        if isinstance(bn, SyncedBatchNorm2d):
            bn.synced = True
    backbone.train(was_training)
