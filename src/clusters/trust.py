"""How far to trust clusters, without any label: would other images have given the same ones?

The images are split at random into two halves, and each is smoothed and clustered alone. Either
half's linear head assigns all images, and the two assignments are compared by the adjusted Rand
index, 1 if they agree and 0 as by chance; the mean over a few splits. Raw pixels go through the
same. Principal components are those of all images.

Source: clustering by stability under resampling, as in Tibshirani & Walther 2005, "Cluster
Validation by Prediction Strength", and Lange et al. 2004, "Stability-Based Validation of Clustering
Solutions".

Shape letters: N images, P principal components, S pixels.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from src.clusters.protocol import Protocol

IMAGES = 4_000
"""At most so many are split into halves."""
PIXELS = 24
"""Side to which pictures are reduced for the comparison with raw pixels."""


def halves_agreement(
    protocol: Protocol, x_NP: np.ndarray, clusters: int, seed: int, splits: int = 6
) -> float:
    """The mean adjusted Rand index of `splits` splits; a half must have `clusters` rows."""
    blind = replace(protocol, labels={}, restarts=min(5, protocol.restarts))
    scores = []
    for i in range(splits):
        order = np.random.default_rng([seed, i]).permutation(len(x_NP))[:IMAGES]
        assigned = []
        for rows in np.array_split(order, 2):
            half = {protocol.fit_on: x_NP[rows]}
            found = blind.cluster(half, clusters, seed, blind.smooth(half))
            assigned.append(found.head.assign(x_NP))
        scores.append(adjusted_rand_score(*assigned))
    return float(np.mean(scores))


def clear_from(images: int) -> float:
    """The agreement of halves from which accuracy was high in every measurement (LOG.md): 0.53 for
    400 images, 0.65 from 2,000 on. Halves of fewer images agree less, whatever the features."""
    return float(np.clip(0.53 + 0.12 * np.log(images / 400) / np.log(5), 0.45, 0.65))


def trust_report(
    protocol: Protocol,
    x_NP: np.ndarray,
    images_NCSS: np.ndarray | None,
    clusters: int,
    seed: int,
) -> dict[str, Any] | None:
    """The part `trust` of metrics.json; None for one cluster or too few images for halves.

    Args:
        x_NP: the principal components of the fitted split.
        images_NCSS: its pictures, uint8; None where they are missing.
    """
    if not 1 < clusters <= len(x_NP) // 2:
        return None
    halves, pixels = halves_agreement(protocol, x_NP, clusters, seed), None
    if images_NCSS is not None:
        _, reduced = protocol.reduce({protocol.fit_on: small_pixels(images_NCSS)})
        pixels = halves_agreement(protocol, reduced[protocol.fit_on], clusters, seed)
    verdict = "clear" if halves >= clear_from(len(x_NP)) else "partial"
    if verdict == "partial" and pixels is not None and halves <= pixels:
        verdict = "no better than pixels"
    return {
        "verdict": verdict,
        "halves": halves,
        "pixels": None if pixels is None else {"halves": pixels},
    }


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
    pixels = f", of raw pixels {trust['pixels']['halves']:.2f}" if trust["pixels"] else ""
    return (
        f"trust: {meaning[trust['verdict']]} (agreement of halves {trust['halves']:.2f}{pixels}; "
        "1 is the same, 0 is chance)"
    )
