"""How many clusters: the numbers that the flag names, and a scan that picks one of them."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score

from src.clusters.kmeans import kmeans
from src.evaluation.metrics import internal_metrics
from src.evaluation.tables import aligned
from src.runtime.cli import UserError, progress
from src.storage.scores import ScanScores

AUTO = range(2, 21)
IMAGES, RESTARTS = 5_000, 10
"""Of a scan."""
DEFAULT = 10


def candidates(flag: str | None, classes: int) -> range:
    """The numbers of clusters that `flag` names; None is one per class, or 10 without classes.

    Raises:
        UserError: `flag` is not a number from 1, a range from 2 such as 5:20, or `auto`.
    """
    if flag is None:
        flag = str(classes if classes > 1 else DEFAULT)
    if flag == "auto":
        return AUTO
    first, colon, last = flag.partition(":")
    if first.isdecimal() and (last.isdecimal() or not colon):
        counts = range(int(first), int(last or first) + 1)
        if counts and counts[0] >= (2 if colon else 1):
            return counts
    raise UserError(
        f"--clusters {flag}: expected a number from 1, a range from 2 such as 5:20, or auto"
    )


def fewer(count: int, images: int, has_classes: bool) -> int:
    """`count`, the default, capped for small datasets: at N images with classes, otherwise at
    max(2, N // 3)."""
    most = images if has_classes else min(images, max(2, images // 3))
    if count <= most:
        return count
    print(f"note: using {most} clusters instead of {count}, as there are only {images} images")
    return most


def scan(x_NP: np.ndarray, counts: Sequence[int], seed: int) -> ScanScores:
    """Fit K-means with every number of clusters, and pick a number.

    The score is silhouette (how separated the clusters are) times stability (how well the clusters
    of two halves of the points agree). It is 0 if a half has fewer points than clusters. The number
    with the highest score is picked. Treat the pick as a hint, and look at the runners-up.

    Args:
        x_NP: the points to cluster; of more than `IMAGES`, evenly spaced ones: `IMAGES`, or as many
            as clusters if that is more.

    Returns:
        The curves, the picked number and, as `runners_up`, the next two by score.
    """
    most = min(max(IMAGES, max(counts)), len(x_NP))
    rows = np.linspace(0, len(x_NP) - 1, most).astype(int)
    x = np.asarray(x_NP[rows], np.float32)
    scores, stable = [], []
    for count in progress(counts, desc="scan"):
        found = np.asarray(kmeans(x, count, seed, RESTARTS).labels_)
        scores.append(internal_metrics(x, found))
        stable.append(stability(x, count, seed))
    silhouette = [one["silhouette"] for one in scores]
    score = np.array([max(s or 0, 0) for s in silhouette]) * stable
    picked, *others = (counts[i] for i in np.argsort(-score, kind="stable"))
    return {
        "picked": picked,
        "runners_up": others[:2],
        "clusters": [*counts],
        "silhouette": silhouette,
        "davies_bouldin": [one["davies_bouldin"] for one in scores],
        "stability": stable,
    }


def stability(x_NP: np.ndarray, count: int, seed: int) -> float:
    """Mean adjusted Rand index of all points as K-means of either half assigns them, for two splits
    into halves; at least 0."""
    if count > len(x_NP) // 2:
        return 0.0
    scores = []
    for i in range(2):
        halves = np.array_split(np.random.default_rng([seed, i]).permutation(len(x_NP)), 2)
        models = [kmeans(x_NP[half], count, seed, RESTARTS) for half in halves]
        scores.append(adjusted_rand_score(*(model.predict(x_NP) for model in models)))
    return max(0.0, float(np.mean(scores)))


def scan_table(result: ScanScores) -> str:
    """What the pick of a scan comes from as aligned text, with a mark at the picked number."""
    rows = [["clusters", "separation", "stability", "score", ""]]
    curves = zip(result["clusters"], result["silhouette"], result["stability"], strict=True)
    for count, silhouette, stable in curves:
        separation = max(silhouette or 0, 0)
        numbers = [f"{value:.3f}" for value in (separation, stable, separation * stable)]
        note = "<- picked" if count == result["picked"] else ""
        rows.append([str(count), *numbers, "next" if count in result["runners_up"] else note])
    return (
        aligned(rows)
        + "\nseparation: silhouette of the rows that are clustered, which are smoothed unless "
        "--no-smooth; score: separation x stability, higher is better"
    )
