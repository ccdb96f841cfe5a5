"""Fine clusters, and a tree over them from which a person chooses the number of groups.

The fine clusters are those of K-means of the same rows as the clusters. The tree joins them one by
one, each time the two whose union raises the sum of squared distances to the centers the least:

    d(a, b)^2 = 2 w_a w_b / (w_a + w_b) |c_a - c_b|^2

with w the numbers of images and c the centers. Source: Ward 1963, "Hierarchical Grouping to
Optimize an Objective Function"; by the recurrence of Lance & Williams 1967. SciPy's `linkage` takes
no weights.

Shape letters: N images, P principal components, F fine clusters.
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list
from scipy.spatial.distance import cdist

from src.clusters.head import nearest_centroid
from src.clusters.kmeans import kmeans
from src.clusters.method import Method, Splits
from src.evaluation.sampling import fitted_rows, thinned

MOST = 50
IMAGES_EACH = 8
"""Fewer than 50 * 8 images get fewer fine clusters."""


@dataclass(frozen=True)
class FineClusters:
    """F clusters, numbered as the leaves of the tree, so that similar ones are near."""

    fine: Splits
    """int64 (N,)."""
    tree: np.ndarray
    """float64 (F - 1, 4), as SciPy's `linkage`: a row for every union, with the two joined (fine
    clusters from 0, unions from F on), their distance, and the number of fine clusters in it."""


def find_fine(
    method: Method, reduced: Splits, smoothed_NP: np.ndarray | None, clusters: int, seed: int
) -> FineClusters:
    """Fine clusters, at least as many as `clusters`, of the `thinned` images of the fitted split;
    all other images go to the nearest mean.

    Args:
        reduced: principal components (N, P).
        smoothed_NP: rows of the thinned images that are clustered in their place, if there are any.
    """
    x_NP = thinned(reduced[method.fit_on])
    count = max(clusters, min(MOST, len(x_NP) // IMAGES_EACH))
    rows_NP = x_NP if smoothed_NP is None else smoothed_NP
    model = kmeans(rows_NP, count, seed, method.restarts)
    present, found, sizes = np.unique(
        np.asarray(model.labels_), return_inverse=True, return_counts=True
    )
    tree = ward(model.cluster_centers_[present], sizes)
    order = leaves_list(tree) if len(tree) else np.zeros(1, int)
    number = np.append(np.argsort(order), np.arange(len(order), 2 * len(order)))
    tree[:, :2] = number[tree[:, :2].astype(int)]
    found = number[found]
    head = nearest_centroid(np.stack([x_NP[found == f].mean(axis=0) for f in range(len(order))]))
    fine = {split: head.assign(x) for split, x in reduced.items()}
    fine[method.fit_on][fitted_rows(len(reduced[method.fit_on]))] = found
    return FineClusters(fine, tree)


def ward(centers_FP: np.ndarray, sizes_F: np.ndarray) -> np.ndarray:
    """The tree of `FineClusters` over centers that stand for as many images as `sizes_F` says."""
    weight, numbers, leaves = sizes_F.astype(float), np.arange(len(sizes_F)), np.ones(len(sizes_F))
    squared = cdist(centers_FP, centers_FP, "sqeuclidean")
    squared *= 2 * np.multiply.outer(weight, weight) / np.add.outer(weight, weight)
    np.fill_diagonal(squared, np.inf)
    tree = np.zeros((len(sizes_F) - 1, 4))
    for i, row in enumerate(tree):
        a, b = np.unravel_index(squared.argmin(), squared.shape)
        leaves[a] += leaves[b]
        row[:] = *sorted((numbers[a], numbers[b])), np.sqrt(squared[a, b]), leaves[a]
        both, to_a, to_b = squared[a, b], squared[a], squared[b]
        joined = (weight[a] + weight) * to_a + (weight[b] + weight) * to_b - weight * both
        squared[a] = squared[:, a] = joined / (weight[a] + weight[b] + weight)
        squared[a, a] = squared[b] = squared[:, b] = np.inf
        weight[a] += weight[b]
        numbers[a] = len(sizes_F) + i
    return tree
