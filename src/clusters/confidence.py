"""The certainty of a prediction, from a softmax over the scores of the linear head:

    p_k = softmax_k(s_k / T);  confidence = p1,  margin = 1 - p2 / p1  of the two largest

With the scores of the nearest centroid p_k is softmax_k(-d_k^2 / T), d_k being the distance to
centroid k. T is the confidence scale, one number for all predictions:

- With labels on the split that named the clusters, T is fitted to them, as in temperature scaling
  (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2). Certainty is then the
  confidence, from 1/K to 1: the probability that the cluster's name is the picture's class.
- Without labels there is no way to know how often a cluster is right. Certainty is then the margin:
  0 on the border between two clusters, close to 1 far from it. The scores of smoothed clusters are
  those of a logistic regression, T = 1. The scores of nearest centroids are the posterior of two
  Gaussians with equal spherical covariance, T = 2 s^2 (`gaussian_scale`).

Shape letters: N images, P principal components, K clusters.
"""

import numpy as np
import torch
from torch import Tensor

from src.storage.artifacts import CertaintyName


def squared_distances(reduced_NP: Tensor, centroids_KP: Tensor) -> Tensor:
    """(N, K), from differences: exact where the expanded square loses digits."""
    return (reduced_NP[:, None] - centroids_KP).square().sum(2)


def certainty(name: CertaintyName, scores_NK: Tensor, scale: float) -> Tensor:
    """(N,), the confidence or the margin."""
    return (confidence if name == "confidence" else margin)(scores_NK, scale)


def confidence(scores_NK: Tensor, scale: float) -> Tensor:
    """(N,), from the scores of the head and the confidence scale T."""
    return (scores_NK / scale).softmax(1).amax(1)


def margin(scores_NK: Tensor, scale: float) -> Tensor:
    """(N,), 1 - p2 / p1 for the two largest probabilities: 0 on the border to another cluster."""
    if scores_NK.shape[1] == 1:
        return torch.ones_like(scores_NK[:, 0])
    first, second = scores_NK.topk(2).values.T
    return 1 - ((second - first) / scale).exp()


def fit_scale(scores_NK: Tensor, class_K: np.ndarray, labels_N: np.ndarray, start: float) -> float:
    """The confidence scale T, fitted to the labels.

    Args:
        class_K: the class of every cluster, -1 where it has none.
        labels_N: the class of every image.
        start: T without labels, and the middle of the numbers that are tried.
    """
    if len(class_K) == 1:  # the confidence in one cluster is 1 at any scale
        return start
    right_N = torch.tensor(class_K[scores_NK.argmax(1)] == labels_N)
    scales = np.geomspace(start / 1000, start * 1000, 241)  # 6 % apart
    losses = []
    for scale in scales:
        p = confidence(scores_NK, scale).clamp(1e-6, 1 - 1e-6)
        losses.append(float(-torch.where(right_N, p, 1 - p).log().mean()))
    return float(scales[int(np.argmin(losses))])


def gaussian_scale(reduced_NP: np.ndarray, centroids_KP: np.ndarray) -> float:
    """2 s^2, where s^2 is the variance of the images about their centroid along the line to the
    second nearest: the only direction that decides between the two."""
    if len(centroids_KP) == 1:
        return 1.0
    rows = sample(np.arange(len(reduced_NP)))
    reduced, centroids = torch.tensor(reduced_NP[rows]), torch.tensor(centroids_KP)
    parts = reduced.split(max(1, 2**19 // centroids.numel()))  # little memory at a time
    nearest = [squared_distances(x, centroids).topk(2, largest=False).indices for x in parts]
    own, second = torch.cat(nearest).T
    line = centroids[second] - centroids[own]  # (N, P)
    length = line.norm(dim=1).clamp_min(1e-12)  # 0 where two centroids coincide
    along = ((reduced - centroids[own]) * line).sum(1) / length
    return max(float(2 * along.square().mean()), 1e-12)


def sample(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced ones of `rows`, where there are more than 5,000."""
    return rows[np.linspace(0, len(rows) - 1, min(5_000, len(rows))).astype(int)]
