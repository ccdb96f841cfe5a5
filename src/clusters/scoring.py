"""The scores of clusterings, for metrics.json."""

from typing import Literal

import numpy as np

from src.clusters.method import Clustering, Method, Splits
from src.clusters.pca import PCA
from src.evaluation.linear_probe import linear_probe
from src.evaluation.metrics import external_metrics, internal_metrics, knn_accuracy
from src.storage.scores import (
    ClusteringName,
    ClusteringScores,
    FeatureScores,
    FitScores,
    LabelScores,
    PcaScores,
    ProbeScores,
    SeedScores,
    SplitScores,
    Spread,
)

OVER_SEEDS: tuple[Literal["hungarian_accuracy", "transferred_accuracy", "nmi", "ari"], ...] = (
    "hungarian_accuracy",
    "transferred_accuracy",
    "nmi",
    "ari",
)


def score(
    method: Method, features: Splits, reduced: Splits, found: dict[ClusteringName, Clustering]
) -> FeatureScores:
    """Every score of every split; those that need labels only for splits with labels."""
    knn = {split: knn_of(method, features, split) for split in features if split in method.labels}

    def of(clustering: Clustering) -> ClusteringScores:
        splits = {}
        for split, x_NP in reduced.items():
            labeled: LabelScores = {}
            if split in method.labels:
                labeled = {**label_scores(method, clustering, split), "knn_accuracy": knn[split]}
            splits[split] = split_scores(clustering, split, x_NP, labeled)
        return {"splits": splits}

    scores: FeatureScores = {"kmeans": of(found["kmeans"])}
    if "smoothed" in found:
        scores["smoothed"] = of(found["smoothed"])
    return scores


def split_scores(
    found: Clustering, split: str, x_NP: np.ndarray, labeled: LabelScores
) -> SplitScores:
    clusters = found.clusters[split]
    sizes = np.bincount(clusters, minlength=len(found.class_K)).tolist()
    internal = internal_metrics(x_NP, clusters)
    return {"images": len(clusters), **labeled, **internal, "cluster_sizes": sizes}


def label_scores(method: Method, found: Clustering, split: str) -> LabelScores:
    labels, clusters = method.labeled(found.clusters, split)
    return external_metrics(labels, clusters, found.class_K, method.class_names)


def knn_of(method: Method, features: Splits, split: str) -> float | None:
    """k-NN accuracy of the features (N, D) of a split, independent of the clusters.

    The neighbors come from the split that names the clusters. Within that split an image is not its
    own neighbor. None where that leaves no neighbor.
    """
    assert method.named_on is not None
    bank_labels, bank = method.labeled(features, method.named_on)
    labels, queries = method.labeled(features, split)
    same_split = split == method.named_on
    if len(bank) == same_split:
        return None
    return knn_accuracy(bank, bank_labels, queries, labels, leave_one_out=same_split)


def score_baseline(method: Method, features: Splits, count: int, seed: int) -> FeatureScores:
    """The same scores of other features (N, D)."""
    _, reduced = method.reduce(features)
    found = method.clusterings(reduced, method.smooth(reduced, count), count, seed)
    return score(method, features, reduced, found)


def over_seeds(
    method: Method, reduced: Splits, smoothed_NP: np.ndarray | None, count: int, seeds: range
) -> SeedScores:
    """Mean and standard deviation (n - 1), over seeds of K-means, of the `OVER_SEEDS`."""

    def spreads(rows_NP: np.ndarray | None) -> dict[str, dict[str, Spread | None]]:
        runs = [method.cluster(reduced, count, seed, rows_NP) for seed in seeds]
        by_split = {}
        for split in method.labels:
            scores = [label_scores(method, found, split) for found in runs]
            by_split[split] = {n: _spread([one.get(n) for one in scores]) for n in OVER_SEEDS}
        return by_split

    result: SeedScores = {"count": len(seeds), "kmeans": spreads(None)}
    if smoothed_NP is not None:
        result["smoothed"] = spreads(smoothed_NP)
    return result


def _spread(values: list[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": float(np.mean(known)), "std": float(np.std(known, ddof=1))}


def probe_scores(method: Method, features: Splits, seed: int) -> ProbeScores | None:
    """Of a linear classifier of the features (N, D); None without labels to fit it to.

    Where test has no labels, `scored_on` is train, by cross-validation.
    """
    known = {s: method.labeled(features, s) for s in ("train", "test") if s in method.labels}
    if "train" in known and (probe := linear_probe(*known["train"], known.get("test"), seed)):
        scored_on = "test" if "test" in known else "train"
        return {"fit_on": "train", "scored_on": scored_on, **probe}
    print("note: no linear probe: it needs a train split with labels of two classes or more")
    return None


def fit_scores(method: Method, found: dict[ClusteringName, Clustering]) -> FitScores:
    scores: FitScores = {
        "clusters": len(found["kmeans"].class_K),
        "fit_on": method.fit_on,
        "named_on": method.named_on,
        "inertia": found["kmeans"].inertia,
    }
    if "smoothed" in found:
        scores["head_agreement"] = found["smoothed"].agreement
    return scores


def pca_scores(pca: PCA) -> PcaScores:
    return {
        "components": len(pca.variance_ratio_P),
        "explained_variance": float(pca.variance_ratio_P.sum()),
        "cumulative": pca.variance_ratio_P.cumsum().tolist(),
        "effective_rank": pca.effective_rank,
    }
