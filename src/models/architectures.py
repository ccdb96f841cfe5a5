"""The networks that --arch names."""

from typing import Literal, NamedTuple


class Design(NamedTuple):
    """The shape of a ResNet."""

    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]
    """Number of blocks in each stage; every stage after the first halves the picture's side."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage, before a bottleneck's expansion."""
    stem: tuple[int, int, int] = (7, 2, 2)
    """Kernel and stride of the first convolution, and stride of the max pooling after it."""


ARCHITECTURES = {
    "resnet8": Design("basic", (1, 1, 1), (64, 128, 256)),  # for small pictures
    "resnet18": Design("basic", (2, 2, 2, 2)),
    "resnet34": Design("basic", (3, 4, 6, 3)),
    "resnet50": Design("bottleneck", (3, 4, 6, 3)),
    "resnet101": Design("bottleneck", (3, 4, 23, 3)),
}

TIMM = "timm/"
"""Before the name of a network of timm."""
