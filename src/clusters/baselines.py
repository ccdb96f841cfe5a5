"""What learned features have to beat: raw pixels, and the same network before training."""

from pathlib import Path
from typing import Any

import numpy as np

from dataset.load_dataset import reload_dataset
from src.storage import artifacts


def load_baselines(
    directory: Path, extraction: dict[str, Any], splits: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Features (N, D) of `splits` under the name of each baseline; raw pixels are uint8.

    Args:
        directory: the feature directory.
        extraction: the extraction's part of the manifest.
        splits: the splits to read.

    Raises:
        UserError: the features came from other images, or those of the untrained network are
            missing.
    """
    sizes = extraction["dataset"]["splits"]
    untrained = {
        split: artifacts.load(artifacts.UNTRAINED_FEATURES, directory, split, sizes[split])
        for split in splits
    }
    dataset = reload_dataset(extraction["dataset"])
    images = {split: dataset.splits[split].images for split in splits}
    pixels = {split: np.ascontiguousarray(x).reshape(len(x), -1) for split, x in images.items()}
    return {"raw_pixels": pixels, "untrained": untrained}
