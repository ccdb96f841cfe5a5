"""How many clusters: what the flag asks for, and a scan that picks a number."""

import itertools
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from src.clusters.kmeans import kmeans
from src.evaluation.metrics import internal_metrics
from src.evaluation.tables import aligned
from src.runtime.cli import UserError, progress

AUTO = range(2, 21)
DEFAULT = 10


def candidates(flag: str | None, classes: int) -> list[int]:
    """The numbers of clusters that `flag` names; None is one per class, or 10 without classes.

    Raises:
        UserError: it is neither a number from 1, nor a range from 2 such as 5:20, nor `auto`.
    """
    if flag is None:
        return [classes if classes > 1 else DEFAULT]
    if flag == "auto":
        return list(AUTO)
    first, colon, last = flag.partition(":")
    if first.isdecimal() and (last.isdecimal() or not colon):
        counts = list(range(int(first), int(last or first) + 1))
        if counts and counts[0] >= (2 if colon else 1):
            return counts
    raise UserError(
        f"--clusters {flag}: expected a number from 1, a range from 2 such as 5:20, or auto"
    )


def scan(
    x_NP: np.ndarray,
    counts: list[int],
    seed: int,
    runs: int = 5,
    restarts: int = 10,
    images: int = 5_000,
) -> dict[str, Any]:
    """K-means with every number of clusters, each `runs` times, and the number it picks.

    The pick has the highest product of silhouette (clusters stand apart) and stability (they come
    back: the mean adjusted Rand index between runs of different seeds). It is a lead, not a
    truth: the curves beside it often have several good numbers.

    Args:
        x_NP: what to cluster; evenly spaced rows of it where there are more than `images`.
        counts: the numbers of clusters.
        seed: of the first run.
        restarts: K-means starts of each run.

    Returns:
        `picked`, `images` looked at, and the curves `clusters`, `silhouette`, `davies_bouldin`
        (both of the run with the least inertia) and `stability`.
    """
    rows = np.linspace(0, len(x_NP) - 1, min(images, len(x_NP))).astype(int)
    x = x_NP[rows]
    curves: dict[str, list] = {"silhouette": [], "davies_bouldin": [], "stability": []}
    for count in progress(counts, desc="scan"):
        models = [kmeans(x, count, seed + run, restarts) for run in range(runs)]
        best = min(models, key=lambda model: float(model.inertia_ or 0))
        for name, value in internal_metrics(x, np.asarray(best.labels_)).items():
            curves[name].append(value)
        pairs = itertools.combinations((model.labels_ for model in models), 2)
        curves["stability"].append(float(np.mean([adjusted_rand_score(*p) for p in pairs])))

    apart = np.array([max(s or 0, 0) for s in curves["silhouette"]])
    picked = counts[int((apart * curves["stability"]).argmax())]
    return {"picked": picked, "images": len(x), "clusters": counts, **curves}


def scan_table(scanned: dict[str, Any]) -> str:
    """The curves as aligned text, and the number that was picked."""
    names = ("clusters", "silhouette", "davies_bouldin", "stability")
    rows = [["clusters", "silhouette", "Davies-Bouldin", "stability", ""]]
    for count, *scores in zip(*(scanned[name] for name in names), strict=True):
        numbers = ["-" if score is None else f"{score:.3f}" for score in scores]
        rows.append([str(count), *numbers, "<- picked" if count == scanned["picked"] else ""])
    return aligned(rows)
