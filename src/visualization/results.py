"""The results of a finished run; arrays hold the images of all splits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.load_dataset import Dataset, reload_dataset
from src.clusters.names import given_names, load_names
from src.runtime.cli import UserError, printable
from src.storage import artifacts
from src.storage.artifacts import Artifact, ClusteringRecord, ExtractionRecord, Manifest
from src.storage.scores import Scores
from src.visualization.palette import cluster_colors


@dataclass(frozen=True)
class Results:
    """Shape letters: N images of all splits together, P principal components, K clusters."""

    split_names: list[str]
    splits: np.ndarray
    """int (N,), the index into `split_names`, in ascending order."""
    x_NP: np.ndarray
    """float32 (N, P)."""
    clusters: np.ndarray
    """int64 (N,)."""
    labels: np.ndarray
    """int64 (N,), -1 where the class is unknown."""
    class_of_cluster: np.ndarray
    """int64 (K,), -1 where a cluster has no class."""
    names: list[str | None]
    """Of each cluster, see `clusters/names.py`."""
    given_names: list[str | None]
    """Those of names.json alone."""
    clusters_id: str
    variance_ratio: np.ndarray
    """float32 (P,)."""
    class_names: list[str]
    metrics: Scores
    extraction: ExtractionRecord
    clustering: ClusteringRecord
    distance: np.ndarray
    """float32 (N,), from each image to the centroid of its cluster."""
    certainty: np.ndarray
    """float32 (N,), confidence or margin, as `clustering["certainty"]` says."""
    unusual: np.ndarray
    """bool (N,), whether an image is far from every cluster."""
    dataset: Dataset | None
    """The images; None where they are missing."""
    picture_dir: Path
    """The directory that the paths of a folder's pictures are relative to."""

    @property
    def cluster_names(self) -> list[str]:
        """The number of each cluster, followed by its name if it has one."""
        return [f"{k} → {name}" if name else str(k) for k, name in enumerate(self.names)]

    @property
    def cluster_colors(self) -> list[str]:
        return cluster_colors(self.class_of_cluster, len(self.class_names))

    @property
    def file_names(self) -> list[str] | None:
        """The path of every image, of a folder of pictures; None for other datasets."""
        if self.dataset is None:
            return None
        parts = [self.dataset.splits[split].names for split in self.split_names]
        return [name for names in parts for name in names or ()] if all(parts) else None

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == self.split_names.index(split))

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (len(rows), S, S, 3): the images of `rows`, in the order of `rows`."""
        assert self.dataset is not None
        size = self.dataset.image_size
        pictures = np.empty((len(rows), size, size, 3), np.uint8)
        for index, name in enumerate(self.split_names):
            chosen = self.splits[rows] == index
            images = self.dataset.splits[name].images[rows[chosen] - self.rows(name)[0]]
            pictures[chosen] = images.transpose(0, 2, 3, 1)
        return pictures


def load_results(directory: Path, data_dir: Path | None = None) -> Results:
    """Raises UserError if extraction or clustering has not run, or their files do not match.

    `data_dir` is where the images are now, if they were moved.
    """
    manifest = Manifest(directory)
    extraction, metrics = manifest.extraction, manifest.metrics()
    names = list(extraction["dataset"]["splits"])

    def all_splits(artifact: Artifact) -> np.ndarray:
        return np.concatenate([manifest.load(artifact, split) for split in names])

    try:
        dataset = reload_dataset(extraction["dataset"], data_dir)
    except UserError as error:
        print(f"note: no pictures: {printable(str(error))}")
        dataset = None
    sizes = [len(manifest.load(artifacts.ASSIGNMENTS, split)) for split in names]
    return Results(
        split_names=names,
        splits=np.repeat(np.arange(len(names)), sizes),
        x_NP=all_splits(artifacts.REDUCED),
        clusters=all_splits(artifacts.ASSIGNMENTS),
        labels=np.concatenate(
            [_labels(manifest, s, size) for s, size in zip(names, sizes, strict=True)]
        ),
        class_of_cluster=manifest.load(artifacts.CLUSTER_TO_CLASS),
        names=load_names(manifest),
        given_names=given_names(manifest),
        clusters_id=manifest.clusters_id,
        variance_ratio=manifest.load(artifacts.PCA_VARIANCE_RATIO),
        class_names=extraction["dataset"]["class_names"],
        metrics=metrics,
        extraction=extraction,
        clustering=manifest.clustering,
        distance=all_splits(artifacts.DISTANCE),
        certainty=all_splits(artifacts.CERTAINTY),
        unusual=all_splits(artifacts.UNUSUAL),
        dataset=dataset,
        picture_dir=data_dir or Path(extraction["dataset"]["data_dir"] or "."),
    )


def _labels(manifest: Manifest, split: str, images: int) -> np.ndarray:
    if manifest.has(artifacts.LABELS, split):
        return manifest.load(artifacts.LABELS, split)
    return np.full(images, -1)
