"""What learned features have to beat: raw pixels, and the same network before training."""

from pathlib import Path
from typing import Any

import numpy as np

from dataset.load_dataset import reload_dataset
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import EXTRACTION, UNTRAINED_FEATURES


def load_baselines(
    directory: Path, extraction: dict[str, Any], splits: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Features (N, D) of `splits` under the name of each baseline.

    Args:
        directory: where the features are.
        extraction: what the extraction recorded in the manifest.
        splits: the splits to read.

    Raises:
        UserError: the images are not those that the features came from, or the untrained
            network's features are missing.
    """
    return {
        "raw_pixels": _raw_pixels(extraction["dataset"], splits),
        "untrained": {split: _untrained(directory, extraction, split) for split in splits},
    }


def _raw_pixels(recorded: dict[str, Any], splits: list[str]) -> dict[str, np.ndarray]:
    """uint8 (N, 3 S S)."""
    dataset = reload_dataset(recorded)
    images = {split: dataset.splits[split].images for split in splits}
    return {split: np.ascontiguousarray(x).reshape(len(x), -1) for split, x in images.items()}


def _untrained(directory: Path, extraction: dict[str, Any], split: str) -> np.ndarray:
    mend = f"run python {EXTRACTION} --untrained"
    file = artifacts.path(UNTRAINED_FEATURES, directory, split)
    if not file.exists():
        raise UserError(f"{file} is missing: {mend} first")
    features = artifacts.load(UNTRAINED_FEATURES, directory, split)
    if len(features) != extraction["dataset"]["splits"][split]:
        raise UserError(f"{file} has the features of {len(features):,} other images: {mend} again")
    return features
