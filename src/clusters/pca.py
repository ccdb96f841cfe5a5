"""Exact PCA of many features or of wide ones, read in blocks.

Shape letters: N images, D features, P principal components.

scikit-learn is exact too, but its covariance solver centers after the product, which costs
digits in float32, wants a float64 copy of everything otherwise, and has no exact solver that is
quick for raw pixels, where D is far above N.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.evaluation.metrics import entropy_rank
from src.runtime.cli import UserError


@dataclass(frozen=True)
class PCA:
    mean_D: np.ndarray
    components_PD: np.ndarray
    """float32; orthonormal rows, or divided by the standard deviation along them (whitened)."""
    variance_ratio_P: np.ndarray
    """Share of the variance along each component, whitened or not."""
    effective_rank: float
    """Of the centered data it was fitted on, see `evaluation.effective_rank`."""

    def transform(self, x_ND: np.ndarray, normalize: bool) -> np.ndarray:
        """float32 (N, P) of rows that `normalize` brings to length 1 first."""
        reduced_NP = np.empty((len(x_ND), len(self.components_PD)), np.float32)
        for rows, x in _blocks(x_ND, normalize):
            reduced_NP[rows] = (x - self.mean_D) @ self.components_PD.T
        return reduced_NP


def fit_pca(x_ND: np.ndarray, components: int, normalize: bool, whiten: bool = False) -> PCA:
    """Exact principal components, computed in float64.

    Args:
        x_ND: (N, D) numbers of any real dtype, memory-mapped or not.
        components: P; fewer come back where the centered data has fewer dimensions.
        normalize: bring every row to length 1 first.
        whiten: scale the components so that every coordinate has variance 1.

    Returns:
        The components, largest variance first, each with its largest entry positive.

    Raises:
        UserError: all rows are equal.

    The eigenvectors of the covariance (D, D), or where D > N of the Gram matrix (N, N), which has
    the same eigenvalues: if G u = v u, then X^T u / sqrt(v) is a component.
    """
    count, dim = x_ND.shape
    mean_D = sum(x.sum(axis=0, dtype=np.float64) for _, x in _blocks(x_ND, normalize)) / count
    if dim <= count:
        scatter = np.zeros((dim, dim))
        for _, x in _blocks(x_ND, normalize):
            centered = x - mean_D
            scatter += centered.T @ centered
        values, vectors = np.linalg.eigh(scatter)
    else:
        centered = np.empty((count, dim))
        for rows, x in _blocks(x_ND, normalize):
            centered[rows] = x - mean_D
        values, vectors = np.linalg.eigh(centered @ centered.T)

    total = values.sum()
    if total <= 1e-12 * count * (mean_D**2).sum():  # nothing beyond float32 rounding
        raise UserError(f"all {count:,} rows are equal: there is nothing to reduce or to cluster")
    rank = int((values > values[-1] * max(count, dim) * np.finfo(float).eps).sum())
    keep = np.arange(len(values))[::-1][: min(components, rank)]
    components_PD = vectors[:, keep].T
    if dim > count:
        components_PD = (components_PD @ centered) / np.sqrt(values[keep])[:, None]
    largest = np.abs(components_PD).argmax(axis=1)
    components_PD *= np.sign(components_PD[np.arange(len(keep)), largest])[:, None]
    if whiten:
        components_PD /= np.sqrt(values[keep] / (count - 1))[:, None]
    return PCA(
        mean_D.astype(np.float32),
        components_PD.astype(np.float32),
        (values[keep] / total).astype(np.float32),
        entropy_rank(values),
    )


def normalized(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.maximum(length, np.finfo(np.float32).tiny)


def _blocks(
    x_ND: np.ndarray, normalize: bool, size: int = 2048
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of rows and those rows in float32, normalized where asked."""
    for start in range(0, len(x_ND), size):
        rows = slice(start, start + size)
        x = np.asarray(x_ND[rows], np.float32)
        yield rows, normalized(x) if normalize else x
