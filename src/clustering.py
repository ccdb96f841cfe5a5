"""Clusters of the features, and how good they are.

    python src/clustering.py

L2 normalization, exact PCA, K-means++; PCA and K-means are fitted on one split and applied to
all of them. Reads features/{split}_features.npy and _labels.npy. Writes features/{split}_pca.npy,
pca_*.npy, centroids.npy, {split}_clusters.npy, cluster_to_class.npy, metrics.json and its part of
manifest.json. Labels are used to name and to score the clusters, never to find them.

Hungarian accuracy comes under two protocols. `hungarian_accuracy` matches clusters to classes on
the very split it scores, as papers report; `transferred_accuracy` names them once, on the split
K-means was fitted on, and applies the names to the others, which is all a user can do.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.clusters.baselines import load_baselines
from src.clusters.choose_k import candidates, scan, scan_table
from src.clusters.confidence import temperature_of
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
    """Where the features are and the clusters go."""
    fit_on: Literal["unlabeled", "train", "test"] = "train"
    """The split that PCA and K-means are fitted on; without a train split, the largest there is."""
    normalize: bool = True
    """Bring every feature vector to length 1 first."""
    components: int = 100
    """Principal components to keep; fewer where the features have fewer dimensions."""
    whiten: bool = False
    """Give every component the same variance."""
    clusters: str | None = None
    """A number, a range such as 5:20 to pick from, or auto (2:20); None is one per class, or 10."""
    restarts: int = 20
    """K-means starts, of which the best is kept."""
    seeds: int | None = None
    """Also report mean and standard deviation over this many seeds of K-means."""
    baselines: bool = False
    """Also cluster raw pixels, and the features of the untrained network, in the same way."""
    seed: int = 0
    """Of K-means."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online with a key and a server that answers, else offline."""
    wandb_dir: Path = Path("wandb")
    """Where Weights & Biases keeps its files."""


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
        baselines = load_baselines(directory, extraction, compared)

    artifacts.record(directory, CLUSTERING, None)  # not finished from here on
    pca, reduced = protocol.reduce(features)
    metrics: dict[str, Any] = {"splits": {}, "pca": describe_pca(pca, config.components)}
    if len(counts) > 1:
        metrics["scan"] = scan(reduced[fit_on], counts, config.seed)
        print(scan_table(metrics["scan"]))
    count = metrics["scan"]["picked"] if "scan" in metrics else counts[0]
    model, clusters = protocol.cluster(reduced, count, config.seed)
    named_K = protocol.name(clusters, count)
    centroids_KP = model.cluster_centers_.astype(np.float32)
    save(directory, pca, reduced, centroids_KP, clusters, named_K)
    named_on = protocol.named_on
    labels = protocol.labels[named_on] if named_on else None
    temperature = temperature_of(reduced[named_on or fit_on], centroids_KP, named_K, labels)

    metrics["kmeans"] = {
        "clusters": count,
        "fit_on": fit_on,
        "named_on": named_on,
        "inertia": float(model.inertia_ or 0),
        "restarts": config.restarts,
    }
    metrics["splits"] = protocol.score(features, reduced, clusters, named_K)
    if config.seeds:
        seeds = range(config.seed, config.seed + config.seeds)
        metrics["seeds"] = protocol.over_seeds(reduced, count, seeds)
    if baselines:
        metrics["baselines"] = {
            kind: {"splits": protocol.score_features(x, count, config.seed)}
            for kind, x in baselines.items()
        }
    artifacts.write_json(directory / artifacts.METRICS, metrics)
    record(config, extraction["id"], fit_on, count, temperature)
    report(metrics)
    track(config, extraction, metrics)
    print(f"wrote {directory / artifacts.METRICS} and the clusters beside it")


