"""Any network of timm as a backbone."""

import contextlib
import difflib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from src.models.backbone import Backbone, State
from src.models.batch_norm import batch_norms
from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD
from src.runtime.cli import UserError, reason_of
from src.runtime.flag_choices import BatchNorm


class TimmBackbone(Backbone):
    """A network of timm up to its pooled features.

    Args:
        name: as timm has it, such as vit_small_patch14_dinov2.lvd142m.
        bn, pretrained: as for `ResNet`.
        image_size: side of the images in pixels, which some networks are made for.

    Raises:
        UserError: timm has no such network, or it cannot take such images.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, bn: BatchNorm, pretrained: bool, image_size: int):
        super().__init__(bn)
        self.name, self.image_size = name, image_size
        network = self._create(pretrained=False)
        self._network: nn.Module = network
        if bn == "frozen" and not pretrained and batch_norms(self):
            raise UserError(
                f"--arch timm/{name}: from random weights, frozen batch norm needs standardized "
                "weights, which only this project's ResNets have: add --bn train, or --weights "
                "pretrained"
            )
        self.takes_any_size = not getattr(
            getattr(network, "patch_embed", None), "strict_img_size", False
        )
        self.feature_dim = network.head_hidden_size or network.num_features
        self.mean, self.std = (tuple(network.pretrained_cfg[key]) for key in ("mean", "std"))
        # From the normalization of `preprocess` to the network's own.
        own_mean, own_std, mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (self.mean, self.std, PIXEL_MEAN, PIXEL_STD)
        )
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    @property
    def network(self) -> nn.Module:
        return self._network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) of normalized images (B, 3, H, W)."""
        return self._network(x_BCHW * self.scale + self.shift)

    def download(self) -> State:
        """The weights that timm publishes for this network, from its hub or the local cache."""
        size = sum(p.numel() * p.element_size() for p in self.parameters()) / 1e6
        print(f"weights of timm/{self.name}: about {size:,.0f} MB, downloaded unless cached")
        try:
            return self._create(pretrained=True).state_dict()
        except UserError:
            raise
        except Exception as error:  # of the hub's client, which has many kinds
            raise UserError(
                f"--weights pretrained: timm cannot get those of {self.name} "
                f"({reason_of(error)}): download them on a machine with a network, and give the "
                "file to --weights"
            ) from None

    def _create(self, pretrained: bool) -> Any:
        if not timm.is_model(self.name.partition(".")[0]):
            near = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            hint = f"; similar: {', '.join(near)}" if near else ""
            raise UserError(f"--arch timm/{self.name}: timm has no such network{hint}")
        config = timm.get_pretrained_cfg(self.name)
        options: list[dict[str, Any]] = [{}]
        if getattr(config, "fixed_input_size", False):  # views may be smaller than images
            own = {"img_size": self.image_size}
            options = [own | {"dynamic_img_size": True, "dynamic_img_pad": True}, own]
        try:
            for option in options:
                with contextlib.suppress(TypeError):  # an option that the network does not have
                    return timm.create_model(
                        self.name, pretrained=pretrained, num_classes=0, **option
                    )
            reason = "its size cannot be set"
        except (ValueError, AssertionError) as error:
            reason = reason_of(error)
        raise UserError(
            f"--arch timm/{self.name} cannot be made for images of {self.image_size} px ({reason})"
        )
