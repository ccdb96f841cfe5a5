"""Is the training healthy? Measured at the end of an epoch, on fixed images.

Everything here is a pure function of the weights, so a resumed run reports the same numbers.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.load_dataset import Dataset, Split
from src.clusters.kmeans import kmeans
from src.evaluation.metrics import effective_rank, hungarian_accuracy, knn_accuracy
from src.models.encoder import encode_all
from src.models.simclr import SimCLR
from src.runtime.cli import RunError
from src.runtime.device import autocast

DIVERGED = "start over (--fresh) with a lower --learning-rate, or with --precision fp32"


@torch.no_grad()
def probe(model: SimCLR, views_NCSS: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """What the network does to a fixed batch of normalized views (N, 3, S, S).

    Returns:
        activation_rms: root mean square of the features. It explodes when frozen batch norm no
            longer fits the weights, long before the loss shows it.
        projection_std: mean standard deviation of the normalized projections' d dimensions,
            near 1/sqrt(d) when they fill the sphere, 0 when all images look alike.
        projection_rank: effective rank of the projections, at most d.

    Raises:
        RunError: they are not finite.
    """
    was_training = model.training
    model.eval()
    with autocast(views_NCSS.device, dtype):
        features = model.backbone(views_NCSS)
        projections = model.head(features)
    model.train(was_training)
    z_Nd = F.normalize(projections.float(), dim=1)
    if not z_Nd.isfinite().all():
        raise RunError(f"the network's output is not finite any more; {DIVERGED}")
    return {
        "activation_rms": features.float().square().mean().sqrt().item(),
        "projection_std": z_Nd.std(0).mean().item(),
        "projection_rank": effective_rank(z_Nd.cpu().numpy()),
    }


def score_features(features_ND: np.ndarray, labels_N: np.ndarray, seed: int) -> dict[str, float]:
    """k-NN accuracy (first half votes on the second) and Hungarian accuracy of K-means.

    The labels only watch; nothing is learned from them.
    """
    unit = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True).clip(1e-12)
    half = len(unit) // 2
    found = kmeans(unit, len(np.unique(labels_N)), seed=seed, restarts=3)
    return {
        "knn_accuracy": knn_accuracy(unit[:half], labels_N[:half], unit[half:], labels_N[half:]),
        "kmeans_accuracy": hungarian_accuracy(labels_N, np.asarray(found.labels_)),
    }


def labeled_sample(dataset: Dataset, size: int, seed: int) -> Split | None:
    """A fixed random sample of a labeled split to watch; None where there are no labels."""
    for name in ("train", "test", "unlabeled"):
        split = dataset.splits.get(name)
        if split is not None and split.labels is not None and len(split.images) >= 20:
            rows = np.sort(np.random.default_rng(seed).permutation(len(split.images))[:size])
            rows = np.random.default_rng(seed).permutation(rows)
            return Split(split.images[rows], split.labels[rows])
    return None


@dataclass(frozen=True)
class Observer:
    """What is measured when an epoch ends."""

    views: Tensor
    """Normalized views (N, 3, S, S) for `probe`."""
    labeled: Split | None
    """Images for `score_features`."""
    every: int
    """Epochs between the scores."""
    dtype: torch.dtype
    seed: int

    def __call__(self, model: SimCLR, epoch: int, last: bool) -> dict[str, float]:
        seen = probe(model, self.views, self.dtype)
        if self.labeled and self.labeled.labels is not None and (last or epoch % self.every == 0):
            features = encode_all(model.backbone, self.labeled.images, self.dtype)
            seen |= score_features(features, self.labeled.labels, self.seed)
        return seen


class Totals:
    """Sums over the epoch so far, on the device, so that no step waits for a number."""

    STREAK_LIMIT = 10

    def __init__(self, device: torch.device, values: list[float] | None = None):
        self.values = torch.tensor(values or [0.0] * 5, device=device)

    def reset(self) -> None:
        """For the next epoch; a streak of skipped steps goes on."""
        self.values[:4] = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """A step whose loss or gradient is not finite was skipped: it counts as that only."""
        good = torch.isfinite(loss) & torch.isfinite(norm)
        zero = torch.zeros_like(loss)
        new = [torch.where(good, loss, zero), torch.where(good, norm, zero), good, ~good]
        self.values[:4] += torch.stack([value.to(loss.dtype) for value in new])
        self.values[4] = torch.where(good, zero, self.values[4] + 1)  # skipped in a row

    def check(self) -> None:
        if self.values[4].item() >= self.STREAK_LIMIT:
            raise RunError(
                f"{self.STREAK_LIMIT} steps in a row had a loss or gradient that is not finite; "
                f"{DIVERGED}"
            )

    def means(self) -> dict[str, float | None]:
        loss, norm, good, skipped, _ = self.values.tolist()
        return {
            "loss": loss / good if good else None,
            "gradient_norm": norm / good if good else None,
            "skipped_steps": int(skipped),
        }


def collapse(record: dict[str, Any], batch_size: int, projection_dim: int) -> str | None:
    """A line saying that the run has collapsed, and what to change; None while it is well."""
    chance = math.log(2 * batch_size - 1)
    if record["loss"] is not None and abs(record["loss"] - chance) < 0.01 * chance:
        sign = f"the loss is still ln(2B - 1) = {chance:.2f}, that of random guesses"
    elif record["projection_std"] < 0.1 / math.sqrt(projection_dim):
        sign = f"the projections hardly differ (standard deviation {record['projection_std']:.1e})"
    else:
        return None
    return (
        f"the training has collapsed: {sign}. Lower --learning-rate, raise --warmup-epochs, or "
        "try --bn train, and start over with --fresh"
    )
