"""Cluster the features and score the clusters.

    python src/clustering.py

L2 normalization, exact PCA, K-means++; PCA and K-means are fitted on one split and applied to
all of them. Reads features/{split}_features.npy and _labels.npy. Writes features/{split}_pca.npy,
pca_*.npy, centroids.npy, {split}_clusters.npy, cluster_to_class.npy, metrics.json and its part of
manifest.json. Labels are used to name and to score the clusters, never to find them.

There are two accuracies. `hungarian_accuracy` matches clusters to classes on each split itself, as
papers report. `transferred_accuracy` names the clusters once, on the split that K-means was fitted
on, and applies these names to the other splits, as you would without test labels.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset.load_dataset import reload_dataset
from src.clusters.choose_k import candidates, scan, scan_table
from src.clusters.confidence import fit_scale
from src.clusters.pca import PCA
from src.clusters.protocol import Protocol, Splits
from src.evaluation.tables import COLUMNS, class_table, summary_table
from src.runtime.cli import UserError, check_seed, run_script
from src.storage import artifacts
from src.storage.artifacts import CLUSTERING, EXTRACTION
from src.storage.provenance import git_commit, versions
from src.tracking.tracker import stage_tracker
from src.tracking.wandb_run import WandbMode

LOW_VARIANCE = 0.95


@dataclass(frozen=True)
class ClusteringConfig:
    feature_dir: Path = Path("features")
    """Directory of the features; the clusters are written there too."""
    fit_on: Literal["unlabeled", "train", "test"] = "train"
    """The split that PCA and K-means are fitted on; without a train split, the largest one."""
    l2_normalize: bool = True
    """Scale every feature vector to length 1 first."""
    components: int = 100
    """Principal components to keep; fewer where the features have fewer dimensions."""
    clusters: str | None = None
    """A number, a range such as 5:20 to pick from, or auto (2:20); None is one per class, or 10."""
    restarts: int = 20
    """K-means starts; the best one is kept."""
    seeds: int | None = None
    """Also report mean and standard deviation over this many seeds of K-means."""
    baselines: bool = False
    """Also cluster raw pixels and the features of the untrained network, for comparison."""
    seed: int = 0
    """Random seed of K-means."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online with a key and a server that answers, else offline."""
    wandb_dir: Path = Path("wandb")
    """Directory of the Weights & Biases files."""


def main(config: ClusteringConfig) -> None:
    _check(config)
    directory = config.feature_dir
    extraction = artifacts.recorded(directory, EXTRACTION)
    features = load_features(directory, extraction)
    protocol = choose_protocol(config, features, extraction)
    fit_on = protocol.fit_on
    counts = candidates(config.clusters, len(protocol.class_names))
    if counts[-1] > len(features[fit_on]):
        raise UserError(
            f"--clusters: {counts[-1]} clusters need as many images, {fit_on} has "
            f"{len(features[fit_on])}"
        )
    baselines = {}
    if config.baselines:
        compared = [split for split in features if split in protocol.labels or split == fit_on]
        baselines = load_baselines(directory, extraction["dataset"], compared)

    artifacts.record(directory, CLUSTERING, None)  # unfinished until it is recorded again
    pca, reduced = protocol.reduce(features)
    metrics: dict[str, Any] = {"splits": {}, "pca": describe_pca(pca, config.components)}
    count = counts[0]
    if len(counts) > 1:
        metrics["scan"] = scan(reduced[fit_on], counts, config.seed)
        print(scan_table(metrics["scan"]))
        count = metrics["scan"]["picked"]
    model, clusters = protocol.cluster(reduced, count, config.seed)
    class_K = protocol.name(clusters, count)
    centroids_KP = model.cluster_centers_.astype(np.float32)
    save(directory, pca, reduced, centroids_KP, clusters, class_K)
    named_on = protocol.named_on
    labels = protocol.labels[named_on] if named_on else None
    scale = fit_scale(reduced[named_on or fit_on], centroids_KP, class_K, labels)

    metrics["kmeans"] = {
        "clusters": count,
        "fit_on": fit_on,
        "named_on": named_on,
        "inertia": float(model.inertia_ or 0),
        "restarts": config.restarts,
    }
    metrics["splits"] = protocol.score(features, reduced, clusters, class_K)
    if config.seeds:
        seeds = range(config.seed, config.seed + config.seeds)
        metrics["seeds"] = protocol.over_seeds(reduced, count, seeds)
    if baselines:
        metrics["baselines"] = {
            kind: {"splits": protocol.score_baseline(x, count, config.seed)}
            for kind, x in baselines.items()
        }
    artifacts.write_json(directory / artifacts.METRICS, metrics)
    part = {
        "features": extraction["id"],
        "fit_on": fit_on,
        "clusters": count,
        "confidence_scale": scale,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "commit": git_commit(),
        "versions": versions(),
    }
    artifacts.record(directory, CLUSTERING, part)
    report(metrics)
    track(config, extraction, metrics)
    print(f"wrote {directory / artifacts.METRICS} and the clusters next to it")


