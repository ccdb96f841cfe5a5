"""How far to trust clusters, without any label: would other images have given the same ones, and
do two views of a picture land in one?

The images are split at random into two halves, and each is smoothed and clustered alone. Either
half's linear head assigns all images, and the two assignments are compared by the adjusted Rand
index, 1 if they agree and 0 as by chance; the mean over a few splits. Raw pixels go through the
same. Principal components are those of all images.

Two random views of a picture, as SimCLR trains on, are assigned too: the share of pictures whose
views share a cluster, corrected for chance. Features that recognize a picture no better than raw
pixels do are not trusted, however stable their clusters are.

Sources: clustering by stability under resampling, as in Tibshirani & Walther 2005, "Cluster
Validation by Prediction Strength", and Lange et al. 2004, "Stability-Based Validation of Clustering
Solutions"; agreement corrected for chance as in Scott 1955, "Reliability of Content Analysis".

Shape letters: N images, n of them, P principal components, S pixels.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from src.clusters.head import LinearHead
from src.clusters.protocol import Protocol
from src.models.preprocessing import pixels
from src.training.batches import paired_views
from src.training.views import ViewSettings

IMAGES = 4_000
"""At most so many are split into halves."""
PIXELS = 24
"""Side to which pictures are reduced for the comparison with raw pixels."""
VIEWS_MARGIN = 0.1
"""By so much must the agreement of views exceed that of raw pixels: 1.5 standard errors of the
difference, as both come from 128 images."""


class Views(NamedTuple):
    """Two views of each of n images of the fitted split."""

    x_2nP: np.ndarray
    """Their principal components."""
    head: LinearHead
    """It assigns them."""
    settings: ViewSettings
    """How they were drawn."""


def halves_agreement(
    protocol: Protocol, x_NP: np.ndarray, clusters: int, seed: int, splits: int = 6
) -> float:
    """The mean adjusted Rand index of `splits` splits; a half must have `clusters` rows."""
    blind, scores = _blind(protocol), []
    for i in range(splits):
        order = np.random.default_rng([seed, i]).permutation(len(x_NP))[:IMAGES]
        assigned = []
        for rows in np.array_split(order, 2):
            half = {protocol.fit_on: x_NP[rows]}
            found = blind.cluster(half, clusters, seed, blind.smooth(half))
            assigned.append(found.head.assign(x_NP))
        scores.append(adjusted_rand_score(*assigned))
    return float(np.mean(scores))


def views_agreement(head: LinearHead, x_2nP: np.ndarray) -> float:
    """Scott's pi, (p - c) / (1 - c), of two views: p is the share of images whose views are in one
    cluster, and c = sum_k q_k^2 what chance gives, with q_k the share of all views in cluster k.
    0 if all views are in one cluster."""
    first, second = (head.assign(x_nP) for x_nP in x_2nP)
    chance = np.square(np.bincount(np.append(first, second)) / (2 * len(first))).sum()
    return float((np.mean(first == second) - chance) / (1 - chance)) if chance < 1 else 0.0


def pixels_agreement(
    protocol: Protocol,
    images_NCSS: np.ndarray,
    clusters: int,
    seed: int,
    settings: ViewSettings | None,
) -> dict[str, Any]:
    """Of raw pixels: the agreement of halves, and of the views that `settings` drew."""
    pca, reduced = protocol.reduce({protocol.fit_on: small_pixels(images_NCSS)})
    halves, views = halves_agreement(protocol, reduced[protocol.fit_on], clusters, seed), None
    if settings:
        found = _blind(protocol).cluster(reduced, clusters, seed, protocol.smooth(reduced))
        pairs = paired_views(images_NCSS, settings, torch.device("cpu"))
        parts = [small_pixels(pixels(x).numpy()) for x in pairs]
        x_2nS = np.concatenate([x.reshape(2, -1, x.shape[1]) for x in parts], axis=1)
        x_2nP = np.stack([pca.transform(x) for x in x_2nS])
        views = views_agreement(found.head, x_2nP)
    return {"halves": halves, "views": views}


def _blind(protocol: Protocol) -> Protocol:
    """Without labels, and with few restarts."""
    return replace(protocol, labels={}, restarts=min(5, protocol.restarts))


def clear_from(images: int) -> float:
    """The agreement of halves from which accuracy was high in every measurement (docs/log.md): 0.53
    for 400 images, 0.65 from 2,000 on. Halves of fewer images agree less, whatever the features."""
    return float(np.clip(0.53 + 0.12 * np.log(images / 400) / np.log(5), 0.45, 0.65))


def trust_report(
    protocol: Protocol,
    x_NP: np.ndarray,
    images_NCSS: np.ndarray | None,
    clusters: int,
    seed: int,
    views: Views | None = None,
) -> dict[str, Any] | None:
    """The part `trust` of metrics.json; None for one cluster or too few images for halves.

    Args:
        x_NP: the principal components of the fitted split.
        images_NCSS: its pictures, uint8; None where they are missing.
        views: None where the extraction wrote none.
    """
    if not 1 < clusters <= min(len(x_NP), IMAGES) // 2:
        return None
    halves, raw = halves_agreement(protocol, x_NP, clusters, seed), None
    if images_NCSS is not None:
        raw = pixels_agreement(protocol, images_NCSS, clusters, seed, views and views.settings)
    own = views and views_agreement(views.head, views.x_2nP)
    verdict = "clear" if halves >= clear_from(len(x_NP)) else "partial"
    if raw and (
        (verdict == "partial" and halves <= raw["halves"])
        or (own is not None and own <= raw["views"] + VIEWS_MARGIN)
    ):
        verdict = "no better than pixels"
    return {"verdict": verdict, "halves": halves, "views": own, "pixels": raw}


def small_pixels(images_NCSS: np.ndarray, block: int = 256) -> np.ndarray:
    """float32 (n, 3 * 24 * 24) of at most `IMAGES` evenly spaced images: the means of patches."""
    rows = np.linspace(0, len(images_NCSS) - 1, min(IMAGES, len(images_NCSS))).astype(int)
    parts = []
    for start in range(0, len(rows), block):
        images = torch.tensor(images_NCSS[rows[start : start + block]]).float()
        parts.append(F.adaptive_avg_pool2d(images, PIXELS).flatten(1).numpy())
    return np.concatenate(parts)


def describe(trust: dict[str, Any]) -> str:
    """One line in words."""
    meaning = {
        "clear": "clear: other images of this kind would give nearly the same clusters",
        "partial": "partial: some of the clusters would differ with other images",
        "no better than pixels": "no better than pixels: look at every cluster before using it",
    }
    raw, agreements = trust["pixels"], []
    for key, of in (("halves", "halves"), ("views", "two views of a picture")):
        if trust.get(key) is not None:
            compared = f", raw pixels {raw[key]:.2f}" if raw else ""
            agreements.append(f"of {of} {trust[key]:.2f}{compared}")
    return (
        f"trust: {meaning[trust['verdict']]} (agreement {'; '.join(agreements)}; 1 is the same, "
        "0 is chance)"
    )
