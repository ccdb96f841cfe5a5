"""The results of a finished run; arrays hold the images of all splits."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.decoding import decode
from dataset.load_dataset import Dataset, reload_dataset
from dataset.pictures import BadPicture, picture_size
from src.clusters.carry_over import picture_paths
from src.clusters.groups import Groups, fitted_to, load_groups
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
    fine: np.ndarray
    """int64 (N,), the fine cluster of each image, see `clusters/fine.py`."""
    fine_tree: np.ndarray
    """float64 (F - 1, 4), the tree over the F fine clusters."""
    labels: np.ndarray
    """int64 (N,), -1 where the class is unknown."""
    class_of_cluster: np.ndarray
    """int64 (K,), -1 where a cluster has no class."""
    groups: np.ndarray
    """int64 (N,), the group of each image, -1 where it is ignored."""
    grouping: Groups
    """Names, labels and classes of the groups."""
    variance_ratio: np.ndarray
    """float32 (P,)."""
    class_names: list[str]
    metrics: Scores
    extraction: ExtractionRecord
    clustering: ClusteringRecord
    distance: np.ndarray
    """float32 (N,), from each image to the centroid of its cluster."""
    certainty: np.ndarray
    """float32 (N,), confidence or margin, as `clustering["certainty"]` says, of the group if a head
    was fitted to the names."""
    unusual: np.ndarray
    """bool (N,), whether an image is far from every cluster."""
    paths: list[str]
    """Of every image in images.csv: its file, or `train[12]`."""
    dataset: Dataset | None
    """The images; None where they are missing."""
    picture_dir: Path
    """The directory that the paths of a folder's pictures are relative to."""

    @property
    def cluster_colors(self) -> list[str]:
        return cluster_colors(self.class_of_cluster, len(self.class_names))

    @property
    def group_colors(self) -> list[str]:
        return cluster_colors(self.grouping.classes, len(self.class_names))

    @property
    def file_names(self) -> list[str] | None:
        """The path of every image, of a folder of pictures; None for other datasets, and where the
        images are missing."""
        splits = self.dataset.splits.values() if self.dataset else ()
        return self.paths if splits and all(split.names for split in splits) else None

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

    def side(self) -> int:
        """Of the pictures in pixels: what the run used, or for a folder the median of its files if
        that is more."""
        assert self.dataset is not None
        names = self.file_names or []
        sample = [self.picture_dir / names[i] for i in range(0, len(names), len(names) // 100 + 1)]
        sides = []
        for file in sample:
            with contextlib.suppress(BadPicture):
                sides.append(min(picture_size(file)))
        return max(self.dataset.image_size, int(np.median(sides)) if sides else 0)

    def thumbnails(self, rows: np.ndarray, size: int) -> np.ndarray:
        """uint8 (len(rows), S, S, 3): as `pictures`, but of a folder with S = `size` if that is
        more than the run used; then the files are decoded again."""
        small, names = self.pictures(rows), self.file_names
        if names is None or size <= small.shape[1]:
            return small
        large = np.empty((len(rows), size, size, 3), np.uint8)
        files = [self.picture_dir / names[row] for row in rows]
        for i, (_, picture) in enumerate(decode(files, size, ahead=64)):
            if isinstance(picture, BadPicture):  # it was changed or removed meanwhile
                large[i] = np.asarray(Image.fromarray(small[i]).resize((size, size)))
            else:
                large[i] = picture.transpose(1, 2, 0)
        return large


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
    groups = load_groups(manifest, notes := [])
    is_fitted = fitted_to(manifest, groups.given) is not None
    for note in notes:
        print(f"note: {printable(note)}")
    return Results(
        split_names=names,
        splits=np.repeat(np.arange(len(names)), sizes),
        x_NP=all_splits(artifacts.REDUCED),
        clusters=all_splits(artifacts.ASSIGNMENTS),
        fine=all_splits(artifacts.FINE),
        fine_tree=manifest.load(artifacts.FINE_TREE),
        labels=np.concatenate(
            [_labels(manifest, s, size) for s, size in zip(names, sizes, strict=True)]
        ),
        class_of_cluster=manifest.load(artifacts.CLUSTER_TO_CLASS),
        groups=np.concatenate([groups.of_images[split] for split in names]),
        grouping=groups,
        variance_ratio=manifest.load(artifacts.PCA_VARIANCE_RATIO),
        class_names=extraction["dataset"]["class_names"],
        metrics=metrics,
        extraction=extraction,
        clustering=manifest.clustering,
        distance=all_splits(artifacts.DISTANCE),
        certainty=all_splits(artifacts.GROUP_CERTAINTY if is_fitted else artifacts.CERTAINTY),
        unusual=all_splits(artifacts.UNUSUAL),
        paths=picture_paths(manifest, dataset),
        dataset=dataset,
        picture_dir=data_dir or Path(extraction["dataset"]["data_dir"] or "."),
    )


def _labels(manifest: Manifest, split: str, images: int) -> np.ndarray:
    if manifest.has(artifacts.LABELS, split):
        return manifest.load(artifacts.LABELS, split)
    return np.full(images, -1)
