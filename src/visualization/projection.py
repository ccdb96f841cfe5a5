"""A 2-D map of the reduced features by PCA, t-SNE or UMAP."""

from importlib.util import find_spec
from typing import Any

import numpy as np

from src.evaluation.neighbors import lifted, nearest
from src.runtime.cli import UserError, progress
from src.runtime.flag_choices import ProjectionName

TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

FIT_POINTS = 20_000
"""t-SNE and UMAP arrange at most this many points; the others are placed among their neighbors."""
INPUTS = 50
"""Principal components given to t-SNE and UMAP; van der Maaten & Hinton 2008 take 30."""


def can_arrange(x_NP: np.ndarray) -> bool:
    """Whether there are enough points and dimensions for t-SNE and UMAP."""
    return len(x_NP) >= 10 and x_NP.shape[1] >= 2


def project(x_NP: np.ndarray, method: ProjectionName, seed: int) -> np.ndarray:
    """A map of the points, float32 (N, 2), centered on their median.

    `pca` takes the first two components as they are. t-SNE and UMAP arrange a random sample of
    `FIT_POINTS`; every other point stands at the median of its five nearest neighbors in the
    sample. Raises UserError if `method` is `umap` and umap-learn is not installed.
    """
    if method == "pca":
        xy = np.zeros((len(x_NP), 2))
        xy[:, : x_NP.shape[1]] = x_NP[:, :2]
    else:
        x = np.asarray(x_NP[:, :INPUTS], np.float32)
        rng = np.random.default_rng(seed)
        fitted = np.sort(rng.permutation(len(x))[:FIT_POINTS])
        arrange = _tsne if method == "tsne" else _umap
        xy = np.empty((len(x), 2))
        xy[fitted] = arrange(x[fitted], seed)
        others = np.setdiff1d(np.arange(len(x)), fitted)
        if len(others):
            _, near = nearest(*lifted(x[fitted], x[others]), 5)
            xy[others] = np.median(xy[fitted][near], axis=1)
    return (xy - np.median(xy, axis=0)).astype(np.float32)


def _tsne(x: np.ndarray, seed: int) -> np.ndarray:
    """openTSNE (Polička et al. 2024) with FFT-accelerated gradients (Linderman et al. 2019). If it
    is not installed, scikit-learn's, about three times as slow."""
    perplexity: Any = min(30, (len(x) - 1) / 3)
    if find_spec("openTSNE") is None:
        from sklearn.manifold import TSNE

        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    from openTSNE import TSNE

    bar = progress(total=500, desc="t-SNE")

    def advance(*_: object) -> None:  # a true result would stop the optimization
        bar.update(50)

    model = TSNE(
        perplexity=perplexity,
        n_iter=250,  # after 250 of early exaggeration; 250 more change little and double the time
        n_jobs=-1,
        random_state=seed,
        callbacks=advance,
        callbacks_every_iters=50,
        # The approximate index fails on tiny sets, where exact neighbors are cheap.
        neighbors="exact" if len(x) < 2000 else "auto",
    )
    embedding = np.asarray(model.fit(x))
    bar.close()
    return embedding


def _umap(x: np.ndarray, seed: int) -> np.ndarray:
    if find_spec("umap") is None:
        raise UserError("--projection umap needs one more package: pip install umap-learn")
    from umap import UMAP  # type: ignore[import-not-found]

    return UMAP(min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)  # type: ignore[return-value]
