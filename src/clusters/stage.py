"""Cluster the features and score the clusters."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dataset.load_dataset import reload_dataset
from src.clusters.choose_k import candidates, fewer, scan, scan_table
from src.clusters.confidence import fit_scale, gaussian_scale
from src.clusters.flags import ClusteringConfig
from src.clusters.head import LinearHead
from src.clusters.pca import PCA
from src.clusters.protocol import Clustering, Protocol, Splits
from src.clusters.summary import metrics_report, pca_lines
from src.clusters.trust import Views, trust_report
from src.clusters.unusual import distance_to_clusters
from src.evaluation.linear_probe import linear_probe
from src.evaluation.tables import used_splits
from src.runtime.cli import UserError, check_seed, printable
from src.storage import artifacts, checkpoint
from src.storage.artifacts import (
    CLUSTERING,
    FEATURES,
    LABELS,
    UNTRAINED_FEATURES,
    ExtractionRecord,
    Manifest,
    Stage,
)
from src.storage.provenance import git_commit, versions
from src.tracking.tracker import stage_tracker


def run(config: ClusteringConfig) -> None:
    _check(config)
    with artifacts.writing(config.feature_dir, CLUSTERING) as stage:
        extraction, metrics = cluster(config, stage)
    print(metrics_report(metrics))
    track(config, extraction, metrics)
    print(f"wrote {config.feature_dir / artifacts.METRICS} and the clusters")


def cluster(config: ClusteringConfig, stage: Stage) -> tuple[ExtractionRecord, dict[str, Any]]:
    """Compute and write everything; returns what the features come from, and the metrics."""
    manifest = Manifest(config.feature_dir)
    extraction = manifest.extraction
    features = {split: manifest.load(FEATURES, split) for split in extraction["dataset"]["splits"]}
    protocol = choose_protocol(config, features, manifest)
    fit_on = protocol.fit_on
    counts = candidates(config.clusters, len(protocol.class_names))
    if config.clusters is None:
        count = fewer(counts[0], len(features[fit_on]), bool(protocol.class_names))
        counts = range(count, count + 1)
    if counts[-1] > len(features[fit_on]):
        raise UserError(
            f"--clusters: {counts[-1]} clusters need as many images, {fit_on} has "
            f"{len(features[fit_on])}"
        )
    baselines = {}
    if config.baselines:
        compared = [split for split in features if split in protocol.labels or split == fit_on]
        baselines = load_baselines(manifest, compared)

    pca, reduced = protocol.reduce(features)
    smoothed_NP = protocol.smooth(reduced)
    metrics: dict[str, Any] = {"splits": {}, "pca": describe_pca(pca)}
    print(pca_lines(metrics["pca"], pca.mean_D.size, config.components))
    count = counts[0]
    if len(counts) > 1:
        scanned = reduced[fit_on] if smoothed_NP is None else smoothed_NP
        metrics["scan"] = scan(scanned, counts, config.seed)
        print(scan_table(metrics["scan"]))
        count = metrics["scan"]["picked"]
    found, scores = protocol.cluster_and_score(features, reduced, smoothed_NP, count, config.seed)
    used = found[-1]
    named_on = protocol.named_on
    labels = protocol.labels[named_on] if named_on else None
    rows_NP = reduced[named_on or fit_on]
    start = gaussian_scale(rows_NP, used.centroids_KP) if smoothed_NP is None else 1.0
    scale = fit_scale(rows_NP, used.head, used.class_K, labels, start)

    metrics["kmeans"] = {
        "clusters": count,
        "fit_on": fit_on,
        "named_on": named_on,
        "inertia": found[0].inertia,
        "restarts": config.restarts,
    }
    metrics |= scores
    if config.seeds:
        seeds = range(config.seed, config.seed + config.seeds)
        metrics["seeds"] = protocol.over_seeds(reduced, smoothed_NP, count, seeds)
    if config.linear_probe and (probe := probe_features(features, protocol, config.seed)):
        metrics["linear_probe"] = probe
    if baselines:
        metrics["baselines"] = {
            kind: protocol.score_baseline(x, count, config.seed) for kind, x in baselines.items()
        }
    distances = {
        split: distance_to_clusters(pca, x, reduced[split], used.centroids_KP)
        for split, x in features.items()
    }
    limit = float(np.quantile(distances[fit_on], config.unusual))
    unusual = {split: distance > limit for split, distance in distances.items()}
    metrics["unusual"] = {split: int(found.sum()) for split, found in unusual.items()}
    images = load_images(manifest, fit_on)
    views = load_views(manifest, fit_on, pca, used.head)
    if trust := trust_report(protocol, reduced[fit_on], images, count, config.seed, views):
        metrics["trust"] = trust
    save(stage, pca, reduced, used, unusual)
    stage.write_json(artifacts.METRICS, metrics)
    stage.record(
        {
            "features": extraction["id"],
            "fit_on": fit_on,
            "clusters": count,
            "certainty": "margin" if labels is None else "confidence",
            "confidence_scale": scale,
            "unusual_distance": limit,
            "config": json.loads(json.dumps(asdict(config), default=str)),
            "commit": git_commit(),
            "versions": versions(),
        }
    )
    return extraction, metrics


def _check(config: ClusteringConfig) -> None:
    for flag, value, least in (
        ("--components", config.components, 1),
        ("--restarts", config.restarts, 1),
        ("--hops", config.hops, 1),
        ("--neighbors", config.neighbors, 1),
        ("--seeds", 2 if config.seeds is None else config.seeds, 2),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
    if not 0 < config.unusual <= 1:
        raise UserError(f"--unusual {config.unusual}: it must be above 0 and at most 1")
    check_seed(config.seed)
    candidates(config.clusters, classes=0)  # raises if --clusters cannot be parsed


def load_labels(manifest: Manifest) -> Splits:
    """The labels (N,) of the splits that have any; -1 stands for an unknown class."""
    all_labels = {}
    for split in manifest.extraction["dataset"]["splits"]:
        if not manifest.has(LABELS, split):
            continue
        labels = manifest.load(LABELS, split)
        if unknown := int((labels < 0).sum()):
            file = artifacts.path(LABELS, manifest.directory, split)
            print(f"note: {file} has {unknown:,} labels of -1; these images are not scored")
        if unknown < len(labels):
            all_labels[split] = labels
    return all_labels


def load_baselines(manifest: Manifest, splits: list[str]) -> dict[str, Splits]:
    """Raw pixels, uint8, and the untrained network's features of `splits`, each (N, D); the latter
    only if the features are not those of the untrained network, and neither that nor pixels where
    imported features lack them."""
    untrained, recorded = {}, manifest.extraction["checkpoint"]
    if recorded is None:
        if manifest.extraction["dataset"]["data_dir"] is None:
            print("note: no baselines, since the features were imported without pictures")
            return {}
        print("note: the features were imported, so raw pixels are the only baseline")
    elif Path(recorded["file"]).name == checkpoint.file_name(0):
        print("note: the features are those of epoch 0, so raw pixels are the only baseline")
    else:
        untrained = {split: manifest.load(UNTRAINED_FEATURES, split) for split in splits}
    dataset = reload_dataset(manifest.extraction["dataset"])
    images = {split: dataset.splits[split].images for split in splits}
    pixels = {split: np.ascontiguousarray(x).reshape(len(x), -1) for split, x in images.items()}
    return {"raw_pixels": pixels} | ({"untrained": untrained} if untrained else {})


def probe_features(features: Splits, protocol: Protocol, seed: int) -> dict[str, Any] | None:
    """The part of metrics.json about the linear probe; None without labels to fit it to.

    Where test has no labels, `scored_on` is train, by cross-validation.
    """
    known = {s: protocol.labeled(features, s) for s in ("train", "test") if s in protocol.labels}
    if "train" in known and (probe := linear_probe(*known["train"], known.get("test"), seed)):
        return {"fit_on": "train", "scored_on": "test" if "test" in known else "train"} | probe
    print("note: no linear probe: it needs a train split with labels of two classes or more")
    return None


def load_images(manifest: Manifest, split: str) -> np.ndarray | None:
    """The pictures of a split, uint8 (N, 3, S, S); None where they are missing."""
    try:
        return reload_dataset(manifest.extraction["dataset"]).splits[split].images
    except UserError as error:
        print(f"note: no comparison with raw pixels: {printable(str(error))}")
        return None


def load_views(manifest: Manifest, split: str, pca: PCA, head: LinearHead) -> Views | None:
    """Two views of images of a split; None where the extraction wrote none."""
    if not manifest.has(artifacts.VIEW_PIXELS, split):
        if manifest.has(artifacts.VIEWS, split):
            print("note: features of an older version: extract again for a verdict from views")
        return None
    x_2nD = manifest.load(artifacts.VIEWS, split)
    clusters_2n = np.stack([head.assign(pca.transform(x)) for x in x_2nD])
    return Views(clusters_2n, manifest.load(artifacts.VIEW_PIXELS, split))


def choose_protocol(config: ClusteringConfig, features: Splits, manifest: Manifest) -> Protocol:
    fit_on = config.fit_on
    if fit_on not in features:
        if fit_on != "train":
            raise UserError(f"--fit-on {fit_on}: the extraction wrote only {', '.join(features)}")
        fit_on = artifacts.default_split(manifest.extraction["dataset"]["splits"])
        print(f"note: no train split; PCA and K-means are fitted on {fit_on}")
    return Protocol(
        fit_on=fit_on,
        labels=load_labels(manifest),
        class_names=manifest.extraction["dataset"]["class_names"],
        l2_normalize=config.l2_normalize,
        components=config.components,
        restarts=config.restarts,
        hops=config.hops if config.smooth else 0,
        neighbors=config.neighbors,
    )


def describe_pca(pca: PCA) -> dict[str, Any]:
    """The part of metrics.json about the PCA."""
    return {
        "components": len(pca.variance_ratio_P),
        "explained_variance": float(pca.variance_ratio_P.sum()),
        "cumulative": pca.variance_ratio_P.cumsum().tolist(),
        "effective_rank": pca.effective_rank,
    }


def save(stage: Stage, pca: PCA, reduced: Splits, used: Clustering, unusual: Splits) -> None:
    """Write every array that later stages read."""
    stage.save(artifacts.PCA_MEAN, pca.mean_D)
    stage.save(artifacts.PCA_COMPONENTS, pca.components_PD)
    stage.save(artifacts.PCA_VARIANCE_RATIO, pca.variance_ratio_P)
    stage.save(artifacts.CENTROIDS, used.centroids_KP)
    stage.save(artifacts.HEAD_WEIGHTS, used.head.weights_KP)
    stage.save(artifacts.HEAD_BIAS, used.head.bias_K)
    stage.save(artifacts.CLUSTER_TO_CLASS, used.class_K)
    for split in reduced:
        stage.save(artifacts.REDUCED, reduced[split], split)
        stage.save(artifacts.ASSIGNMENTS, used.clusters[split], split)
        stage.save(artifacts.UNUSUAL, unusual[split], split)


def track(config: ClusteringConfig, extraction: ExtractionRecord, metrics: dict[str, Any]) -> None:
    """Log the metrics to W&B, in the group of the training that the features come from."""
    parts = {"clusters": metrics, "smoothed": metrics.get("smoothed", {})}
    parts |= {f"baselines/{kind}": part for kind, part in metrics.get("baselines", {}).items()}
    with stage_tracker(config.wandb, config.wandb_dir, "clustering", config, extraction) as tracker:
        for prefix, part in parts.items():
            for split, scores in part.get("splits", {}).items():
                tracker.log(scores, f"{prefix}/{split}")
        for split, scores in used_splits(metrics).items():
            if "per_class" in scores:
                rows = [[name, *values.values()] for name, values in scores["per_class"].items()]
                columns = ["class", "precision", "recall", "f1"]
                tracker.table(f"clusters/{split}/classes", columns, rows)
        tracker.log(metrics["kmeans"], "kmeans")
        if "linear_probe" in metrics:
            tracker.log(metrics["linear_probe"], "linear_probe")
        tracker.log(metrics["pca"], "reduction")
        for component, cumulative in enumerate(metrics["pca"]["cumulative"], start=1):
            tracker.log({"component": component, "cumulative": cumulative}, "pca")
