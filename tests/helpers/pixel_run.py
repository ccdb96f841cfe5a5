"""A finished run whose features are the pixels: it has every file, and takes a second."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.load_dataset import load_dataset
from src import clustering
from src.clustering import ClusteringConfig
from src.storage import artifacts


def pixel_run(
    directory: Path,
    name: str,
    data_dir: Path,
    labeled: bool = True,
    side: int = 8,
    image_size: int | None = None,
    **clustering_flags: object,
) -> None:
    """Write features of the images, `pixels` with that `side`, and cluster them with
    `src/clustering.py`."""
    dataset = load_dataset(name, data_dir, image_size)  # type: ignore[arg-type]
    described = {
        "name": dataset.name,
        "data_dir": str(data_dir),
        "cache_dir": None,
        "image_size": dataset.image_size,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "splits": {split: len(part.images) for split, part in dataset.splits.items()},
    }
    with artifacts.writing(directory, artifacts.EXTRACTION) as stage:
        for split, part in dataset.splits.items():
            stage.save(artifacts.FEATURES, pixels(part.images, side), split)
            if labeled and part.labels is not None:
                stage.save(artifacts.LABELS, part.labels, split)
        stage.record(extraction_part(f"pixels {side} {dataset.fingerprint}", **described))
    flags = {"components": 20, "restarts": 2, "wandb": "disabled"} | clustering_flags
    clustering.main(ClusteringConfig(feature_dir=directory, **flags))  # type: ignore[arg-type]


def extraction_part(features_id: str, **dataset: object) -> dict[str, object]:
    """What an extraction records about features that come from no checkpoint."""
    unknown = {"name": "digits", "data_dir": ".", "cache_dir": None, "image_size": 32}
    checkpoint = {"file": "trained/none.pt", "digest": "0", "epoch": 0, "config": {"arch": "x"}}
    return {
        "id": features_id, "dataset": {**unknown, "fingerprint": "?", **dataset},
        "checkpoint": checkpoint, "precision": "float32",
        "tracking": {"group": "a group", "run_id": None},
    }  # fmt: skip


def pixels(images: np.ndarray, side: int = 8) -> np.ndarray:
    """float32 (N, 3 * side * side): the means of square patches, but for a frame that is left."""
    frame = images.shape[-1] % side // 2
    images = images[:, :, frame : images.shape[2] - frame, frame : images.shape[3] - frame]
    n, channels, size, _ = images.shape
    patches = images.reshape(n, channels, side, size // side, side, size // side)
    return patches.mean(axis=(3, 5), dtype=np.float32).reshape(n, -1)


@dataclass(frozen=True)
class Arrays:
    """The files of a run, the images of all splits one after another."""

    x: np.ndarray
    """float64 (N, P), the reduced features."""
    clusters: np.ndarray
    labels: np.ndarray
    class_of_cluster: np.ndarray
    distances: np.ndarray
    """float64 (N, K), to every centroid."""
    certainty: np.ndarray
    """float64 (N,): p1 of the most probable cluster with labels, else 1 - p2 / p1 of the two."""


def load_arrays(directory: Path) -> Arrays:
    """Of a run on a dataset that has a train and a test split."""

    manifest = artifacts.Manifest(directory)
    labeled = manifest.has(artifacts.LABELS, "train")

    def both(artifact: artifacts.Artifact) -> np.ndarray:
        return np.concatenate([manifest.load(artifact, split) for split in ("train", "test")])

    x = both(artifacts.REDUCED).astype(np.float64)
    centroids = manifest.load(artifacts.CENTROIDS).astype(np.float64)
    weights, bias = map(manifest.load, (artifacts.HEAD_WEIGHTS, artifacts.HEAD_BIAS))
    scores = (x @ weights.T.astype(np.float64) + bias) / manifest.clustering["confidence_scale"]
    *_, second, first = np.sort(scores, axis=1).T
    margins = 1 - np.exp(second - first)
    confidence = 1 / np.exp(scores - first[:, None]).sum(axis=1)
    return Arrays(
        x=x,
        clusters=both(artifacts.ASSIGNMENTS),
        labels=both(artifacts.LABELS) if labeled else np.full(len(x), -1),
        class_of_cluster=manifest.load(artifacts.CLUSTER_TO_CLASS),
        distances=np.linalg.norm(x[:, None] - centroids, axis=2),
        certainty=confidence if labeled else margins,
    )
