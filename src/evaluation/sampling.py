"""Exact where it is cheap, from a fixed random sample where it is not.

What compares rows with each other takes time by the square of their number: 200,000 rows take
minutes, a million take hours. Beyond `EXACT` rows, K-means, smoothing and the head see a sample of
`FITTED`, and the head assigns every image. Scores are means over a sample of `SCORED` images, which
come with their standard error.

Shape letters: N rows, n of them.
"""

import numpy as np

EXACT = 200_000
"""Rows."""
FITTED = 100_000
"""Images that stand for more than `EXACT`; docs/log.md has what their clusters lose."""
SCORED = 5_000
"""Images of an estimated score: the standard error of an accuracy is then at most 0.007."""
PRODUCTS = EXACT**2 * 100
"""Multiplications of an exact comparison of all queries with all rows: those of `EXACT` rows of 100
principal components."""


def are_many(count: int) -> bool:
    """Whether so many rows are more than `EXACT`."""
    return count > EXACT


def random_rows(count: int, most: int, seed: int) -> np.ndarray:
    """All of `count` rows, or a random sample of `most`; int (n,), ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def fitted_rows(count: int) -> np.ndarray:
    """Those that K-means, smoothing and the head see, int (n,): all, or of `are_many` a sample."""
    return random_rows(count, FITTED if are_many(count) else count, seed=0)


def thinned(x_ND: np.ndarray) -> np.ndarray:
    """The `fitted_rows`, without a copy where those are all."""
    return x_ND[fitted_rows(len(x_ND))] if are_many(len(x_ND)) else x_ND


def scored_rows(count: int) -> np.ndarray:
    """Those that a score is computed for, int (n,): all, or of `are_many` a sample of `SCORED`."""
    return random_rows(count, SCORED if are_many(count) else count, seed=1)


def standard_error(values_n: np.ndarray, count: int) -> float:
    """Of the mean of a sample, drawn without replacement, as an estimate of the mean of `count`.

    Source: Cochran 1977, "Sampling Techniques", theorem 2.2.
    """
    values = np.asarray(values_n, np.float64)
    return float(np.sqrt(values.var(ddof=1) / len(values) * (1 - len(values) / count)))
