"""What naming clusters and moving pictures is worth, with a simulated person.

    python benchmarks/naming.py features.npy labels.npy
    python benchmarks/naming.py features.npy labels.npy --images 400

The person names each of 10, 30 or 50 fine clusters by the majority of its 9 most certain pictures,
then moves the 20 least certain pictures into their classes. Half of the images, or --images, are
fitted; the others, at most 2,500, are new. Prints accuracies: the share of images whose group has
the name of their class; in brackets the same with shuffled labels.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.clusters import fine as fine_clusters
from src.clusters.confidence import margin
from src.clusters.fine import find_fine
from src.clusters.head import fit_head
from src.clusters.method import Method
from src.clusters.naming import WEIGHT
from src.runtime.cli import run_script

SHOWN, MOVED, NEW = 9, 20, 2_500


@dataclass(frozen=True)
class NamingConfig:
    features: Annotated[Path, tyro.conf.Positional] = Path("features.npy")
    """Numbers (N, D) in NumPy's format."""
    labels: Annotated[Path, tyro.conf.Positional] = Path("labels.npy")
    """Classes (N,)."""
    images: int | None = None
    """Of the fitted images; by default half of all."""
    seeds: int = 3
    """Repetitions."""


def main(config: NamingConfig) -> None:
    x_ND = np.load(config.features).astype(np.float32)
    labels = np.unique(np.load(config.labels), return_inverse=True)[1]
    count = config.images or len(labels) // 2
    print("named  fitted         new            fitted, moved  new, moved")
    for named in (10, 30, 50):
        fine_clusters.MOST = named
        rows = []
        for seed in range(config.seeds):
            order = np.random.default_rng(seed).permutation(len(labels))
            for shuffled in (False, True):
                y = np.random.default_rng(seed).permutation(labels) if shuffled else labels
                rows.append(accuracies(x_ND[order], y[order], count, seed))
        real, chance = np.mean(rows[::2], axis=0), np.mean(rows[1::2], axis=0)
        cells = [f"{a:.3f} ({b:.3f})" for a, b in zip(real, chance, strict=True)]
        print(f"{named:5}  " + "  ".join(cells))


def accuracies(x_ND: np.ndarray, labels: np.ndarray, count: int, seed: int) -> list[float]:
    """Of the first `count` images and of new ones, before and after pictures were moved."""
    method = Method("train", {}, [], True, 100, 20, 2, None)
    parts = {"train": x_ND[:count], "test": x_ND[count : count + NEW]}
    y, new_y = labels[:count], labels[count : count + NEW]
    _, reduced = method.reduce(parts)
    x_NP, classes = reduced["train"], int(labels.max()) + 1
    smoothed_NP = method.smooth(reduced, 10)
    head = method.cluster(reduced, 10, seed, smoothed_NP).head
    certainty = margin(head(torch.tensor(x_NP)), 1.0).numpy()
    fine = find_fine(method, reduced, smoothed_NP, 1, seed).fine["train"]
    groups = np.zeros(count, int)
    for f in np.unique(fine):
        own = np.flatnonzero(fine == f)
        shown = own[np.argsort(-certainty[own], kind="stable")[:SHOWN]]
        groups[own] = np.bincount(y[shown]).argmax()
    weights, result = np.ones(count), []
    for moved in (np.zeros(0, int), np.argsort(certainty, kind="stable")[:MOVED]):
        groups[moved], weights[moved] = y[moved], WEIGHT
        learned = fit_head(x_NP, groups, classes, weights)
        result += [np.mean(groups == y), np.mean(learned.assign(reduced["test"]) == new_y)]
    return result


if __name__ == "__main__":
    run_script(main, NamingConfig)
