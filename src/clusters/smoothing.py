"""Rows averaged with their nearest neighbors, so that the clusters use what neighbors know.

    u_i = x_i / |x_i|;  `hops` times:  u_i <- v_i / |v_i|  with  v_i = u_i + mean of u_j, j in N(i)

N(i) are the rows nearest to u_i by cosine, without the row itself, found anew for every hop. Groups
of mutual neighbors contract, and the space between them empties. No label is used.

Sources: without labels this is query expansion in retrieval (Radenović et al. 2018, "Fine-tuning
CNN Image Retrieval with No Human Annotation") and a simplified graph convolution (Wu et al. 2019,
"Simplifying Graph Convolutional Networks"), as Zhang et al. 2019, "Attributed Graph Clustering via
Adaptive Graph Convolution", use it in front of a clustering.
"""

import numpy as np
import torch

from src.evaluation.neighbors import l2_normalized, nearest, unit


def smooth(x_NP: np.ndarray, hops: int, neighbors: int) -> np.ndarray:
    """Principal components (N, P) to smoothed rows of length 1, float32 (N, P).

    Args:
        neighbors: cut to N - 1.
    """
    rows_NP = l2_normalized(x_NP).astype(np.float32)
    for _ in range(hops):
        unit_NP = unit(rows_NP)
        _, near_Nk = nearest(unit_NP, unit_NP, neighbors, own_M=torch.arange(len(rows_NP)))
        total_NP = np.zeros_like(rows_NP)
        for near_N in near_Nk.numpy().T:  # one by one, for little memory
            total_NP += rows_NP[near_N]
        mean_NP = total_NP / max(1, near_Nk.shape[1])
        rows_NP = l2_normalized(rows_NP + mean_NP).astype(np.float32)
    return rows_NP
