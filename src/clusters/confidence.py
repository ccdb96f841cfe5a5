"""How sure a prediction is: a softmax over the negative squared distances to the centroids.

    confidence = max_k softmax_k(-d_k^2 / T)

It lies between 1/K and 1 and grows as a picture moves toward its centroid and away from the
others. T is the confidence scale, one number for all predictions:

- With labels on the split that named the clusters, T is fitted to them, as in temperature scaling
  (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2): confidence is then
  the probability that the name of the cluster is the picture's class.
- Without labels it is the posterior of two Gaussians with equal spherical covariance, T = 2 s^2.
  It measures how far a picture is from the border between two clusters, not how often the cluster
  is right, which only labels can tell.

Shape letters: N images, P principal components, K clusters.
"""

import numpy as np
import torch
from torch import Tensor


def squared_distances(reduced_NP: Tensor, centroids_KP: Tensor) -> Tensor:
    """(N, K), from differences: exact where the expanded square loses digits."""
    return (reduced_NP[:, None] - centroids_KP).square().sum(2)


def confidence(squared_NK: Tensor, scale: float) -> Tensor:
    """(N,), from squared distances and the confidence scale T."""
    return (-squared_NK / scale).softmax(1).amax(1)


def fit_scale(
    reduced_NP: np.ndarray,
    centroids_KP: np.ndarray,
    class_K: np.ndarray,
    labels_N: np.ndarray | None,
    max_images: int = 5000,
) -> float:
    """The confidence scale T, fitted on up to `max_images` evenly spaced images.

    Args:
        class_K: the class of every cluster, -1 where it has none.
        labels_N: the class of every image, -1 where it is unknown; None without labels.
    """
    if len(centroids_KP) == 1:
        return 1.0  # the confidence is 1 at any scale
    known = np.arange(len(reduced_NP)) if labels_N is None else np.flatnonzero(labels_N >= 0)
    rows = known[np.linspace(0, len(known) - 1, min(max_images, len(known))).astype(int)]
    reduced, centroids = torch.tensor(reduced_NP[rows]), torch.tensor(centroids_KP)
    squared = squared_distances(reduced, centroids)
    own, second = squared.topk(2, largest=False).indices.T
    # s^2 is the variance of the images about their centroid along the line to the second nearest:
    # the only direction that decides between the two.
    line = centroids[second] - centroids[own]  # (N, P)
    length = line.norm(dim=1).clamp_min(1e-12)  # 0 where two centroids coincide
    along = ((reduced - centroids[own]) * line).sum(1) / length
    scale = max(float(2 * along.square().mean()), 1e-12)
    if labels_N is None:
        return scale
    right_N = torch.tensor(class_K[squared.argmin(1)] == labels_N[rows])
    scales = np.geomspace(scale / 1000, scale * 1000, 241)  # 6 % apart
    losses = []
    for scale in scales:
        p = confidence(squared, scale).clamp(1e-6, 1 - 1e-6)
        losses.append(float(-torch.where(right_N, p, 1 - p).log().mean()))
    return float(scales[int(np.argmin(losses))])
