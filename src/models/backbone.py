"""What every backbone is: images in, features out, and batch norm that can be frozen.

Shape letters: B images in a batch, H x W pixels, D features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from src.models.batch_norm import batch_norms
from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD
from src.runtime.cli import UserError
from src.runtime.flag_choices import BatchNorm

State = dict[str, Tensor]


class Backbone(nn.Module):
    """Normalized images (B, 3, H, W) to features (B, D).

    Args:
        bn: `frozen`: `freeze` fixes the running statistics of batch norm, while scale and shift
            keep training; `train`: ordinary batch norm.
    """

    feature_dim: int
    """D."""
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    """Of the pixels that the network itself was made for, from 0 to 1. `forward` takes images that
    are normalized as `preprocess` does it, whatever the network."""
    is_frozen = False
    takes_any_size = True
    """Whether views may have another side than images."""

    def __init__(self, bn: BatchNorm):
        super().__init__()
        self.bn = bn

    @property
    def network(self) -> nn.Module:
        """The module whose parameters have the names that the library of the network gives them."""
        return self

    def published_state(self) -> State:
        """The state for the library of the network, torchvision or timm."""
        return {name: value.contiguous() for name, value in self.network.state_dict().items()}

    def download(self) -> State:
        """The state that the library of the network publishes.

        Raises:
            UserError: it has none, or it cannot be downloaded.
        """
        raise UserError("--weights pretrained is for --arch timm/NAME")

    def freeze(self, frozen: bool = True) -> None:
        """Let training leave the running statistics of batch norm alone, or not."""
        self.is_frozen = frozen and self.bn == "frozen"
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for norm in batch_norms(self):
            norm.training = mode and not self.is_frozen
        return self


def average(initial: State, trained: State, share: float) -> State:
    """The weights `initial + share * (trained - initial)`.

    A network that starts from weights learned elsewhere and is trained on little data does better
    between the two than at either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models",
    section 3).
    """
    return {
        name: torch.lerp(initial[name].to(value), value, share)
        if value.is_floating_point()
        else value
        for name, value in trained.items()
    }
