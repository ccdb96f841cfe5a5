"""Exact PCA of many features or of wide ones, read in blocks.

Shape letters: N images, D features, P principal components.

Not scikit-learn's: its covariance solver centers after the product, which loses digits in float32
and otherwise needs a float64 copy of all the data, and it has no fast exact solver for raw pixels,
where D is far above N.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.evaluation.metrics import entropy_rank
from src.evaluation.neighbors import l2_normalized, lengths
from src.runtime.cli import UserError

CACHED, MANY, WIDE = 2**18, 2**22, 2**25
"""Numbers in memory at a time: as many as fit into the processor's cache, enough for a fast product
of all dimensions, and of some dimensions of all rows."""
FEWEST = 32
"""Rows at a time: a product of fewer takes as long, since it reads all components."""
LARGEST = 1e15
"""Of the spread of the rows and its inverse: K-means takes squares in float32."""


@dataclass(frozen=True)
class PCA:
    mean_D: np.ndarray
    components_PD: np.ndarray
    """float32, orthonormal rows."""
    variance_ratio_P: np.ndarray
    """Share of the variance along each component."""
    effective_rank: float
    """Of the centered data it was fitted on, see `src/evaluation/metrics.py`."""
    l2_normalize: bool
    """Scale every row to length 1 first."""

    def transform(self, x_ND: np.ndarray) -> np.ndarray:
        """float32 (N, P), computed in float64 as `ClusterHead` does."""
        reduced_NP = np.empty((len(x_ND), len(self.components_PD)), np.float32)
        components_DP = self.components_PD.T.astype(np.float64)
        mean_P = self.mean_D @ components_DP
        for rows, x in _blocks(x_ND, self.l2_normalize):
            reduced_NP[rows] = x @ components_DP - mean_P
        return reduced_NP


def fit_pca(x_ND: np.ndarray, components: int, l2_normalize: bool) -> PCA:
    """Exact principal components, computed in float64.

    Args:
        x_ND: (N, D) numbers of any real dtype, memory-mapped or not.
        components: P; cut to the dimensions that the centered data spans.
        l2_normalize: scale every row to length 1 first.

    Returns:
        The components, largest variance first, each with its largest entry positive.

    Raises:
        UserError: all rows are equal, or too large or small to be clustered as they are.

    The eigenvectors of the covariance (D, D), or where D > N of the Gram matrix (N, N), which has
    the same eigenvalues: if G u = v u, then X^T u / sqrt(v) is a component.
    """
    count, dim = x_ND.shape
    mean_D = sum(x.sum(axis=0) for _, x in _blocks(x_ND, l2_normalize)) / count
    if dim <= count:
        scatter = np.zeros((dim, dim))
        for _, x in _blocks(x_ND, l2_normalize, MANY):
            centered = x - mean_D
            scatter += centered.T @ centered
        values, vectors = np.linalg.eigh(scatter)
    else:
        gram = np.zeros((count, count))
        for centered in _columns(x_ND, mean_D, l2_normalize):
            gram += centered @ centered.T
        values, vectors = np.linalg.eigh(gram)

    total = values.sum()
    if total <= 1e-12 * count * (mean_D**2).sum():  # no more than float32 rounding
        raise UserError(f"all {count:,} rows are equal: there is nothing to reduce or to cluster")
    spread = float(np.sqrt(total / count))
    if not 1 / LARGEST < spread < LARGEST:
        raise UserError(
            f"the rows spread by {spread:.0e}, beyond what float32 can square: scale the features, "
            "or leave out --no-l2-normalize"
        )
    rank = int((values > values[-1] * max(count, dim) * np.finfo(float).eps).sum())
    keep = np.arange(len(values))[::-1][: min(components, rank)]
    components_PD = vectors[:, keep].T
    if dim > count:
        parts = [components_PD @ centered for centered in _columns(x_ND, mean_D, l2_normalize)]
        components_PD = np.concatenate(parts, axis=1) / np.sqrt(values[keep])[:, None]
    largest = np.abs(components_PD).argmax(axis=1)
    components_PD *= np.sign(components_PD[np.arange(len(keep)), largest])[:, None]
    return PCA(
        mean_D.astype(np.float32),
        components_PD.astype(np.float32),
        (values[keep] / total).astype(np.float32),
        entropy_rank(values),
        l2_normalize,
    )


def _blocks(
    x_ND: np.ndarray, l2_normalize: bool, numbers: int = CACHED
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows, each with those rows in float64."""
    count = max(FEWEST, numbers // x_ND.shape[1])
    for start in range(0, len(x_ND), count):
        rows = slice(start, start + count)
        yield rows, l2_normalized(x_ND[rows]) if l2_normalize else x_ND[rows].astype(np.float64)


def _columns(x_ND: np.ndarray, mean_D: np.ndarray, l2_normalize: bool) -> Iterator[np.ndarray]:
    """Some dimensions at a time of all rows, centered, float64 (N, d): of raw pixels, all of them
    take eight times the memory of the pictures."""
    length_N1 = np.ones((len(x_ND), 1))
    if l2_normalize:
        for rows, x in _blocks(x_ND, l2_normalize=False):
            length_N1[rows] = lengths(x)
    count = max(1, WIDE // len(x_ND))
    for start in range(0, x_ND.shape[1], count):
        columns = slice(start, start + count)
        yield x_ND[:, columns].astype(np.float64) / length_N1 - mean_D[columns]
