"""A small finished run for the tests of what comes after clustering."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.load_dataset import Dataset, load_dataset
from src import clustering, feature_extraction
from src.clustering import ClusteringConfig
from src.feature_extraction import ExtractionConfig
from src.models.batch_norm import calibrate_batch_norm
from src.models.preprocessing import preprocess
from src.models.simclr import SimCLR
from src.storage import checkpoint
from src.storage.provenance import versions
from src.training.flags import TrainConfig, flag_values

COMMIT = "0123456789abcdef0123456789abcdef01234567+"


def write_checkpoint(
    file: Path, name: str, data_dir: Path, arch: str = "resnet18", **flags: object
) -> Dataset:
    """An untrained network with calibrated batch norm, as `src/train.py` saves it."""
    dataset = load_dataset(name, data_dir)  # type: ignore[arg-type]
    torch.manual_seed(0)
    config = TrainConfig(name, data_dir, arch=arch, **flags)  # type: ignore[arg-type]
    model = SimCLR(arch, config.bn, config.pretrained)
    images = next(iter(dataset.splits.values())).images[:128]
    calibrate_batch_norm(
        model.backbone, [preprocess(torch.from_numpy(np.ascontiguousarray(images)))]
    )
    state = {
        "model": model.state_dict(), "epoch": 0, "config": flag_values(config),
        "dataset": {"fingerprint": dataset.fingerprint, "image_size": dataset.image_size},
        "versions": versions(), "commit": COMMIT,
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(file, state | {"tracking": {"group": "a group", "run_id": None}})
    return dataset


class FinishedRun(NamedTuple):
    features: Path
    checkpoint: Path


def finish_digits(directory: Path) -> FinishedRun:
    """On the digits, with an untrained network."""
    run = FinishedRun(directory / "features", directory / "trained" / checkpoint.file_name(0))
    write_checkpoint(run.checkpoint, "digits", Path())
    config = ExtractionConfig(run.checkpoint, feature_dir=run.features, device="cpu")
    feature_extraction.main(config)
    cluster(run.features)
    return run


def cluster(directory: Path, **flags: object) -> None:
    """The clustering stage, quickly."""
    flags = {"components": 20, "restarts": 3, "wandb": "disabled"} | flags
    clustering.main(ClusteringConfig(feature_dir=directory, **flags))  # type: ignore[arg-type]


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The predictions in a .csv or .json of `src/inference.py`."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, stream))
