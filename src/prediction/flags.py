"""Flags of src/inference.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from src.runtime.flag_choices import DeviceName, Format, PrecisionName, WandbMode


@dataclass(frozen=True)
class InferenceConfig:
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pictures, folders (with their subfolders), or - to read paths from standard input, one per
    line. If omitted, a sample of the images is predicted, of the test split if there is one."""

    features: Path | None = None
    """Predict clusters for these features instead of pictures: a .npy file with one row per
    picture, from the same network as the clustered features."""
    names: Path | None = None
    """A text file with one name per row of --features, such as the picture's path. If omitted,
    rows are numbered from 0."""
    json: bool = False
    """JSON lines instead of a table."""
    csv: bool = False
    """CSV instead of a table."""
    output: Path | None = None
    """Write to this file instead of standard output."""
    montage: Path | None = None
    """Also draw the pictures, with their predictions, as a grid into this PNG file."""
    montage_size: int = 100
    """Maximum number of pictures in the montage and the W&B table, sampled at random."""
    sort_into: Path | None = None
    """Link every picture into this new folder, into one subfolder per cluster or name, and print
    counts instead of a row per picture. Without pictures, those of the data set are sorted."""
    split: float | None = None
    """With --sort-into, put this share of every group, such as 0.8, into the folder train and the
    others into test: a data set with classes."""
    copy: bool = False
    """With --sort-into, copy instead of linking."""
    neighbors: int = 0
    """Also show this many pictures of the data set, the most similar by cosine of their
    features."""
    sample: int = 5
    """Number of images to show when no path is given."""

    name: str | None = None
    """Name of the experiment: by default its --feature-dir is features/NAME."""
    feature_dir: Path = Path("features")
    """Directory of the clusters."""
    checkpoint: Path | None = None
    """The checkpoint of the features, if it was moved after the extraction."""
    data_dir: Path | None = None
    """Directory of the images to show when no path is given; by default, that of the extraction."""
    device: DeviceName = "auto"
    """Device to compute on."""
    precision: PrecisionName = "auto"
    """Precision of the network; auto is that of the extraction, unless it is slow on this device.
    Another one moves a few pictures to other clusters."""
    batch_size: int = 64
    """Pictures per batch."""
    wandb: WandbMode | None = None
    """Log a table of pictures and predictions to Weights & Biases; by default disabled for your own
    pictures, given or in the data set, and auto otherwise."""
    wandb_dir: Path = Path("wandb")
    """Directory of the Weights & Biases files."""

    @property
    def sorts_dataset(self) -> bool:
        return bool(self.sort_into) and not self.paths and not self.features

    @property
    def format(self) -> Format:
        ending = self.output.suffix.lower() if self.output else ""
        if self.json or (not self.csv and ending in (".json", ".jsonl")):
            return "json"
        return "csv" if self.csv or ending == ".csv" else "table"


@dataclass(frozen=True)
class ExportConfig:
    name: str | None = None
    """Name of the experiment: by default its directories are checkpoints/NAME and features/NAME."""
    feature_dir: Path = Path("features")
    """Directory of the clusters; the model is written there too."""
    checkpoint: Path | None = None
    """The checkpoint of the features, if it was moved after the extraction; with --backbone, the
    one to export instead of the newest intact one in --checkpoint-dir."""
    checkpoint_dir: Path = Path("checkpoints")
    """Directory of the checkpoints, for --backbone."""
    backbone: Path | None = None
    """Write only the backbone, to this .safetensors or .pt file, and a card next to it, FILE.md."""
    data_dir: Path | None = None
    """Directory of the images to compare on; by default, that of the extraction."""
    check_images: int = 256
    """Number of images to compare ONNX Runtime and PyTorch on; 0 skips the comparison."""
