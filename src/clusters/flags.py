"""Flags of src/clustering.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.runtime.flag_choices import WandbMode


@dataclass(frozen=True)
class ClusteringConfig:
    name: str | None = None
    """Name of the experiment: by default its --feature-dir is features/NAME."""
    feature_dir: Path = Path("features")
    """Directory of the features; the clusters are written there too."""
    fit_on: Literal["unlabeled", "train", "test"] = "train"
    """The split that PCA and K-means are fitted on; without a train split, the largest one."""
    l2_normalize: bool = True
    """Scale every feature vector to length 1 first."""
    components: int = 100
    """Principal components to keep; fewer if the features have fewer dimensions."""
    clusters: str | None = None
    """A number, a range such as 5:20 to pick from, or auto (2:20); None is one per class of the
    fitted split, or 10."""
    restarts: int = 20
    """K-means starts; the best one is kept."""
    smooth: bool = True
    """Also cluster rows averaged with their neighbors; later stages use these clusters, unless more
    of them are empty than of the others."""
    hops: int = 2
    """Number of rounds of averaging."""
    neighbors: int | None = None
    """Nearest neighbors to average a row with; None is 10, or all others in a cluster of average
    size if that is fewer."""
    unusual: float = 0.99
    """Share of the fitted images that count as usual; a picture farther from every cluster than
    these is marked as unusual."""
    seeds: int | None = None
    """Also report mean and standard deviation over this many seeds of K-means."""
    linear_probe: bool = False
    """Also fit a linear classifier to the features of train, with its labels, and score it on
    test."""
    baselines: bool = False
    """Also cluster raw pixels and the features of the network before training, for comparison."""
    seed: int = 0
    """Random seed of K-means."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online with a key and a reachable server, otherwise offline."""
    wandb_dir: Path = Path("wandb")
    """Directory of the Weights & Biases files."""
