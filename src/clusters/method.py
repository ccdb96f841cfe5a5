"""From features to clusters: the same steps for learned ones and baselines.

Shape letters: N images, D features, P principal components, K clusters.
"""

from dataclasses import dataclass

import numpy as np

from src.clusters.head import LinearHead, fit_head, nearest_centroid
from src.clusters.kmeans import kmeans
from src.clusters.pca import PCA, fit_pca
from src.clusters.smoothing import smooth
from src.evaluation.metrics import hungarian_match
from src.evaluation.sampling import fitted_rows, thinned
from src.storage.scores import ClusteringName

Splits = dict[str, np.ndarray]
"""An array for each split."""
MOST_NEIGHBORS = 10
"""To average an image with, unless a flag says otherwise."""
PCA_LIMIT = 6_000
"""Largest exact PCA, by the smaller side of its matrix: time grows with the cube of that."""


@dataclass(frozen=True)
class Clustering:
    """K clusters, and the one of every image."""

    clusters: Splits
    """int64 (N,)."""
    centroids_KP: np.ndarray
    """float32, the mean of each cluster among the principal components of the fitted split."""
    head: LinearHead
    class_K: np.ndarray
    """int64, the class of each cluster by Hungarian matching, -1 for none."""
    inertia: float
    agreement: float
    """Share of the fitted images that the head puts where K-means does."""


@dataclass(frozen=True)
class Method:
    fit_on: str
    """The split that PCA and K-means are fitted on."""
    labels: Splits
    """int64 (N,) of the splits that have any, -1 where the class is unknown."""
    class_names: list[str]
    l2_normalize: bool
    components: int
    restarts: int
    hops: int
    """Of the smoothing; 0 is none."""
    neighbors: int | None
    """Of the smoothing; None follows the size of the clusters."""

    @property
    def named_on(self) -> str | None:
        """The split whose labels name the clusters: the fitted one, or train, or test."""
        order = (self.fit_on, "train", "test")
        return next((split for split in order if split in self.labels), None)

    def reduce(self, features: Splits) -> tuple[PCA, Splits]:
        """PCA of features (N, D), and the coordinates (N, P) of all splits.

        Above `PCA_LIMIT`, as with raw pixels of very many images, PCA is fitted on a part of them.
        """
        x = features[self.fit_on]
        if min(x.shape) > PCA_LIMIT:
            print(f"note: PCA of {x.shape[1]:,} dimensions is fitted on {PCA_LIMIT:,} images")
            x = x[np.linspace(0, len(x) - 1, PCA_LIMIT).astype(int)]
        pca = fit_pca(x, self.components, self.l2_normalize)
        return pca, {split: pca.transform(x) for split, x in features.items()}

    def smooth(self, reduced: Splits, count: int) -> np.ndarray | None:
        """Rows (n, P) for `count` clusters, of the n `thinned` images of the fitted split; None
        without smoothing."""
        x_NP = thinned(reduced[self.fit_on])
        return smooth(x_NP, self.hops, self.neighbors_for(len(x_NP), count)) if self.hops else None

    def neighbors_for(self, images: int, count: int) -> int:
        """Of each image, to average it with; more than its cluster has would mix clusters."""
        return self.neighbors or min(MOST_NEIGHBORS, max(1, images // count - 1))

    def cluster(
        self, reduced: Splits, count: int, seed: int, smoothed_NP: np.ndarray | None = None
    ) -> Clustering:
        """K-means of the `thinned` images of the fitted split, by their coordinates (n, P) or by
        `smoothed_NP`; the head assigns all images."""
        x_NP = reduced[self.fit_on]
        rows, fitted_NP = fitted_rows(len(x_NP)), thinned(x_NP)
        model = kmeans(
            fitted_NP if smoothed_NP is None else smoothed_NP, count, seed, self.restarts
        )
        found = np.asarray(model.labels_, np.int64)
        centroids_KP = model.cluster_centers_.astype(np.float32)
        smooth = smoothed_NP is not None
        head = fit_head(fitted_NP, found, count) if smooth else nearest_centroid(centroids_KP)
        clusters = {split: head.assign(x) for split, x in reduced.items()}
        own = clusters[self.fit_on]
        if smooth:
            sums_KP = np.stack([x_NP[own == k].sum(axis=0, dtype=float) for k in range(count)])
            sizes_K = np.bincount(own, minlength=count).clip(1)
            centroids_KP = (sums_KP / sizes_K[:, None]).astype(np.float32)
        agreement = float(np.mean(own[rows] == found))
        class_K = self.name(clusters, count)
        inertia = float(model.inertia_ or 0)
        return Clustering(clusters, centroids_KP, head, class_K, inertia, agreement)

    def name(self, clusters: Splits, count: int) -> np.ndarray:
        """The class (K,) of each cluster by Hungarian matching; -1 for none."""
        if self.named_on is None:
            return np.full(count, -1)
        labels, assigned = self.labeled(clusters, self.named_on)
        return hungarian_match(labels, assigned, count)

    def clusterings(
        self, reduced: Splits, smoothed_NP: np.ndarray | None, count: int, seed: int
    ) -> dict[ClusteringName, Clustering]:
        """K-means of the coordinates, and of smoothed rows if there are any."""
        found: dict[ClusteringName, Clustering] = {"kmeans": self.cluster(reduced, count, seed)}
        if smoothed_NP is not None:
            found["smoothed"] = self.cluster(reduced, count, seed, smoothed_NP)
        return found

    def labeled_rows(self, split: str) -> np.ndarray:
        """Of a split with labels, int (n,), those whose class is known."""
        return np.flatnonzero(self.labels[split] >= 0)

    def labeled(self, arrays: Splits, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The known labels of a split, and the rows of its array that they belong to."""
        known = self.labeled_rows(split)
        return self.labels[split][known], arrays[split][known]
