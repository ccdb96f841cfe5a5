"""How far to trust clusters, without any label: would other images have given the same ones, and
do two views of a picture share a cluster?

The images are split at random into two halves, and each is smoothed and clustered alone. The linear
head of each half assigns all images, `thinned` if they are very many, and the two assignments are
compared by the adjusted Rand index: 1 if they agree, 0 for chance; the mean over a few splits. Raw
pixels go through the same. Principal components are those of all images.

Two random views of each picture, as in SimCLR's training, are assigned too: the share of pictures
whose views share a cluster, corrected for chance. Features that recognize a picture no better than
raw pixels do are not trusted, regardless of how stable their clusters are.

Sources: clustering by stability under resampling, as in Tibshirani & Walther 2005, "Cluster
Validation by Prediction Strength", and Lange et al. 2004, "Stability-Based Validation of Clustering
Solutions"; agreement corrected for chance as in Scott 1955, "Reliability of Content Analysis".

Shape letters: N images, n of them, P principal components, S raw pixels.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from src.clusters.method import Method
from src.evaluation.sampling import thinned
from src.models.preprocessing import raw_pixels
from src.storage.scores import Agreement, TrustScores, Verdict

IMAGES = 4_000
"""The most images that are split into halves."""
BLOCK = 256
"""Images whose raw pixels are taken at once."""
VIEWS_MARGIN = 0.1
"""The agreement of views must exceed that of raw pixels by this much: 1.5 standard errors of the
difference, as both come from 128 images."""
SPLITS = 6
"""Into halves."""
NOTHING = 0.1
"""Halves that agree less have no clusters in common: noise came to -0.01 to 0.02 (docs/log.md)."""
SHARED = {0.8: "nearly all", 0.5: "most", 0.25: "some", NOTHING: "few"}
"""By the agreement of halves: how many clusters two halves of the images have in common."""
NEXT: dict[Verdict, str] = {
    "clear": "look at some pictures of each cluster, then use them",
    "partial": "look at every cluster before using it, and merge or split clusters",
    "no better than pixels": "train longer or on more images, or use features of another model",
    "no structure": "do not use them; try fewer clusters or features of another model",
}
"""What to do, by the verdict."""


class Views(NamedTuple):
    """Two random views of each of n images of the fitted split."""

    clusters_2n: np.ndarray
    """The clusters they are assigned to."""
    pixels_2nS: np.ndarray
    """Their raw pixels."""


def halves_agreement(
    method: Method, x_NP: np.ndarray, clusters: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the adjusted Rand index over `SPLITS`; a half must
    have `clusters` rows."""
    blind, scores = _blind(method), []
    for i in range(SPLITS):
        order = np.random.default_rng([seed, i]).permutation(len(x_NP))[:IMAGES]
        assigned = []
        for rows in np.array_split(order, 2):
            half = {method.fit_on: x_NP[rows]}
            found = blind.cluster(half, clusters, seed, blind.smooth(half, clusters))
            assigned.append(found.head.assign(x_NP))
        scores.append(adjusted_rand_score(*assigned))
    return float(np.mean(scores)), float(np.std(scores, ddof=1))


def views_agreement(clusters_2n: np.ndarray) -> float:
    """Scott's pi, (p - c) / (1 - c), of two views: p is the share of images whose views share a
    cluster, and c = sum_k q_k^2 is what chance gives, with q_k the share of all views in cluster k.
    0 if all views are in one cluster."""
    first, second = clusters_2n
    chance = np.square(np.bincount(np.append(first, second)) / (2 * len(first))).sum()
    return float((np.mean(first == second) - chance) / (1 - chance)) if chance < 1 else 0.0


