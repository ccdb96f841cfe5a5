"""Flags of src/inference.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from src.runtime.flag_choices import DeviceName, Format, PrecisionName, WandbMode


@dataclass(frozen=True)
class InferenceConfig:
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pictures, folders (with their subfolders), or - for a list of paths on standard input, one a
    line. Without any, a sample of the images is predicted, of test if there is such a split."""

    features: Path | None = None
    """Predict these features instead of pictures: .npy, a row for every picture, of the network
    whose features the clusters were found in."""
    names: Path | None = None
    """A text file with a name for every row of --features, one a line, such as the picture's path.
    Without it, rows have numbers from 0."""
    json: bool = False
    """One JSON object a line instead of a table."""
    csv: bool = False
    """CSV instead of a table."""
    output: Path | None = None
    """Write to this file instead of standard output."""
    montage: Path | None = None
    """Also draw the pictures, with their predictions, as a grid into this PNG file."""
    montage_size: int = 100
    """Most pictures in the montage and in the W&B table, a random sample of all."""
    sort_into: Path | None = None
    """Also link every picture into a folder per cluster, or per name in names.json, in this one;
    overwrites nothing, and never mixes two clusterings or two sets of names."""
    copy: bool = False
    """Copy with --sort-into instead of linking."""
    neighbors: int = 0
    """Also show this many of the data set's pictures, the most similar by the cosine of their
    features."""
    sample: int = 5
    """Number of images in the demonstration."""

    name: str | None = None
    """Name of the experiment: by default its --feature-dir is features/NAME."""
    feature_dir: Path = Path("features")
    """Directory of the clusters."""
    checkpoint: Path | None = None
    """The checkpoint of the features, if it was moved since the extraction."""
    data_dir: Path | None = None
    """Directory of the demonstration's images; by default, where they were extracted from."""
    device: DeviceName = "auto"
    """Device to compute on."""
    precision: PrecisionName = "auto"
    """Precision of the network; auto is that of the extraction, any other moves a few pictures to
    other clusters."""
    batch_size: int = 64
    """Pictures in a batch."""
    wandb: WandbMode | None = None
    """Log a table of pictures and predictions to Weights & Biases; by default auto for the
    demonstration and disabled for your own pictures, given or in the data set."""
    wandb_dir: Path = Path("wandb")
    """Directory of the Weights & Biases files."""

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
    """The checkpoint of the features, if it was moved since the extraction; with --backbone, the
    one to export instead of the newest intact one in --checkpoint-dir."""
    checkpoint_dir: Path = Path("checkpoints")
    """Directory of the training's checkpoints, for --backbone."""
    backbone: Path | None = None
    """Write only the backbone, to this .safetensors or .pt file."""
    data_dir: Path | None = None
    """Directory of the images to compare on; by default, where they were extracted from."""
    check_images: int = 256
    """Number of images to compare ONNX Runtime and PyTorch on; 0 skips the comparison."""
