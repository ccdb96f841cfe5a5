"""The linear head: the cluster of any image from its principal components alone.

    cluster = argmax_k s_k,    s = W x + b

- K-means' nearest centroid c_k is such a head: W_k = 2 c_k, b_k = -|c_k|^2, since s_k is then
  |x|^2 - |x - c_k|^2.
- Of smoothed clusters it is a multinomial logistic regression that was fitted to them, as a new
  image has no neighbors yet.

Shape letters: N images, P principal components, K clusters.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from src.storage.artifacts import HEAD_BIAS, HEAD_WEIGHTS, Manifest

NEVER = -1e9
"""The score of a cluster without images."""


class LinearHead(NamedTuple):
    weights_KP: np.ndarray
    """float32."""
    bias_K: np.ndarray
    """float32."""

    @classmethod
    def load(cls, manifest: Manifest) -> "LinearHead":
        return cls(*(np.array(manifest.load(artifact)) for artifact in (HEAD_WEIGHTS, HEAD_BIAS)))

    def scores(self, reduced_NP: np.ndarray) -> Tensor:
        """float32 (N, K)."""
        x, weights, bias = map(torch.tensor, (reduced_NP, self.weights_KP, self.bias_K))
        return F.linear(x, weights, bias)

    def assign(self, reduced_NP: np.ndarray) -> np.ndarray:
        """The cluster of every image, int64 (N,)."""
        return self.scores(reduced_NP).argmax(1).numpy()


def nearest_centroid(centroids_KP: np.ndarray) -> LinearHead:
    weights_KP = 2 * centroids_KP.astype(np.float32)
    return LinearHead(weights_KP, -np.square(centroids_KP, dtype=np.float32).sum(1))


def fit_head(x_NP: np.ndarray, clusters: np.ndarray, count: int) -> LinearHead:
    """Logistic regression of `clusters` (N,), of which there are `count`, on the rows.

    Rows are scaled together to a mean square length of 1, which fixes what its penalty C = 1 means.
    """
    from sklearn.linear_model import LogisticRegression  # slow, not needed for prediction

    present = np.unique(clusters)
    weights_KP = np.zeros((count, x_NP.shape[1]), np.float32)
    bias_K = np.full(count, NEVER, np.float32)
    bias_K[present] = 0
    if len(present) > 1:
        length = np.sqrt(np.square(x_NP, dtype=np.float64).sum(1).mean())
        with threadpool_limits(1, "blas"):  # NumPy's and SciPy's contend otherwise
            model = LogisticRegression(max_iter=1000).fit(x_NP / length, clusters)
        weights, bias = model.coef_ / length, model.intercept_
        if len(present) == 2:  # scikit-learn keeps only the difference of the two scores
            weights, bias = (np.concatenate([-half, half]) / 2 for half in (weights, bias))
        weights_KP[present], bias_K[present] = weights, bias
    return LinearHead(weights_KP, bias_K)
