"""The scores of clusterings, for metrics.json."""

from typing import Literal

import numpy as np

from src.clusters.method import Clustering, Method, Splits
from src.clusters.pca import PCA
from src.evaluation.linear_probe import linear_probe
from src.evaluation.metrics import external_metrics, internal_metrics, knn_right
from src.evaluation.sampling import (
    PRODUCTS,
    SCORED,
    are_many,
    fitted_rows,
    random_rows,
    standard_error,
    thinned,
)
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
                labeled = {**label_scores(method, clustering, split), **knn[split]}
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


def knn_of(method: Method, features: Splits, split: str) -> LabelScores:
    """k-NN accuracy of the features (N, D) of a split, independent of the clusters.

    The neighbors come from the split that names the clusters. Within that split an image is not its
    own neighbor. None where that leaves no neighbor. The bank is at most `EXACT` of its images, and
    if the comparisons are more than `PRODUCTS`, the queries are a sample.
    """
    assert method.named_on is not None
    same_split = split == method.named_on
    bank, queries = method.labeled_rows(method.named_on), method.labeled_rows(split)
    images, dim = len(queries), features[split].shape[1]
    if len(bank) == same_split:
        return {"knn_accuracy": None}
    bank = thinned(bank)
    if len(bank) * images * dim > PRODUCTS:
        queries = queries[random_rows(images, SCORED, seed=1)]
    place = np.searchsorted(bank, queries).clip(max=len(bank) - 1)
    right = knn_right(
        features[method.named_on][bank], method.labels[method.named_on][bank],
        features[split][queries], method.labels[split][queries],
        np.where(bank[place] == queries, place, -1) if same_split else None,
    )  # fmt: skip
    scores: LabelScores = {"knn_accuracy": float(right.sum() / len(right))}
    if len(queries) < images:
        scores["knn_error"] = standard_error(right, images)
    return scores


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
    known = {
        s: (method.labels[s][rows], features[s][rows])
        for s in ("train", "test")
        if s in method.labels and (rows := thinned(method.labeled_rows(s))).size
    }
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
    if are_many(images := len(found["kmeans"].clusters[method.fit_on])):
        scores["sample"] = len(fitted_rows(images))
    return scores


def pca_scores(pca: PCA) -> PcaScores:
    return {
        "components": len(pca.variance_ratio_P),
        "explained_variance": float(pca.variance_ratio_P.sum()),
        "cumulative": pca.variance_ratio_P.cumsum().tolist(),
        "effective_rank": pca.effective_rank,
    }
