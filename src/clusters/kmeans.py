"""K-means with the settings that every stage shares."""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning


def kmeans(x_NP: np.ndarray, clusters: int, seed: int, restarts: int) -> KMeans:
    """K-means++ on every core, the best of `restarts` starts.

    Where `x_NP` has fewer distinct points than `clusters`, some clusters stay empty. Seeds above
    2**32 - 1, the highest that scikit-learn takes, start over at 0.
    """
    model = KMeans(clusters, n_init=restarts, random_state=seed % 2**32)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # about the empty clusters
        return model.fit(np.asarray(x_NP, np.float32))
