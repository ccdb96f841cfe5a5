"""Preprocessing, the same in all stages: uint8 pixels to normalized float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

# ImageNet's mean and standard deviation (torchvision's documentation), for every dataset.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
RAW_SIDE = 24
"""Side to which pictures are reduced when features are compared with raw pixels."""


def preprocess(images_NCSS: Tensor) -> Tensor:
    """Normalize uint8 images (N, 3, S, S) for the network: float32, channels last."""
    mean, std = (channels(values, images_NCSS.device) for values in (PIXEL_MEAN, PIXEL_STD))
    x = images_NCSS.to(torch.float32, memory_format=torch.channels_last)
    return x.div_(255).sub_(mean).div_(std)


def pixels(x_NCSS: Tensor) -> Tensor:
    """The reverse: float32 pixels of 0 to 255."""
    mean, std = (channels(values, x_NCSS.device) for values in (PIXEL_MEAN, PIXEL_STD))
    return (x_NCSS * std + mean) * 255


def raw_pixels(images_NCSS: Tensor) -> Tensor:
    """float32 (N, 3 * 24 * 24): the means of patches."""
    return F.adaptive_avg_pool2d(images_NCSS.float(), RAW_SIDE).flatten(1)


def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), filled on the device: copying a tensor there would wait for the device."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