def _check(config: ClusteringConfig) -> None:
    for flag, value, least in (
        ("--components", config.components, 1),
        ("--restarts", config.restarts, 1),
        ("--seeds", 2 if config.seeds is None else config.seeds, 2),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
    check_seed(config.seed)
    candidates(config.clusters, classes=0)  # raises if --clusters cannot be parsed


def load_features(directory: Path, extraction: dict[str, Any]) -> Splits:
    """The features (N, D) of every split that the extraction wrote, memory-mapped."""
    features = {
        split: artifacts.load(artifacts.FEATURES, directory, split, images)
        for split, images in extraction["dataset"]["splits"].items()
    }
    if len({x.shape[1] for x in features.values()}) > 1:
        raise UserError(
            f"the splits in {directory} have features of different lengths: run python "
            f"{EXTRACTION} again"
        )
    return features


def load_labels(directory: Path, features: Splits, class_names: list[str]) -> Splits:
    """The labels (N,) of the splits that have any; -1 stands for an unknown class."""
    all_labels = {}
    for split, x in features.items():
        file = artifacts.path(artifacts.LABELS, directory, split)
        if not file.exists():
            continue
        labels = artifacts.load(artifacts.LABELS, directory, split, len(x))
        if labels.min() < -1 or labels.max() >= len(class_names):
            raise UserError(
                f"{file} has labels from {labels.min()} to {labels.max()} for "
                f"{len(class_names)} classes: run python {EXTRACTION} again"
            )
        if unknown := int((labels < 0).sum()):
            print(f"note: {file} has {unknown:,} labels of -1; these images are not scored")
        if unknown < len(labels):
            all_labels[split] = labels
    return all_labels


def load_baselines(
    directory: Path, recorded: dict[str, Any], splits: list[str]
) -> dict[str, Splits]:
    """Raw pixels, uint8, and the untrained network's features of `splits`, each (N, D)."""
    untrained = {
        split: artifacts.load(
            artifacts.UNTRAINED_FEATURES, directory, split, recorded["splits"][split]
        )
        for split in splits
    }
    dataset = reload_dataset(recorded)
    images = {split: dataset.splits[split].images for split in splits}
    pixels = {split: np.ascontiguousarray(x).reshape(len(x), -1) for split, x in images.items()}
    return {"raw_pixels": pixels, "untrained": untrained}


def choose_protocol(
    config: ClusteringConfig, features: Splits, extraction: dict[str, Any]
) -> Protocol:
    fit_on = config.fit_on
    if fit_on not in features:
        if fit_on != "train":
            raise UserError(f"--fit-on {fit_on}: the extraction wrote only {', '.join(features)}")
        fit_on = max(features, key=lambda split: len(features[split]))
        print(f"note: no train split; PCA and K-means are fitted on {fit_on}")
    class_names = extraction["dataset"]["class_names"]
    return Protocol(
        fit_on=fit_on,
        labels=load_labels(config.feature_dir, features, class_names),
        class_names=class_names,
        l2_normalize=config.l2_normalize,
        components=config.components,
        restarts=config.restarts,
    )


def describe_pca(pca: PCA, wanted: int) -> dict[str, Any]:
    kept, explained = len(pca.variance_ratio_P), float(pca.variance_ratio_P.sum())
    dim = len(pca.mean_D)
    print(
        f"pca: {dim:,} features to {kept} components that keep {explained:.1%} of the variance; "
        f"effective rank {pca.effective_rank:.1f}"
    )
    if kept < wanted:
        print(
            f"note: the centered features span {kept} dimensions, fewer than --components {wanted}"
        )
    elif explained < LOW_VARIANCE:
        print(f"note: less than {LOW_VARIANCE:.0%}; --components {2 * kept} would keep more")
    return {
        "components": kept,
        "explained_variance": explained,
        "cumulative": pca.variance_ratio_P.cumsum().tolist(),
        "effective_rank": pca.effective_rank,
    }


def save(
    directory: Path,
    pca: PCA,
    reduced: Splits,
    centroids_KP: np.ndarray,
    clusters: Splits,
    class_K: np.ndarray,
) -> None:
    """Write every array that later stages read; remove those of splits that no longer exist."""
    artifacts.save(artifacts.PCA_MEAN, directory, pca.mean_D)
    artifacts.save(artifacts.PCA_COMPONENTS, directory, pca.components_PD)
    artifacts.save(artifacts.PCA_VARIANCE_RATIO, directory, pca.variance_ratio_P)
    artifacts.save(artifacts.CENTROIDS, directory, centroids_KP)
    artifacts.save(artifacts.CLUSTER_TO_CLASS, directory, class_K)
    for split in artifacts.SPLITS:
        for artifact, arrays in ((artifacts.REDUCED, reduced), (artifacts.ASSIGNMENTS, clusters)):
            if split in arrays:
                artifacts.save(artifact, directory, arrays[split], split)
            else:
                artifacts.path(artifact, directory, split).unlink(missing_ok=True)


def track(config: ClusteringConfig, extraction: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Log the metrics to W&B, in the group of the training that the features come from."""
    if config.wandb == "disabled":
        return
    with stage_tracker(config.wandb, config.wandb_dir, "clustering", config, extraction) as tracker:
        for split, scores in metrics["splits"].items():
            tracker.log(scores, f"clusters/{split}")
            if "per_class" in scores:
                rows = [[name, *values.values()] for name, values in scores["per_class"].items()]
                columns = ["class", "precision", "recall", "f1"]
                tracker.table(f"clusters/{split}/classes", columns, rows)
        for kind, part in metrics.get("baselines", {}).items():
            for split, scores in part["splits"].items():
                tracker.log(scores, f"baselines/{kind}/{split}")
        tracker.log(metrics["kmeans"], "kmeans")
        tracker.log(metrics["pca"], "reduction")
        for component, cumulative in enumerate(metrics["pca"]["cumulative"], start=1):
            tracker.log({"component": component, "cumulative": cumulative}, "pca")


def report(metrics: dict[str, Any]) -> None:
    """Print cluster sizes, scores and notes about both."""
    fit_on, splits = metrics["kmeans"]["fit_on"], metrics["splits"]
    sizes = splits[fit_on]["cluster_sizes"]
    print(f"k-means: {len(sizes)} clusters of {fit_on}, {min(sizes):,} to {max(sizes):,} images")
    if empty := sizes.count(0):
        print(f"note: {empty} clusters are empty: fewer distinct images than clusters")
    for split, scores in splits.items():
        if undefined := [name for key, name in COLUMNS.items() if scores.get(key, 0) is None]:
            print(f"note: {split}: {', '.join(undefined)} undefined with one class or one cluster")
    labeled = [split for split in splits if "per_class" in splits[split]]
    if labeled:
        print(f"\n{labeled[-1]}, clusters matched to classes on it:")
        print(class_table(splits[labeled[-1]]["per_class"]))
    print(f"\n{summary_table(metrics)}\n")
    for split, means in metrics.get("seeds", {}).get("splits", {}).items():
        spreads = [
            f"{name.replace('_', ' ')} {value['mean']:.3f} ± {value['std']:.3f}"
            for name, value in means.items()
            if value
        ]
        print(f"{split} over {metrics['seeds']['count']} seeds: {', '.join(spreads)}")


if __name__ == "__main__":
    run_script(main, ClusteringConfig)