def pixels_agreement(
    method: Method,
    images_NCSS: np.ndarray,
    clusters: int,
    seed: int,
    views_2nS: np.ndarray | None,
) -> Agreement:
    """Of raw pixels: the agreement of halves, and that of views if there are any."""
    pca, reduced = method.reduce({method.fit_on: small_pixels(images_NCSS)})
    (halves, spread), views = halves_agreement(method, reduced[method.fit_on], clusters, seed), None
    if views_2nS is not None:
        found = _blind(method).cluster(reduced, clusters, seed, method.smooth(reduced, clusters))
        views = views_agreement(np.stack([found.head.assign(pca.transform(x)) for x in views_2nS]))
    return {"halves": halves, "spread": spread, "views": views}


def _blind(method: Method) -> Method:
    """Without labels, and with few restarts."""
    return replace(method, labels={}, restarts=min(5, method.restarts))


def clear_from(images: int) -> float:
    """The agreement of halves from which accuracy was high in every measurement (docs/log.md): 0.53
    for 400 images, 0.65 from 2,000 on. Halves of fewer images agree less, whatever the features."""
    return float(np.clip(0.53 + 0.12 * np.log(images / 400) / np.log(5), 0.45, 0.65))


def trust_report(
    method: Method,
    x_NP: np.ndarray,
    images_NCSS: np.ndarray | None,
    clusters: int,
    seed: int,
    views: Views | None = None,
) -> TrustScores | None:
    """The part `trust` of metrics.json; None for one cluster or too few images for halves.

    Args:
        x_NP: the principal components of the fitted split.
        images_NCSS: its pictures, uint8; None where they are missing.
        views: None where the extraction wrote none.
    """
    if not 1 < clusters <= min(len(x_NP), IMAGES) // 2:
        return None
    x_NP = thinned(x_NP)
    (halves, spread), raw = halves_agreement(method, x_NP, clusters, seed), None
    if images_NCSS is not None:
        raw = pixels_agreement(method, images_NCSS, clusters, seed, views and views.pixels_2nS)
    own = views and views_agreement(views.clusters_2n)
    report: Agreement = {"halves": halves, "spread": spread, "views": own}
    return {"verdict": verdict_of(report, raw, clear_from(len(x_NP))), **report, "pixels": raw}


def verdict_of(own: Agreement, raw: Agreement | None, clear: float) -> Verdict:
    """From the agreement of the features, that of raw pixels if there are any, and the agreement of
    halves from which on clusters are clear."""
    if own["halves"] < NOTHING:
        return "no structure"
    is_clear = own["halves"] >= clear
    if raw:
        # One standard error of the difference of two means over the splits.
        margin = np.hypot(own["spread"], raw["spread"]) / np.sqrt(SPLITS)
        views, pixels = own["views"], raw["views"]
        if (not is_clear and own["halves"] <= raw["halves"] + margin) or (
            views is not None and pixels is not None and views <= pixels + VIEWS_MARGIN
        ):
            return "no better than pixels"
    return "clear" if is_clear else "partial"


def small_pixels(images_NCSS: np.ndarray) -> np.ndarray:
    """The raw pixels, float32 (n, S), of at most `IMAGES` evenly spaced images."""
    rows = np.linspace(0, len(images_NCSS) - 1, min(IMAGES, len(images_NCSS))).astype(int)
    parts = [images_NCSS[rows[i : i + BLOCK]] for i in range(0, len(rows), BLOCK)]
    return np.concatenate([raw_pixels(torch.tensor(part)).numpy() for part in parts])


def describe(trust: TrustScores) -> str:
    """The verdict in one line, with what it means, what to do and the numbers it comes from."""
    raw = trust["pixels"]
    measured = [("ARI between halves", trust["halves"], raw and raw["halves"])]
    if trust["views"] is not None:
        measured.append(("Scott's pi between views", trust["views"], raw and raw["views"]))
    evidence = "; ".join(
        f"{name} {value:.2f}" + (f", raw pixels {pixels:.2f}" if pixels is not None else "")
        for name, value, pixels in measured
    )
    verdict = trust["verdict"]
    shared = next((text for least, text in SHARED.items() if trust["halves"] >= least), "no")
    return (
        f"{verdict}: two halves of the images have {shared} clusters in common ({evidence}; 1 is "
        f"identical, 0 is chance): {NEXT[verdict]}"
    )
