"""Check inference against clustering, and the calibration of its confidence.

    python benchmarks/inference_check.py --feature-dir features

Needs the outputs of src/clustering.py. Writes the images of every split as PNG, predicts the files,
and counts those whose cluster differs from the clustering's; compares ONNX Runtime with PyTorch,
both in float32; and on splits with labels measures the expected calibration error (Guo et al. 2017,
15 bins) of the confidence, with the clustering's scale and with the scale fitted without labels.
Prints a JSON object for every split.
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
from src.clusters.confidence import confidence, gaussian_scale
from src.prediction.onnx_export import onnx_clusters, to_onnx
from src.prediction.predictor import Predictor
from src.runtime.cli import run_script
from src.storage import artifacts


@dataclass(frozen=True)
class CheckConfig:
    feature_dir: Path = Path("features")
    """Directory of the clusters."""
    checkpoint: Path | None = None
    """The checkpoint of the features, if it was moved since the extraction."""
    data_dir: Path | None = None
    """Directory of the images; by default, where they were extracted from."""
    onnx_images: int = 1000
    """Evenly spaced images of each split to compare ONNX Runtime and PyTorch on."""


def main(config: CheckConfig) -> None:
    predictor = Predictor.load(config.feature_dir, config.checkpoint, "cpu")
    in_float32 = Predictor.load(config.feature_dir, config.checkpoint, "cpu", "fp32")
    session = onnxruntime.InferenceSession(
        to_onnx(in_float32).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    dataset = reload_dataset(predictor.extraction["dataset"], config.data_dir)
    for name, split in dataset.splits.items():
        results = check_clusters(predictor, name, split)
        count = len(split.images)
        rows = np.linspace(0, count - 1, min(config.onnx_images, count)).astype(int)
        images = split.images[rows]
        different = onnx_clusters(session, images) != in_float32.predict(images).clusters
        results |= {"onnx_compared": len(rows), "onnx_differences": int(different.sum())}
        print(json.dumps({"split": name, **results}), flush=True)


def check_clusters(predictor: Predictor, name: str, split: Split) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i:06d}.png") for i in range(len(split.images))]
        for file, image in zip(files, split.images, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
        predictions = predictor.predict(files)
    assigned = predictor.manifest.load(artifacts.ASSIGNMENTS, name)
    results = {
        "images": len(files),
        "cluster_differences": int((predictions.clusters != assigned).sum()),
        "mean_certainty": float(predictions.certainty.mean()),
    }
    if split.labels is None:
        return results
    right = predictor.cluster_to_class[predictions.clusters] == split.labels
    manifest = predictor.manifest
    scores = predictor.head.linear(torch.tensor(manifest.load(artifacts.REDUCED, name)))
    scale = scale_without_labels(predictor)
    return results | {
        "right": float(right.mean()),
        "calibration_error": calibration_error(predictions.certainty, right),
        "confidence_scale": predictor.head.confidence_scale,
        "calibration_error_without_labels": calibration_error(
            confidence(scores, scale).numpy(), right
        ),
        "confidence_scale_without_labels": scale,
    }


def scale_without_labels(predictor: Predictor) -> float:
    manifest = predictor.manifest
    if manifest.clustering["config"]["smooth"]:
        return 1.0
    reduced = manifest.load(artifacts.REDUCED, manifest.clustering["fit_on"])
    return gaussian_scale(reduced, predictor.head.centroids.numpy())


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = 15) -> float:
    """Mean difference between confidence and accuracy, over bins of equal width."""
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gap_N = confidence_N.astype(np.float64) - right_N
    return float(np.abs(np.bincount(bin_N, gap_N)).sum() / len(gap_N))


if __name__ == "__main__":
    run_script(main, CheckConfig)
