"""From features to clusters and their scores: the same steps for learned ones and baselines.

Shape letters: N images, D features, P principal components, K clusters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from src.clusters.head import LinearHead, fit_head, nearest_centroid
from src.clusters.kmeans import kmeans
from src.clusters.pca import PCA, fit_pca
from src.clusters.smoothing import smooth
from src.evaluation.metrics import external_metrics, hungarian_match, internal_metrics, knn_accuracy

Splits = dict[str, np.ndarray]
"""An array for each split."""

OVER_SEEDS = ("hungarian_accuracy", "transferred_accuracy", "nmi", "ari")


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
    """Share of the fitted split that the head puts where K-means does."""


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
    hops: int = 0
    """Of the smoothing; 0 is none."""
    neighbors: int = 10
    pca_limit: int = 6_000
    """Largest exact PCA, by the smaller side of its matrix: time grows with the cube of that."""

    @property
    def named_on(self) -> str | None:
        """The split whose labels name the clusters: the fitted one, or train, or test."""
        order = (self.fit_on, "train", "test")
        return next((split for split in order if split in self.labels), None)

    def reduce(self, features: Splits) -> tuple[PCA, Splits]:
        """PCA of features (N, D), and the coordinates (N, P) of all splits.

        Above `pca_limit`, as with raw pixels of very many images, PCA is fitted on a part of them.
        """
        x = features[self.fit_on]
        if min(x.shape) > self.pca_limit:
            print(f"note: PCA of {x.shape[1]:,} dimensions is fitted on {self.pca_limit:,} images")
            x = x[np.linspace(0, len(x) - 1, self.pca_limit).astype(int)]
        pca = fit_pca(x, self.components, self.l2_normalize)
        return pca, {split: pca.transform(x) for split, x in features.items()}

    def smooth(self, reduced: Splits) -> np.ndarray | None:
        """Smoothed rows (N, P) of the fitted split; None without smoothing."""
        return smooth(reduced[self.fit_on], self.hops, self.neighbors) if self.hops else None

    def cluster(
        self, reduced: Splits, count: int, seed: int, smoothed_NP: np.ndarray | None = None
    ) -> Clustering:
        """K-means of the fitted split, by its coordinates (N, P) or by `smoothed_NP`."""
        x_NP = reduced[self.fit_on]
        model = kmeans(x_NP if smoothed_NP is None else smoothed_NP, count, seed, self.restarts)
        found = np.asarray(model.labels_, np.int64)
        centroids_KP = model.cluster_centers_.astype(np.float32)
        if smoothed_NP is None:
            head = nearest_centroid(centroids_KP)
            clusters = {s: np.asarray(model.predict(x), np.int64) for s, x in reduced.items()}
        else:
            head = fit_head(x_NP, found, count)
            clusters = {split: head.assign(x) for split, x in reduced.items()}
            members = clusters[self.fit_on] == np.arange(count)[:, None]  # (K, N)
            sizes = np.maximum(1, members.sum(axis=1, keepdims=True))
            centroids_KP = (members.astype(np.float32) @ x_NP / sizes).astype(np.float32)
        agreement = float(np.mean(clusters[self.fit_on] == found))
        class_K = self.name(clusters, count)
        inertia = float(model.inertia_ or 0)
        return Clustering(clusters, centroids_KP, head, class_K, inertia, agreement)

    def name(self, clusters: Splits, count: int) -> np.ndarray:
        """The class (K,) of each cluster by Hungarian matching; -1 for none."""
        if self.named_on is None:
            return np.full(count, -1)
        labels, assigned = self.labeled(clusters, self.named_on)
        return hungarian_match(labels, assigned, len(self.class_names), count)

    def cluster_and_score(
        self,
        features: Splits,
        reduced: Splits,
        smoothed_NP: np.ndarray | None,
        count: int,
        seed: int,
    ) -> tuple[list[Clustering], dict[str, Any]]:
        """The clusters of K-means, then those of smoothed rows if there are any, and every metric.

        Returns:
            The clusterings, and their part of metrics.json: `splits` has the scores of K-means on
            each split, `smoothed` those of the smoothed clusters.
        """
        knn = {split: self._knn(features, split) for split in features if split in self.labels}
        found = [self.cluster(reduced, count, seed)]
        scores: dict[str, Any] = {"splits": self._scores(reduced, found[0], knn)}
        if smoothed_NP is not None:
            found.append(self.cluster(reduced, count, seed, smoothed_NP))
            splits = self._scores(reduced, found[1], knn)
            scores["smoothed"] = {"splits": splits, "head_agreement": found[1].agreement}
        return found, scores

    def score_baseline(self, features: Splits, count: int, seed: int) -> dict[str, Any]:
        """The same metrics of other features (N, D)."""
        _, reduced = self.reduce(features)
        return self.cluster_and_score(features, reduced, self.smooth(reduced), count, seed)[1]

    def over_seeds(
        self, reduced: Splits, smoothed_NP: np.ndarray | None, count: int, seeds: range
    ) -> dict[str, Any]:
        """Mean and standard deviation (n - 1), over seeds of K-means, of the `OVER_SEEDS`."""

        def means(rows_NP: np.ndarray | None) -> dict[str, Any]:
            scores = []
            for seed in seeds:
                found = self.cluster(reduced, count, seed, rows_NP)
                scores.append({split: self._external(found, split) for split in self.labels})
            return {
                split: {
                    name: _mean_std([one[split][name] for one in scores]) for name in OVER_SEEDS
                }
                for split in self.labels
            }

        result = {"count": len(seeds), "splits": means(None)}
        return result if smoothed_NP is None else {**result, "smoothed": means(smoothed_NP)}

    def _scores(
        self, reduced: Splits, found: Clustering, knn: dict[str, float | None]
    ) -> dict[str, dict[str, Any]]:
        """Every metric of every split; those that need labels only for splits with labels."""
        scores = {}
        for split, assigned in found.clusters.items():
            scores[split] = {"images": len(assigned)}
            if split in self.labels:
                scores[split] |= self._external(found, split) | {"knn_accuracy": knn[split]}
            scores[split] |= internal_metrics(reduced[split], assigned)
            sizes = np.bincount(assigned, minlength=len(found.class_K))
            scores[split]["cluster_sizes"] = sizes.tolist()
        return scores

    def _external(self, found: Clustering, split: str) -> dict[str, Any]:
        labels, clusters = self.labeled(found.clusters, split)
        return external_metrics(labels, clusters, found.class_K, self.class_names)

    def _knn(self, features: Splits, split: str) -> float | None:
        """k-NN accuracy of the features (N, D) of a split, independent of the clusters.

        The neighbors come from the split that names the clusters. Within that split an image is
        not its own neighbor. None where that leaves no neighbor.
        """
        assert self.named_on is not None
        bank_labels, bank = self.labeled(features, self.named_on)
        labels, queries = self.labeled(features, split)
        same_split = split == self.named_on
        if len(bank) == same_split:
            return None
        return knn_accuracy(bank, bank_labels, queries, labels, leave_one_out=same_split)

    def labeled(self, arrays: Splits, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The known labels of a split, and the rows of its array that they belong to."""
        known = self.labels[split] >= 0
        return self.labels[split][known], arrays[split][known]


def _mean_std(values: list[float | None]) -> dict[str, float] | None:
    if None in values:
        return None
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}  # type: ignore[arg-type]
