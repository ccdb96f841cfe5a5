"""Features that fall into three clear clusters, and their clustering."""

from pathlib import Path

import numpy as np

from src import clustering
from src.clustering import ClusteringConfig
from src.storage import artifacts
from src.storage.artifacts import EXTRACTION, Manifest
from src.storage.scores import Scores
from tests.helpers.pixel_run import extraction_part

NAMES = ["ant", "bee", "cat"]


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of three directions far apart, and the direction of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centers = np.eye(3, 20)[labels] * rng.uniform(1, 9, (count, 1))
    return centers + 0.05 * rng.normal(size=(count, 20)), labels


def write(directory: Path, names: list[str] = NAMES, **splits: tuple) -> ClusteringConfig:
    """A directory as the extraction leaves it, and a quick configuration for it."""
    with artifacts.writing(directory, EXTRACTION) as stage:
        for split, (x, labels) in splits.items():
            stage.save(artifacts.FEATURES, x, split)
            if labels is not None:
                stage.save(artifacts.LABELS, labels, split)
        sizes = {split: len(x) for split, (x, _) in splits.items()}
        stage.record(extraction_part("abc", class_names=names, splits=sizes))
    return ClusteringConfig(feature_dir=directory, components=5, restarts=2, wandb="disabled")


def metrics(config: ClusteringConfig) -> Scores:
    clustering.main(config)
    return Manifest(config.feature_dir).metrics()
