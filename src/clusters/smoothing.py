"""Rows smoothed over their nearest neighbors before K-means: images that lie close move closer.

    x_i <- unit(x_i + mean of the neighbors of x_i), for every row at once, `hops` times

Features of one class form an elongated cloud rather than a ball; averaging over neighbors contracts
the cloud along itself, and K-means, which looks for balls, then finds it. No label is used. The step
is alpha-query expansion with equal weights (Radenović et al. 2018, "Fine-tuning CNN Image Retrieval
with No Human Annotation", section 3.4) and one layer of simplified graph convolution (Wu et al. 2019,
section 2.2); Zhang et al. 2019, "Attributed Graph Clustering via Adaptive Graph Convolution", cluster
on it.

Shape letters: N images, P principal components.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from src.clusters.pca import normalized


def smooth(
    reduced: dict[str, np.ndarray], fit_on: str, neighbors: int, hops: int
) -> dict[str, np.ndarray]:
    """Every split's rows at length 1, smoothed over their neighbors in the split `fit_on`.

    The neighbors are the nearest by cosine similarity, found anew at each hop among rows that were
    smoothed as often. A row of `fit_on` is no neighbor of its own. What happens to a row of another
    split depends on itself and on `fit_on` alone.

    Args:
        reduced: float32 (N, P) of each split.
        fit_on: the split whose rows are the neighbors; it has at least two.
        neighbors: how many; at most all other rows of `fit_on`.
        hops: how often; 0 only scales the rows to length 1.
    """
    rows = {split: normalized(x_NP) for split, x_NP in reduced.items()}
    for _ in range(hops):
        bank = rows[fit_on]
        count = min(neighbors, len(bank) - 1)
        index = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(bank)
        nearest = {
            split: index.kneighbors(None if split == fit_on else x, return_distance=False)
            for split, x in rows.items()
        }
        rows = {split: _averaged(x, bank, nearest[split]) for split, x in rows.items()}
    return rows


def _averaged(x_NP: np.ndarray, bank: np.ndarray, nearest: np.ndarray, block: int = 8192) -> np.ndarray:
    means = [
        bank[nearest[i : i + block]].mean(axis=1, dtype=np.float32)
        for i in range(0, len(nearest), block)
    ]
    return normalized(x_NP + np.concatenate(means))
