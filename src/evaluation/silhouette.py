"""The exact silhouette, fast enough for two hundred thousand samples, or of some samples among all.

Shape letters: N samples, M of them, P coordinates, K clusters.
"""

import numpy as np
import torch

from src.runtime.cli import progress

BLOCK = 1024  # rows and columns of a block of distances
NEAR = 0.02  # of |x|² + |y|²: a squared distance below it is computed in float64


@torch.no_grad()
def silhouette_samples(x_NP: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The exact silhouette of every sample, Euclidean; the same numbers as scikit-learn's.

    With the samples sorted by cluster, every block of distances lies between two clusters, so its
    row and column sums give the mean distances that a silhouette needs. Each pair is computed
    once, in blocks that stay in cache, on every core.

    Args:
        x_NP: float (N, P).
        clusters: int (N,); at least two of them hold samples.

    Returns:
        float64 (N,), from -1 to 1; 0 for a cluster's only member.

    Source: Rousseeuw 1987, "Silhouettes", section 2.
    """
    clusters = np.unique(clusters, return_inverse=True)[1]
    order = np.argsort(clusters, kind="stable")
    own = clusters[order]
    counts_K = np.bincount(own)
    silhouette = _silhouettes(_distance_sums(x_NP[order], counts_K), own, counts_K)
    return silhouette[np.argsort(order)]  # in the order of `x_NP`


@torch.no_grad()
def silhouettes_of(x_NP: np.ndarray, clusters: np.ndarray, rows_M: np.ndarray) -> np.ndarray:
    """The silhouettes of the samples `rows_M` among all N, float64 (M,): those numbers of
    `silhouette_samples`, in M / N of twice its time, and in memory for M rather than N."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    counts_K = np.bincount(clusters)
    order = np.argsort(clusters, kind="stable")
    place_M = np.argsort(order)[rows_M]
    near_first = np.argsort(place_M)  # so that a block of rows shares few blocks with itself
    own_M = clusters[rows_M[near_first]]
    sums_KM = _sums_to_all(x_NP, order, counts_K, rows_M[near_first])
    return _silhouettes(sums_KM, own_M, counts_K)[np.argsort(near_first)]


def _silhouettes(sums_KM: np.ndarray, own_M: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
    """From the sums of distances from each sample to each cluster, which are overwritten, and from
    the cluster of each sample."""
    each = np.arange(len(own_M))
    within = sums_KM[own_M, each] / np.maximum(counts_K[own_M] - 1, 1)
    sums_KM[own_M, each] = np.inf
    sums_KM /= counts_K[:, None]  # in place: K x N is large for many clusters
    nearest = sums_KM.min(axis=0)
    widest = np.maximum(within, nearest)
    silhouette = np.divide(nearest - within, widest, out=np.zeros_like(widest), where=widest > 0)
    silhouette[counts_K[own_M] == 1] = 0
    return silhouette


def _sums_to_all(
    x_NP: np.ndarray, order: np.ndarray, counts_K: np.ndarray, rows_M: np.ndarray
) -> np.ndarray:
    """As `_distance_sums`, float64 (K, M), from the samples `rows_M` only.

    Args:
        order: the rows of `x_NP` by cluster.
    """
    mean_P = x_NP.mean(axis=0, dtype=np.float64)
    scale = max(np.abs(x_NP.max(axis=0) - mean_P).max(), np.abs(x_NP.min(axis=0) - mean_P).max())
    scale = max(float(scale), np.finfo(float).tiny)

    def lifted(rows: np.ndarray, factor: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = torch.from_numpy((x_NP[rows] - mean_P) / scale)
        return x * factor, x.square().sum(dim=1, keepdim=True), torch.ones(len(x), 1, dtype=x.dtype)

    blocks = [rows_M[i : i + BLOCK] for i in range(0, len(rows_M), BLOCK)]
    left, near = [], []
    for rows in blocks:
        x, square, one = lifted(rows, -2)
        left.append((of := torch.cat([x, square, one], dim=1), of.float()))
        near.append(NEAR * square.max().item())
    sums_KM = torch.zeros(len(counts_K), len(rows_M), dtype=torch.float64)
    members = enumerate(np.split(order, np.cumsum(counts_K)[:-1]))
    columns = [(k, of[i : i + BLOCK]) for k, of in members for i in range(0, len(of), BLOCK)]
    for k, rows in progress(columns, desc="silhouette", leave=False, delay=2):
        x, square, one = lifted(rows, 1)
        right = torch.cat([x, one, square], dim=1).T
        right_float32, near_right = right.float(), NEAR * square.max().item()
        for block, ((exact, fast), near_left) in enumerate(zip(left, near, strict=True)):
            squared = fast @ right_float32
            if squared.min().item() <= near_left + near_right:
                squared = (exact @ right).float()
            sums = squared.clamp_min_(0).sqrt_().sum(dim=1)
            sums_KM[k, block * BLOCK : block * BLOCK + len(sums)] += sums
    return sums_KM.numpy()


def _distance_sums(x_NP: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
    """float64 (K, N): the sum of the distances from each sample to all samples of a cluster.

    The rows of `x_NP` are sorted by cluster. A squared distance is a product, |x|² - 2xy + |y|²,
    which cancels between near neighbors: in float32 its error is about 1e-7 of |x|² + |y|². So a
    block in float32 is used only when all its squared distances exceed `NEAR` of that, which keeps
    the silhouettes within 1e-6; any other block is computed again in float64.
    """
    x = torch.from_numpy(np.asarray(x_NP, np.float64))
    x = x - x.mean(dim=0)
    x = x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)  # silhouettes do not depend on scale
    square, one = (x * x).sum(dim=1, keepdim=True), torch.ones(len(x), 1, dtype=x.dtype)
    left = torch.cat([-2 * x, square, one], dim=1)  # left @ right.T is the squared distance
    right = torch.cat([x, one, square], dim=1)
    left_float32, right_float32 = left.float(), right.float()

    ends = np.cumsum(counts_K).tolist()
    starts = [0, *ends[:-1]]
    blocks = [
        (k, slice(first, min(first + BLOCK, ends[k])))
        for k in range(len(ends))
        for first in range(starts[k], ends[k], BLOCK)
    ]
    near = {rows.start: NEAR * square[rows].max().item() for _, rows in blocks}

    def distances(rows: slice, columns: slice) -> torch.Tensor:
        squared = left_float32[rows] @ right_float32[columns].T
        if squared.min().item() <= near[rows.start] + near[columns.start]:
            squared = (left[rows] @ right[columns].T).float()
        return squared.clamp_min_(0).sqrt_()

    sums_KN = torch.zeros(len(ends), len(x), dtype=x.dtype)
    for at, (k, rows) in enumerate(progress(blocks, desc="silhouette", leave=False, delay=2)):
        sums_KN[k, rows] += distances(rows, rows).fill_diagonal_(0).sum(dim=1)
        for other_k, columns in blocks[at + 1 :]:
            distance = distances(rows, columns)
            sums_KN[other_k, rows] += distance.sum(dim=1)
            sums_KN[k, columns] += distance.sum(dim=0)
    return sums_KN.numpy()
