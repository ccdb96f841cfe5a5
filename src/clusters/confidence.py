"""How sure a prediction is: a softmax over the negative squared distances to the centroids.

    confidence = max_k softmax_k(-d_k^2 / T)

It lies between 1/K and 1 and grows as a picture comes nearer to its centroid relative to the
others. One temperature T holds for a whole run:

- With labels on the split that the clusters were named on, T is fitted to them, as in temperature
  scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2): confidence
  is then the probability that the name of the cluster is the picture's class.
- Without labels it is the posterior of two Gaussians with equal spherical covariance, T = 2 s^2.
  It says how far from the border between two clusters a picture is, not how often the cluster is
  right; nothing can tell that without labels.

Shape letters: N images, P principal components, K clusters.
"""

import numpy as np
import torch
from torch import Tensor


def squared_distances(reduced_NP: Tensor, centroids_KP: Tensor) -> Tensor:
    """(N, K), from differences: exact where the expanded square loses digits."""
    return (reduced_NP[:, None] - centroids_KP).square().sum(2)


def confidence(squared_NK: Tensor, temperature: float) -> Tensor:
    """(N,), from squared distances."""
    return (-squared_NK / temperature).softmax(1).amax(1)


def temperature_of(
    reduced_NP: np.ndarray,
    centroids_KP: np.ndarray,
    named_K: np.ndarray,
    labels_N: np.ndarray | None,
    at_most: int = 5000,
) -> float:
    """T of a run, fitted on up to `at_most` images, evenly spaced.

    Args:
        named_K: the class of every cluster, -1 where it has none.
        labels_N: the class of every image, -1 where nobody knows; None without labels.
    """
    known = np.arange(len(reduced_NP)) if labels_N is None else np.flatnonzero(labels_N >= 0)
    rows = known[np.linspace(0, len(known) - 1, min(at_most, len(known))).astype(int)]
    reduced, centroids = torch.tensor(reduced_NP[rows]), torch.tensor(centroids_KP)
    if labels_N is None:
        return fit_temperature(reduced, centroids, None)
    classes_N = named_K[squared_distances(reduced, centroids).argmin(1)]
    return fit_temperature(reduced, centroids, torch.tensor(classes_N == labels_N[rows]))


def fit_temperature(reduced_NP: Tensor, centroids_KP: Tensor, right_N: Tensor | None) -> float:
    """T for the run that left these images and centroids.

    Args:
        right_N: whether the image's class is the one its cluster is named after; None where
            nobody knows.
    """
    if len(centroids_KP) == 1:
        return 1.0  # any will do: the confidence is 1
    scale = _border_temperature(reduced_NP, centroids_KP)
    if right_N is None:
        return scale
    squared = squared_distances(reduced_NP, centroids_KP)
    candidates = np.geomspace(scale / 1000, scale * 1000, 241)  # 6 % apart
    losses = [_log_loss(confidence(squared, t), right_N) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def _border_temperature(reduced_NP: Tensor, centroids_KP: Tensor) -> float:
    """2 s^2, where s^2 is the variance of the images about their centroid along the line to the
    second nearest: the only direction that decides between the two."""
    squared = squared_distances(reduced_NP, centroids_KP)
    own, second = squared.topk(2, largest=False).indices.T
    line = centroids_KP[second] - centroids_KP[own]  # (N, P)
    length = line.norm(dim=1).clamp_min(1e-12)  # 0 where two centroids are one point
    along = ((reduced_NP - centroids_KP[own]) * line).sum(1) / length
    return max(float(2 * along.square().mean()), 1e-12)


def _log_loss(confidence_N: Tensor, right_N: Tensor) -> float:
    p = confidence_N.clamp(1e-6, 1 - 1e-6)
    return float(-torch.where(right_N, p, 1 - p).log().mean())
