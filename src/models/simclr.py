"""SimCLR: a backbone with frozen batch normalization, a projection head, and NT-Xent.

Shape letters: B images in a batch, 2B views, H x W pixels, D features, d projections.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations" (method: section 2, Algorithm 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.architectures import ARCHITECTURES, TIMM
from src.models.backbone import Backbone
from src.models.resnet import ResNet
from src.runtime import distributed
from src.runtime.cli import UserError
from src.runtime.flag_choices import BatchNorm


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


def make_backbone(
    arch: str, bn: BatchNorm = "frozen", pretrained: bool = False, image_size: int = 96
) -> Backbone:
    """The network that `--arch` names, with random weights.

    Args:
        bn, pretrained: as for `ResNet`.
        image_size: side in pixels of the images; only vision transformers depend on it.

    Raises:
        UserError: there is no such network, or not for such images.
    """
    if arch in ARCHITECTURES:
        return ResNet(arch, bn, pretrained)
    if not arch.startswith(TIMM):
        raise UserError(f"--arch {arch} is neither timm/NAME nor {', '.join(ARCHITECTURES)}")
    from src.models.timm_backbone import TimmBackbone  # takes seconds

    return TimmBackbone(arch.removeprefix(TIMM), bn, pretrained, image_size)


class SimCLR(nn.Module):
    """A backbone, see `make_backbone`, and the projection head."""

    projection_dim = 128
    """d, the width of the projections that NT-Xent sees."""

    def __init__(
        self,
        arch: str = "resnet50",
        bn: BatchNorm = "frozen",
        pretrained: bool = False,
        image_size: int = 96,
    ):
        super().__init__()
        self.backbone = make_backbone(arch, bn, pretrained, image_size)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.feature_dim, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, self.projection_dim),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Projections (B, d) of normalized images (B, 3, H, W)."""
        return self.head(self.backbone(x_BCHW))
