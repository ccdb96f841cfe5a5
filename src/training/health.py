"""Signs of a healthy or failing training, measured at the end of an epoch on fixed images.

They depend on the weights alone, so a resumed run reports the same numbers.
"""

import math
from collections.abc import Callable
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
from src.training.batches import ImageStore
from src.training.flags import TrainConfig
from src.training.randomness import OUTPUT_VIEWS, random_stream

WATCHED = 5_000
"""Labeled images, at most: all of STL-10's train split, as in the final k-NN accuracy."""

DIVERGED = "start over (--fresh) with a lower --learning-rate, or with --precision fp32"


@torch.no_grad()
def output_statistics(model: SimCLR, views_NCSS: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Features and projections of a fixed batch of normalized views (N, 3, S, S), in numbers.

    Returns:
        activation_rms: root mean square of the features. It explodes when frozen batch norm no
            longer fits the weights, long before the loss shows it.
        projection_std: standard deviation of the normalized projections, mean over the d
            dimensions: near 1/sqrt(d) when they fill the sphere, 0 when all are equal.
        projection_rank: effective rank of the projections, at most d.

    Raises:
        RunError: the projections are not finite.
    """
    was_training = model.training
    model.eval()
    with autocast(views_NCSS.device, dtype):
        features = model.backbone(views_NCSS)
        projections = model.head(features)
    model.train(was_training)
    z_Nd = F.normalize(projections.float(), dim=1)
    if not z_Nd.isfinite().all():
        raise RunError(f"the network's output is no longer finite; {DIVERGED}")
    return {
        "activation_rms": features.float().square().mean().sqrt().item(),
        "projection_std": z_Nd.std(0).mean().item(),
        "projection_rank": effective_rank(z_Nd.cpu().numpy()),
    }


def accuracies(features_ND: np.ndarray, labels_N: np.ndarray, seed: int) -> dict[str, float]:
    """k-NN accuracy, leaving one out as clustering does, and Hungarian accuracy of K-means.

    The labels are only for monitoring; training never uses them.
    """
    unit = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True).clip(1e-12)
    clusters = kmeans(unit, len(np.unique(labels_N)), seed=seed, restarts=3).labels_
    return {
        "knn_accuracy": knn_accuracy(unit, labels_N, unit, labels_N, leave_one_out=True),
        "kmeans_accuracy": hungarian_accuracy(labels_N, np.asarray(clusters)),
    }


def labeled_sample(dataset: Dataset, size: int, seed: int) -> Split | None:
    """A fixed random sample of the first labeled split; None without labels."""
    for name in ("train", "test", "unlabeled"):
        split = dataset.splits.get(name)
        if split is not None and split.labels is not None and len(split.images) >= 20:
            rows = np.sort(np.random.default_rng(seed).permutation(len(split.images))[:size])
            return Split(split.images[rows], split.labels[rows])
    return None


def make_observer(
    store: ImageStore, dataset: Dataset, config: TrainConfig, dtype: torch.dtype
) -> Callable[[SimCLR, int, bool], dict[str, float]]:
    """A function of model, epoch, and whether the epoch is the last: `output_statistics` of views
    of 256 images, and every `--monitor-every` epochs `accuracies` on `WATCHED` labeled images."""
    labeled = labeled_sample(dataset, WATCHED, config.seed)
    rng = random_stream(config.seed, OUTPUT_VIEWS)
    sample = torch.randperm(len(store), generator=rng)[:256]
    views_NCSS = store.views(sample, config.views, rng)

    def observe(model: SimCLR, epoch: int, is_last: bool) -> dict[str, float]:
        measured = output_statistics(model, views_NCSS, dtype)
        monitored = is_last or epoch % config.monitor_every == 0
        if labeled and labeled.labels is not None and monitored:
            features = encode_all(model.backbone, labeled.images, dtype)
            measured |= accuracies(features, labeled.labels, config.seed)
        return measured

    return observe


class Totals:
    """Sums over the epoch so far, kept on the device so that no step waits for it."""

    STREAK_LIMIT = 10

    def __init__(self, device: torch.device, values: list[float] | None = None):
        self.values = torch.tensor(values or [0.0] * 5, device=device)

    def reset(self) -> None:
        """Start the next epoch; a streak of skipped steps continues."""
        self.values[:4] = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add a step. One whose loss or gradient is not finite counts as skipped only."""
        good = torch.isfinite(loss) & torch.isfinite(norm)
        zero = torch.zeros_like(loss)
        new = [torch.where(good, loss, zero), torch.where(good, norm, zero), good, ~good]
        self.values[:4] += torch.stack([value.to(loss.dtype) for value in new])
        self.values[4] = torch.where(good, zero, self.values[4] + 1)  # skipped in a row

    def check(self, loss: Tensor) -> float:
        """`loss` as a number, read from the device together with the number of skipped steps.

        Raises:
            RunError: so many steps in a row were skipped that training has diverged; so does
                `means`.
        """
        value, in_a_row = torch.stack([loss, self.values[4]]).tolist()
        self._stop_after(in_a_row)
        return value

    def means(self) -> dict[str, float | None]:
        loss, norm, good, skipped, in_a_row = self.values.tolist()
        self._stop_after(in_a_row)
        return {
            "loss": loss / good if good else None,
            "gradient_norm": norm / good if good else None,
            "skipped_steps": int(skipped),
        }

    def _stop_after(self, in_a_row: float) -> None:
        if in_a_row >= self.STREAK_LIMIT:
            raise RunError(
                f"{self.STREAK_LIMIT} steps in a row had a loss or gradient that is not finite; "
                f"{DIVERGED}"
            )


def collapse(record: dict[str, Any], batch_size: int, projection_dim: int) -> str | None:
    """A line saying that training has collapsed and what to change; None if it has not."""
    chance = math.log(2 * batch_size - 1)
    if record["loss"] is not None and abs(record["loss"] - chance) < 0.01 * chance:
        symptom = f"the loss is still ln(2B - 1) = {chance:.2f}, that of random guesses"
    elif record["projection_std"] < 0.1 / math.sqrt(projection_dim):
        std = record["projection_std"]
        symptom = f"the projections hardly differ (standard deviation {std:.1e})"
    else:
        return None
    return (
        f"training has collapsed: {symptom}. Lower --learning-rate, raise --warmup-epochs, or "
        "try --bn train, and start over with --fresh"
    )
