"""Whether inference says what clustering said, and how far its confidence can be trusted.

    python benchmarks/inference_check.py --feature-dir features

Needs a finished run. Writes the images of every split out as PNG, predicts the files, and counts
those that come into another cluster than `src/clustering.py` gave; compares ONNX Runtime with
PyTorch, both in float32; and on splits with labels takes the expected calibration error (Guo et al.
2017, 15 bins) of the confidence, with the temperature of the run and with the one that it would
have had without labels. Prints an object for every split.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from dataset.load_dataset import Split, reload_dataset
from src.clusters.confidence import confidence, temperature_of
from src.export import to_onnx
from src.prediction.predictor import Predictor
from src.runtime.cli import run_script
from src.storage import artifacts


@dataclass(frozen=True)
class CheckConfig:
    feature_dir: Path = Path("features")
    """A finished run."""
    checkpoint: Path | None = None
    """Where its checkpoint is now, when it was moved since the features were extracted."""
    data_dir: Path | None = None
    """Where its images are; None takes the place they were extracted from."""
    onnx_images: int = 1000
    """How many images of each split ONNX Runtime and PyTorch are compared on, evenly spaced."""


def main(config: CheckConfig) -> None:
    predictor = Predictor.load(config.feature_dir, config.checkpoint, "cpu")
    in_float32 = Predictor.load(config.feature_dir, config.checkpoint, "cpu", "fp32")
    session = onnxruntime.InferenceSession(
        to_onnx(in_float32).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    for name, split in dataset.splits.items():
        said = check_clusters(config.feature_dir, predictor, name, split)
        count = len(split.images)
        rows = np.linspace(0, count - 1, min(config.onnx_images, count)).astype(int)
        said["onnx_compared"] = len(rows)
        said["onnx_differences"] = 0
        for i in range(0, len(rows), 64):
            images = split.images[rows[i : i + 64]]
            (clusters,) = session.run(["cluster"], {"images": images})
            different = np.asarray(clusters) != in_float32.predict(images).clusters
            said["onnx_differences"] += int(different.sum())
        print(json.dumps({"split": name, **said}), flush=True)


def check_clusters(directory: Path, predictor: Predictor, name: str, split: Split) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i:06d}.png") for i in range(len(split.images))]
        for file, image in zip(files, split.images, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
        found = predictor.predict(files)
    assigned = artifacts.load(artifacts.ASSIGNMENTS, directory, name)
    said = {
        "images": len(files),
        "cluster_differences": int((found.clusters != assigned).sum()),
        "mean_confidence": float(found.confidence.mean()),
    }
    if split.labels is None:
        return said
    right = predictor.cluster_to_class[found.clusters] == split.labels
    alone = temperature_without_labels(directory, predictor)
    squared = torch.from_numpy(found.distances).square()
    return said | {
        "right": float(right.mean()),
        "calibration_error": calibration_error(found.confidence, right),
        "temperature": predictor.head.temperature,
        "calibration_error_without_labels": calibration_error(
            confidence(squared, alone).numpy(), right
        ),
        "temperature_without_labels": alone,
    }


def temperature_without_labels(directory: Path, predictor: Predictor) -> float:
    fit_on = artifacts.recorded(directory, artifacts.CLUSTERING)["fit_on"]
    reduced = artifacts.load(artifacts.REDUCED, directory, fit_on)
    centroids = predictor.head.centroids.numpy()
    return temperature_of(reduced, centroids, predictor.cluster_to_class, None)


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and share of right ones, over bins of equal width."""
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gap_N = confidence_N.astype(np.float64) - right_N
    return float(np.abs(np.bincount(bin_N, gap_N)).sum() / len(gap_N))


if __name__ == "__main__":
    run_script(main, CheckConfig)