def _check(config: ClusteringConfig) -> None:
    for flag, value, least in (
        ("--components", config.components, 1),
        ("--restarts", config.restarts, 1),
        ("--seeds", 2 if config.seeds is None else config.seeds, 2),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
    check_seed(config.seed)
    check_seed(config.seed + (config.seeds or 1) - 1)
    candidates(config.clusters, classes=0)  # refuses what is no number, range or auto


def load_features(directory: Path, extraction: dict[str, Any]) -> Splits:
    """The features (N, D) of every split that the extraction wrote, memory-mapped."""
    features = {}
    for split, images in extraction["dataset"]["splits"].items():
        features[split] = artifacts.load(artifacts.FEATURES, directory, split)
        if len(features[split]) != images:
            raise UserError(
                f"{artifacts.path(artifacts.FEATURES, directory, split)} has "
                f"{len(features[split]):,} rows, the extraction wrote {images:,}: run python "
                f"{EXTRACTION} again"
            )
    if len({x.shape[1] for x in features.values()}) > 1:
        raise UserError(
            f"the splits in {directory} have features of different lengths: run python "
            f"{EXTRACTION} again"
        )
    return features


def load_labels(directory: Path, features: Splits, class_names: list[str]) -> Splits:
    """The labels (N,) of the splits that have any; -1 stands for an unknown one."""
    labels = {}
    for split, x in features.items():
        if not artifacts.exists(artifacts.LABELS, directory, split):
            continue
        known = artifacts.load(artifacts.LABELS, directory, split)
        file = artifacts.path(artifacts.LABELS, directory, split)
        if len(known) != len(x) or known.min() < -1 or known.max() >= len(class_names):
            raise UserError(
                f"{file} has {len(known):,} labels from {known.min()} to {known.max()} for "
                f"{len(x):,} images of {len(class_names)} classes: run python {EXTRACTION} again"
            )
        if unknown := int((known < 0).sum()):
            print(f"note: {file} has {unknown:,} labels of -1, which are left out of the scores")
        if unknown < len(known):
            labels[split] = known
    return labels


def choose_protocol(
    config: ClusteringConfig, features: Splits, extraction: dict[str, Any]
) -> Protocol:
    fit_on = config.fit_on
    if fit_on not in features:
        if fit_on != "train":
            raise UserError(f"--fit-on {fit_on}: there are only features of {', '.join(features)}")
        fit_on = max(features, key=lambda split: len(features[split]))
        print(f"note: there is no train split, PCA and K-means are fitted on {fit_on}")
    class_names = extraction["dataset"]["class_names"]
    return Protocol(
        fit_on=fit_on,
        labels=load_labels(config.feature_dir, features, class_names),
        class_names=class_names,
        normalize=config.normalize,
        components=config.components,
        whiten=config.whiten,
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
        print(f"note: that is under {LOW_VARIANCE:.0%}; --components {2 * kept} would keep more")
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
    named_K: np.ndarray,
) -> None:
    """Every array that later stages read; files of splits that are gone are removed."""
    artifacts.save(artifacts.PCA_MEAN, directory, pca.mean_D)
    artifacts.save(artifacts.PCA_COMPONENTS, directory, pca.components_PD)
    artifacts.save(artifacts.PCA_VARIANCE_RATIO, directory, pca.variance_ratio_P)
    artifacts.save(artifacts.CENTROIDS, directory, centroids_KP)
    artifacts.save(artifacts.CLUSTER_TO_CLASS, directory, named_K)
    for split in artifacts.SPLITS:
        for artifact, arrays in ((artifacts.REDUCED, reduced), (artifacts.ASSIGNMENTS, clusters)):
            if split in arrays:
                artifacts.save(artifact, directory, arrays[split], split)
            else:
                artifacts.path(artifact, directory, split).unlink(missing_ok=True)


def record(
    config: ClusteringConfig, features_id: str, fit_on: str, count: int, temperature: float
) -> None:
    """Say in the manifest what the files came from; from here on they are finished."""
    part = {
        "features": features_id,
        "normalize": config.normalize,
        "whiten": config.whiten,
        "fit_on": fit_on,
        "clusters": count,
        "temperature": temperature,
        "config": plain(config),
        "commit": git_commit(),
        "versions": versions(),
    }
    artifacts.record(config.feature_dir, CLUSTERING, part)


def track(config: ClusteringConfig, extraction: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Mirror the metrics to W&B, in the group of the training that the features came from."""
    if config.wandb == "disabled":
        return
    with stage_tracker(config.wandb, config.wandb_dir, "clustering", config, extraction) as tracker:
        for split, scores in metrics["splits"].items():
            tracker.log(scores, f"clusters/{split}")
            rows = [
                [name, *values.values()] for name, values in scores.get("per_class", {}).items()
            ]
            if rows:
                tracker.table(
                    f"clusters/{split}/classes", ["class", "precision", "recall", "f1"], rows
                )
        for kind, part in metrics.get("baselines", {}).items():
            for split, scores in part["splits"].items():
                tracker.log(scores, f"baselines/{kind}/{split}")
        tracker.log(metrics["kmeans"], "kmeans")
        tracker.log(metrics["pca"], "reduction")
        for component, cumulative in enumerate(metrics["pca"]["cumulative"], start=1):
            tracker.log({"component": component, "cumulative": cumulative}, "pca")


def plain(config: ClusteringConfig) -> dict[str, Any]:
    """The flags as built-in types."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def report(metrics: dict[str, Any]) -> None:
    """Print what a person wants to know."""
    fitted, splits = metrics["kmeans"], metrics["splits"]
    sizes = splits[fitted["fit_on"]]["cluster_sizes"]
    print(
        f"k-means: {fitted['clusters']} clusters of {fitted['fit_on']}, "
        f"from {min(sizes):,} to {max(sizes):,} images"
    )
    if empty := sizes.count(0):
        print(f"note: {empty} clusters are empty, there are fewer distinct images than clusters")
    for split, scores in splits.items():
        if undefined := [name for key, name in COLUMNS.items() if scores.get(key, 0) is None]:
            print(f"note: {split}: {', '.join(undefined)} undefined with one class or one cluster")
    labeled = [split for split in splits if "per_class" in splits[split]]
    if labeled:
        print(f"\n{labeled[-1]}, clusters matched to classes on it:")
        print(class_table(splits[labeled[-1]]["per_class"]))
    print(f"\n{summary_table(metrics)}\n")
    for split, means in metrics.get("seeds", {}).get("splits", {}).items():
        print(f"{split} over {metrics['seeds']['count']} seeds: {_spread(means)}")


def _spread(means: dict[str, dict[str, float] | None]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value['mean']:.3f} ± {value['std']:.3f}"
        for name, value in means.items()
        if value
    )


if __name__ == "__main__":
    run_script(main, ClusteringConfig)
