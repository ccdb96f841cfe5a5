"""How sharp pictures are, to choose among copies."""

import numpy as np
from scipy.ndimage import convolve1d

BLOCK = 512
"""Images in memory at a time."""


def sharpness(images: np.ndarray) -> np.ndarray:
    """The variance of the Laplacian of the gray values, higher for a sharper image; float32 (N,).

    Args:
        images: uint8 (N, 3, S, S); memory-mapped ones are read in blocks.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(images), BLOCK):
        gray = images[start : start + BLOCK].mean(axis=1, dtype=np.float32)
        down, right = (convolve1d(gray, [1, -2, 1], axis, mode="nearest") for axis in (1, 2))
        parts.append((down + right).var(axis=(1, 2)))
    return np.concatenate(parts)
