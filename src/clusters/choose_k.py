"""How many clusters: the numbers that the flag names, and a scan that picks one of them."""

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
        UserError: `flag` is no number from 1, no range from 2 such as 5:20, and not `auto`.
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


def fewer(count: int, images: int, has_classes: bool) -> int:
    """`count`, the default, or as many clusters as few images allow: one each if there are classes,
    else one for every three, but two."""
    most = images if has_classes else min(images, max(2, images // 3))
    if count <= most:
        return count
    print(f"note: {most} clusters instead of {count}, as there are only {images} images")
    return most


def scan(
    x_NP: np.ndarray,
    counts: list[int],
    seed: int,
    seeds: int = 5,
    restarts: int = 10,
    images: int = 5_000,
) -> dict[str, Any]:
    """Fit K-means with every number of clusters and several seeds, and pick a number.

    The pick has the highest product of silhouette (the clusters are separated) and stability (the
    mean adjusted Rand index between the seeds). Treat it as a hint: the curves often show several
    good numbers.

    Args:
        x_NP: the points to cluster; of more than `images`, evenly spaced rows.
        seed: the first of `seeds`, with one fit of each number of clusters per seed.

    Returns:
        `picked`, the number of `images` used, and the curves `clusters`, `silhouette`,
        `davies_bouldin` (both of the fit with the lowest inertia) and `stability`.
    """
    rows = np.linspace(0, len(x_NP) - 1, min(images, len(x_NP))).astype(int)
    x = x_NP[rows]
    curves: dict[str, list] = {"silhouette": [], "davies_bouldin": [], "stability": []}
    for count in progress(counts, desc="scan"):
        models = [kmeans(x, count, seed + i, restarts) for i in range(seeds)]
        best = min(models, key=lambda model: float(model.inertia_ or 0))
        for name, value in internal_metrics(x, np.asarray(best.labels_)).items():
            curves[name].append(value)
        pairs = itertools.combinations((model.labels_ for model in models), 2)
        curves["stability"].append(float(np.mean([adjusted_rand_score(*p) for p in pairs])))

    separation = np.array([max(s or 0, 0) for s in curves["silhouette"]])
    picked = counts[int((separation * curves["stability"]).argmax())]
    return {"picked": picked, "images": len(x), "clusters": counts, **curves}


def scan_table(result: dict[str, Any]) -> str:
    """The curves of a scan as aligned text, with a mark at the picked number."""
    names = ("clusters", "silhouette", "davies_bouldin", "stability")
    rows = [["clusters", "silhouette", "Davies-Bouldin", "stability", ""]]
    for count, *values in zip(*(result[name] for name in names), strict=True):
        numbers = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([str(count), *numbers, "<- picked" if count == result["picked"] else ""])
    return aligned(rows)
