"""From features to clusters and their scores: the same steps for learned ones and baselines.

Shape letters: N images, D features, P principal components, K clusters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from src.clusters.kmeans import kmeans
from src.clusters.pca import PCA, fit_pca
from src.evaluation.metrics import external_metrics, hungarian_match, internal_metrics, knn_accuracy

Splits = dict[str, np.ndarray]
"""An array for each split."""

OVER_SEEDS = ("hungarian_accuracy", "transferred_accuracy", "nmi", "ari")


@dataclass(frozen=True)
class Protocol:
    fit_on: str
    """The split that PCA and K-means are fitted on."""
    labels: Splits
    """int64 (N,) of the splits that have any, -1 where the class is unknown."""
    class_names: list[str]
    l2_normalize: bool
    components: int
    restarts: int
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
        return pca, {split: pca.transform(x, self.l2_normalize) for split, x in features.items()}

    def cluster(self, reduced: Splits, count: int, seed: int) -> tuple[KMeans, Splits]:
        """K-means of coordinates (N, P), and the nearest centroid (N,) of every image."""
        model = kmeans(reduced[self.fit_on], count, seed, self.restarts)
        return model, {
            split: np.asarray(model.predict(x), np.int64) for split, x in reduced.items()
        }

    def name(self, clusters: Splits, count: int) -> np.ndarray:
        """The class (K,) of each cluster by Hungarian matching; -1 for none."""
        if self.named_on is None:
            return np.full(count, -1)
        labels, assigned = self._labeled(clusters, self.named_on)
        return hungarian_match(labels, assigned, len(self.class_names), count)

    def score(
        self, features: Splits, reduced: Splits, clusters: Splits, class_K: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        """Every metric of every split; those that need labels only for splits with labels."""
        scores = {}
        for split, assigned in clusters.items():
            scores[split] = {"images": len(assigned)}
            if split in self.labels:
                scores[split] |= self._external(clusters, split, class_K)
                scores[split]["knn_accuracy"] = self._knn(features, split)
            scores[split] |= internal_metrics(reduced[split], assigned)
            scores[split]["cluster_sizes"] = np.bincount(assigned, minlength=len(class_K)).tolist()
        return scores

    def score_baseline(self, features: Splits, count: int, seed: int) -> dict[str, dict[str, Any]]:
        """Reduce, cluster, name and score features (N, D)."""
        _, reduced = self.reduce(features)
        _, clusters = self.cluster(reduced, count, seed)
        return self.score(features, reduced, clusters, self.name(clusters, count))

    def over_seeds(self, reduced: Splits, count: int, seeds: range) -> dict[str, Any]:
        """Mean and standard deviation (n - 1), over seeds of K-means, of the `OVER_SEEDS`."""
        scores = []
        for seed in seeds:
            _, clusters = self.cluster(reduced, count, seed)
            class_K = self.name(clusters, count)
            scores.append({s: self._external(clusters, s, class_K) for s in self.labels})
        splits = {
            split: {name: _mean_std([one[split][name] for one in scores]) for name in OVER_SEEDS}
            for split in self.labels
        }
        return {"count": len(seeds), "splits": splits}

    def _external(self, clusters: Splits, split: str, class_K: np.ndarray) -> dict[str, Any]:
        return external_metrics(*self._labeled(clusters, split), class_K, self.class_names)

    def _knn(self, features: Splits, split: str) -> float | None:
        """k-NN accuracy of the features (N, D) of a split, independent of the clusters.

        The neighbors come from the split that names the clusters. Within that split an image is
        not its own neighbor. None where that leaves no neighbor.
        """
        assert self.named_on is not None
        bank_labels, bank = self._labeled(features, self.named_on)
        labels, queries = self._labeled(features, split)
        same_split = split == self.named_on
        if len(bank) == same_split:
            return None
        return knn_accuracy(bank, bank_labels, queries, labels, leave_one_out=same_split)

    def _labeled(self, arrays: Splits, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The known labels of a split, and the rows of its array that they belong to."""
        known = self.labels[split] >= 0
        return self.labels[split][known], arrays[split][known]


def _mean_std(values: list[float | None]) -> dict[str, float] | None:
    if None in values:
        return None
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}  # type: ignore[arg-type]
