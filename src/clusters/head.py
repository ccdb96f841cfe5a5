"""The cluster of any image from its features alone, how certain it is, and whether the image is
unusual. Everything that assigns images uses it: clustering, inference and the exported model.

    z = PCA(x);    cluster = argmax_k s_k,    s = W z + b

- K-means' nearest centroid c_k is such a linear head: W_k = 2 c_k, b_k = -|c_k|^2, since s_k is
  then |z|^2 - |z - c_k|^2.
- Of smoothed clusters it is a multinomial logistic regression that was fitted to them, as a new
  image has no neighbors yet.

`confidence.py` turns the scores s into a certainty. Unusual pictures, "none of these", are farther
from every cluster than most of what was clustered:

    distance^2 = min_k |z - c_k|^2 + r,    r = |x - mean|^2 - |z|^2

r is the squared distance from x to the space that the components span: together the distance from x
to the nearest centroid in all dimensions. A picture of another kind often differs in dimensions
outside the components. A softmax cannot detect this, as its scores only compare the clusters with
each other.

Where a person named fine clusters or moved pictures, a second linear head assigns images to groups
(`groups.py`); otherwise the group is that of the cluster.

Shape letters: B images in a batch, N images, D features, P principal components, K clusters,
G groups.
"""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from src.clusters.confidence import certainty, squared_distances
from src.evaluation.neighbors import ROWS
from src.storage import artifacts
from src.storage.artifacts import CertaintyName, Manifest

BATCH = 512
"""Images at a time, by their principal components."""
NEVER = -1e9
"""The score of a cluster without images."""
ROUNDING = 1e-6
"""Of a distance, relative to the largest one of a centroid from the mean."""


class LinearHead(nn.Module):
    """Principal components to the scores of the clusters."""

    weights: Tensor
    """float64 (K, P), of float32 numbers."""
    bias: Tensor
    """float64 (K,)."""

    def __init__(self, weights_KP: np.ndarray, bias_K: np.ndarray):
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights_KP).double())
        self.register_buffer("bias", torch.tensor(bias_K).double())

    def forward(self, reduced_NP: Tensor) -> Tensor:
        """float32 (N, K), so that equal scores are equal however they are computed."""
        return F.linear(reduced_NP.to(self.weights.dtype), self.weights, self.bias).float()

    def assign(self, reduced_NP: np.ndarray) -> np.ndarray:
        """The cluster of every image, int64 (N,)."""
        clusters_N = np.empty(len(reduced_NP), np.int64)  # in place, as in `set_unusual`
        for start, x_BP in zip(range(0, len(clusters_N), BATCH), batches(reduced_NP), strict=True):
            clusters_N[start : start + BATCH] = self(x_BP).argmax(1).numpy()
        return clusters_N


