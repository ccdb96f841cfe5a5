"""Flags of visualize_features.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.runtime.flag_choices import ProjectionName, WandbMode


@dataclass(frozen=True)
class VisualizeConfig:
    name: str | None = None
    """Name of the experiment: by default its --feature-dir is features/NAME."""
    feature_dir: Path = Path("features")
    """Directory of features and clusters; figures and report are written there too."""
    checkpoint_dir: Path | None = None
    """Directory of the training log; by default, that of the checkpoint of the features."""
    data_dir: Path | None = None
    """Directory of the images; by default the one that the features were extracted from."""
    format: Literal["png", "pdf"] = "png"
    """File format of the figures: pixels, or vectors for a paper."""
    projection: ProjectionName = "tsne"
    """Projection of the map to two dimensions; pca is instant, umap needs umap-learn."""
    seed: int = 0
    """Random seed of the map."""
    wandb: WandbMode | None = None
    """Weights & Biases; auto is online with a key and a reachable server, otherwise offline. The
    default is auto, and disabled for a folder of your own pictures."""
    wandb_dir: Path = Path("wandb")
    """Directory of the files of Weights & Biases."""
