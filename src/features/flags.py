"""Flags of src/feature_extraction.py."""

from dataclasses import dataclass
from pathlib import Path

from src.runtime.flag_choices import DeviceName, PrecisionName


@dataclass(frozen=True)
class ExtractionConfig:
    checkpoint: Path | None = None
    """The checkpoint to use; by default the newest intact one in --checkpoint-dir."""
    name: str | None = None
    """Name of the experiment: by default its directories are checkpoints/NAME and features/NAME."""
    checkpoint_dir: Path = Path("checkpoints")
    """Directory of the checkpoints."""
    feature_dir: Path = Path("features")
    """Directory for the features."""
    data_dir: Path | None = None
    """Directory of the images; by default, the one used in training."""
    cache_dir: Path | None = None
    """Directory for the decoded pictures of a folder; by default, as in training."""
    untrained: bool = False
    """Also extract features of the network before training, for clustering.py --baselines."""
    device: DeviceName = "auto"
    """Device to compute on; auto picks CUDA, MPS or the CPU, in this order."""
    precision: PrecisionName = "auto"
    """Precision of the network; the features are float32 in any case."""
    batch_size: int | None = None
    """Images per batch; by default 256, and fewer of more than 96 px on a CPU."""


@dataclass(frozen=True)
class ImportConfig:
    train: Path | None = None
    """Features of the train split, one row per image."""
    test: Path | None = None
    """Features of the test split."""
    unlabeled: Path | None = None
    """Features of images without labels."""
    train_labels: Path | None = None
    """Classes of the train rows: whole numbers, -1 if unknown."""
    test_labels: Path | None = None
    """Classes of the test rows."""
    class_names: Path | None = None
    """A text file with the class names, one per line, starting with class 0; by default, names are
    the numbers."""
    data_dir: Path | None = None
    """The folder of pictures that the features were computed from."""
    train_names: Path | None = None
    """A text file with the picture of every train row, one path per line: relative to --data-dir
    or to the current folder, or absolute."""
    test_names: Path | None = None
    """The same for the test rows."""
    unlabeled_names: Path | None = None
    """The same for the unlabeled rows."""
    image_size: int = 96
    """Side in pixels to which the pictures are resized, for galleries and raw-pixel baselines."""
    cache_dir: Path | None = None
    """Directory for the decoded pictures; by default, next to the pictures."""
    name: str | None = None
    """Name of the experiment: by default its --feature-dir is features/NAME."""
    feature_dir: Path = Path("features")
    """Directory for the features."""