class ClusterHead(nn.Module):
    """Features to clusters, in the precision of its buffers: float64, unless converted, so that the
    scale of the features and the size of a batch do not matter."""

    mean: Tensor
    components: Tensor
    centroids: Tensor
    group_of_cluster: Tensor
    """int64 (K,); only without `groups`."""
    groups: LinearHead | None
    """Principal components to the scores of G groups."""

    def __init__(
        self,
        mean_D: np.ndarray,
        components_PD: np.ndarray,
        centroids_KP: np.ndarray,
        linear: LinearHead,
        l2_normalize: bool,
        certainty_name: CertaintyName,
        confidence_scale: float = 1.0,
        unusual_distance: float = math.inf,
    ):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean_D).double())
        self.register_buffer("components", torch.tensor(components_PD).double())
        self.register_buffer("centroids", torch.tensor(centroids_KP).double())
        self.register_buffer("group_of_cluster", torch.arange(len(centroids_KP)))
        self.linear, self.groups, self.group_scale = linear, None, 1.0
        self.l2_normalize = l2_normalize
        self.certainty_name: CertaintyName = certainty_name
        self.confidence_scale = confidence_scale
        self.unusual_distance = unusual_distance

    @classmethod
    def load(cls, manifest: Manifest) -> "ClusterHead":
        """From the files of the clustering stage."""
        clustering = manifest.clustering
        return cls(
            manifest.load(artifacts.PCA_MEAN),
            manifest.load(artifacts.PCA_COMPONENTS),
            manifest.load(artifacts.CENTROIDS),
            LinearHead(manifest.load(artifacts.HEAD_WEIGHTS), manifest.load(artifacts.HEAD_BIAS)),
            clustering["config"]["l2_normalize"],
            clustering["certainty"],
            clustering["confidence_scale"],
            clustering["unusual_distance"],
        )

    @property
    def batch(self) -> int:
        """Images at a time: few, so that they and their differences to all centroids stay in the
        processor's cache."""
        return max(1, min(ROWS, 2**19 // self.centroids.numel()))

    def measure(self, features_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The components (B, P), the squared distances (B, K) to the centroids among them, and the
        distance (B,) to the nearest centroid in all dimensions."""
        x = features_BD.to(self.mean.dtype)
        if self.l2_normalize:
            x = F.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny)
        x = x - self.mean
        reduced = x @ self.components.T  # (B, P)
        outside = (x.square().sum(1) - reduced.square().sum(1)).clamp_min(0)
        reduced = reduced.float()  # as it is on disk
        squared = squared_distances(reduced, self.centroids)
        return reduced, squared, (squared.amin(1) + outside).sqrt()

    def forward(self, features_BD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The cluster (B,), the certainty (B,) of the group, the distance (B, K) to every centroid
        among the components, whether the image is unusual (B,), the group (B,), and the
        probability (B, K) of every cluster."""
        reduced, squared, distance = self.measure(features_BD)
        of_clusters = scores = self.linear(reduced)
        cluster = scores.argmax(1)
        group, scale = self.group_of_cluster[cluster], self.confidence_scale
        if self.groups is not None:
            scores, scale = self.groups(reduced), self.group_scale
            group = scores.argmax(1)
        sure = certainty(self.certainty_name, scores, scale)
        return (
            cluster, sure, squared.sqrt().float(), distance > self.unusual_distance, group,
            (of_clusters / self.confidence_scale).softmax(1),
        )  # fmt: skip

    def set_unusual(self, fitted_ND: np.ndarray, usual: float) -> None:
        """Images farther from every cluster than the share `usual` of the fitted ones, float32, are
        unusual from now on. Those at that distance are not, nor is one on a centroid, however
        rounding differs by batch."""
        distance_N = np.empty(len(fitted_ND))  # in place, as small parts could fragment the memory
        starts = range(0, len(fitted_ND), self.batch)
        for start, x in zip(starts, batches(fitted_ND, self.batch), strict=True):
            distance_N[start : start + self.batch] = self.measure(x)[2].numpy()
        limit = float(np.quantile(distance_N, usual)) * (1 + 1e-5)
        self.unusual_distance = max(limit, ROUNDING * float(self.centroids.norm(dim=1).max()))


def batches(rows_ND: np.ndarray, size: int = BATCH) -> Iterator[Tensor]:
    for start in range(0, len(rows_ND), size):
        yield torch.tensor(rows_ND[start : start + size])


def nearest_centroid(centroids_KP: np.ndarray) -> LinearHead:
    centroids_KP = centroids_KP.astype(np.float32)
    squared_K = np.square(centroids_KP, dtype=np.float64).sum(1)
    return LinearHead(2 * centroids_KP, -squared_K.astype(np.float32))


def fit_head(
    x_NP: np.ndarray, clusters: np.ndarray, count: int, weights_N: np.ndarray | None = None
) -> LinearHead:
    """Logistic regression of `clusters` (N,), of which there are `count`, on the rows.

    Args:
        weights_N: how much each row counts; None is 1.

    Rows are scaled together to a mean square length of 1, which fixes what its penalty C = 1 means.
    """
    from sklearn.linear_model import LogisticRegression  # slow, not needed for prediction

    present = np.unique(clusters)
    weights_KP = np.zeros((count, x_NP.shape[1]), np.float32)
    bias_K = np.full(count, NEVER, np.float32)
    bias_K[present] = 0
    if len(present) > 1:
        length = np.sqrt(np.square(x_NP, dtype=np.float64).sum(1).mean())
        # One thread: NumPy's and SciPy's contend otherwise. The warning doubts that clusters of one
        # or two images are classes.
        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = LogisticRegression(max_iter=1000).fit(x_NP / length, clusters, weights_N)
        weights, bias = model.coef_ / length, model.intercept_
        if len(present) == 2:  # scikit-learn keeps only the difference of the two scores
            weights, bias = (np.concatenate([-half, half]) / 2 for half in (weights, bias))
        weights_KP[present], bias_K[present] = weights, bias
    return LinearHead(weights_KP, bias_K)
