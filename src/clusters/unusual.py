"""Unusual pictures, "none of these": farther from every cluster than what was clustered.

    distance^2 = min_k |z - c_k|^2 + r,    r = |x - mean|^2 - |z|^2

z are the principal components of the features x, c_k the centroids, and r the squared distance from
x to the space that the components span: together the distance from x to the nearest centroid in all
dimensions. A picture of another kind often differs in dimensions outside the components. A softmax
cannot detect this, as its scores only compare the clusters with each other.

Shape letters: N images, D features, P principal components, K clusters.
"""

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from src.clusters.pca import PCA


def distance_to_clusters(
    pca: PCA, x_ND: np.ndarray, reduced_NP: np.ndarray, centroids_KP: np.ndarray
) -> np.ndarray:
    """float64 (N,), from features, their principal components and the centroids."""
    _, nearest_N = pairwise_distances_argmin_min(reduced_NP, centroids_KP)
    return np.sqrt(nearest_N**2 + pca.outside(x_ND, reduced_NP))
