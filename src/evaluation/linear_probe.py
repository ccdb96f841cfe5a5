"""Linear probe: accuracy of a linear classifier trained on frozen features.

    mean cross entropy of softmax(W x + b) over the fitted images + |W|^2 / (2 C N)

C is chosen by cross-validation on the fitted images over a logarithmic grid, and W, b are then
fitted to all of them with L-BFGS. It measures what the features contain, not what was found in
them without labels.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
appendix B.6 (in version 3 B.8); Kornblith et al. 2019, "Do Better ImageNet Models Transfer
Better?". They choose among 45 strengths on one held-out part; here 11 are tried on every third.

Shape letters: N images, D features.
"""

import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from src.runtime.cli import progress
from src.storage.scores import ProbeFit

STRENGTHS = np.geomspace(1e-2, 1e3, 11)
"""C, for features whose mean square length about their mean is 1."""
FOLDS = 3


def linear_probe(
    labels_N: np.ndarray, x_ND: np.ndarray, test: tuple[np.ndarray, np.ndarray] | None, seed: int
) -> ProbeFit | None:
    """Accuracy of a logistic regression on features (N, D).

    Args:
        test: labels and features to score on; without them the accuracy is that of the
            cross-validation which chose C, the best of its grid.

    Returns:
        `accuracy`, `C`, and `folds`, of the cross-validation; None where fewer than two
        classes have two images.
    """
    folds = min(FOLDS, int(np.sort(np.bincount(labels_N, minlength=2))[-2]))
    if folds < 2:
        return None
    mean_D = x_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = x_ND - mean_D
    length = np.float32(np.sqrt(np.square(x, dtype=np.float64).sum(axis=1).mean()) or 1)
    x /= length
    # One thread: else NumPy's and SciPy's wait for each other, which takes 3 to 7 times as long.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        # Of classes with fewer images than folds, and of weak penalties that take many steps.
        warnings.simplefilter("ignore", UserWarning)
        accuracies = cross_validate(x, labels_N, folds, seed)
        best = int(accuracies.argmax())  # of equal ones the strongest penalty
        accuracy, strength = float(accuracies[best]), float(STRENGTHS[best])
        if test is not None:
            model = _regression(strength).fit(x, labels_N)
            accuracy = float(model.score((test[1] - mean_D) / length, test[0]))
    return {"accuracy": accuracy, "C": strength, "folds": folds}


def cross_validate(x_ND: np.ndarray, labels_N: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The accuracy of each of the `STRENGTHS` on images that it was not fitted to."""
    from sklearn.model_selection import StratifiedKFold

    right = np.zeros(len(STRENGTHS))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    parts = list(splitter.split(x_ND, labels_N))
    for fitted, held_out in progress(parts, desc="linear probe", unit="fold"):
        x, model = x_ND[fitted], _regression(STRENGTHS[0])
        for i, strength in enumerate(STRENGTHS):
            model.set_params(C=strength).fit(x, labels_N[fitted])
            right[i] += (model.predict(x_ND[held_out]) == labels_N[held_out]).sum()
    return right / len(x_ND)


def _regression(strength: float) -> Any:
    """Warm start: each fit continues from the previous C."""
    from sklearn.linear_model import LogisticRegression  # takes a second

    return LogisticRegression(C=strength, tol=1e-5, max_iter=500, warm_start=True)
