"""Cluster the features and score the clusters."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.load_dataset import reload_dataset
from src.clusters.choose_k import candidates, fewer, scan, scan_table
from src.clusters.confidence import fit_scale, gaussian_scale
from src.clusters.flags import ClusteringConfig
from src.clusters.head import LinearHead
from src.clusters.method import Clustering, Method, Splits
from src.clusters.pca import PCA
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
    inputs = read_inputs(config)
    method, features, fit_on = inputs.method, inputs.features, inputs.method.fit_on
    pca, reduced = method.reduce(features)
    smoothed_NP = method.smooth(reduced)
    metrics: dict[str, Any] = {"splits": {}, "pca": describe_pca(pca)}
    print(pca_lines(metrics["pca"], pca.mean_D.size, config.components))

    count = inputs.counts[0]
    if len(inputs.counts) > 1:
        x_NP = reduced[fit_on] if smoothed_NP is None else smoothed_NP
        metrics["scan"] = scan(x_NP, inputs.counts, config.seed)
        print(scan_table(metrics["scan"]))
        count = metrics["scan"]["picked"]
    found, scores = method.cluster_and_score(features, reduced, smoothed_NP, count, config.seed)
    used = found[-1]
    metrics["kmeans"] = {
        "clusters": count,
        "fit_on": fit_on,
        "named_on": method.named_on,
        "inertia": found[0].inertia,
        "restarts": config.restarts,
    }
    metrics |= scores | compare(config, inputs, reduced, smoothed_NP, count)
    unusual, limit = far_images(config.unusual, pca, features, reduced, used, fit_on)
    metrics["unusual"] = {split: int(far.sum()) for split, far in unusual.items()}
    images = load_images(inputs.manifest, fit_on)
    views = load_views(inputs.manifest, fit_on, pca, used.head)
    if trust := trust_report(method, reduced[fit_on], images, count, config.seed, views):
        metrics["trust"] = trust

    save(stage, pca, reduced, used, unusual)
    stage.write_json(artifacts.METRICS, metrics)
    is_smoothed = smoothed_NP is not None
    record(config, stage, inputs, count, certainty_scale(method, reduced, used, is_smoothed), limit)
    return inputs.manifest.extraction, metrics


class Inputs(NamedTuple):
    """What clustering reads, and how it clusters."""

    manifest: Manifest
    features: Splits
    method: Method
    counts: range
    """The numbers of clusters to choose from."""
    baselines: dict[str, Splits]
    """Other features, by their kind."""


def read_inputs(config: ClusteringConfig) -> Inputs:
    manifest = Manifest(config.feature_dir)
    splits = manifest.extraction["dataset"]["splits"]
    features = {split: manifest.load(FEATURES, split) for split in splits}
    method = choose_method(config, features, manifest)
    counts = choose_counts(config.clusters, method, len(features[method.fit_on]))
    baselines = {}
    if config.baselines:
        compared = [s for s in features if s in method.labels or s == method.fit_on]
        baselines = load_baselines(manifest, compared)
    return Inputs(manifest, features, method, counts, baselines)


def choose_counts(flag: str | None, method: Method, images: int) -> range:
    """The numbers of clusters to choose from, for as many images of the fitted split."""
    counts = candidates(flag, len(method.class_names))
    if flag is None:
        count = fewer(counts[0], images, bool(method.class_names))
        counts = range(count, count + 1)
    if counts[-1] > images:
        raise UserError(
            f"--clusters: {counts[-1]} clusters need as many images, {method.fit_on} has {images}"
        )
    return counts


def compare(
    config: ClusteringConfig,
    inputs: Inputs,
    reduced: Splits,
    smoothed_NP: np.ndarray | None,
    count: int,
) -> dict[str, Any]:
    """The parts of metrics.json that flags ask for: other seeds, a classifier, other features."""
    parts: dict[str, Any] = {}
    if config.seeds:
        seeds = range(config.seed, config.seed + config.seeds)
        parts["seeds"] = inputs.method.over_seeds(reduced, smoothed_NP, count, seeds)
    if config.linear_probe:
        probe = probe_features(inputs.features, inputs.method, config.seed)
        parts |= {"linear_probe": probe} if probe else {}
    if inputs.baselines:
        parts["baselines"] = {
            kind: inputs.method.score_baseline(x, count, config.seed)
            for kind, x in inputs.baselines.items()
        }
    return parts


def certainty_scale(method: Method, reduced: Splits, used: Clustering, is_smoothed: bool) -> float:
    """The confidence scale T, from the split that names the clusters, else from the fitted one."""
    rows_NP = reduced[method.named_on or method.fit_on]
    labels = method.labels[method.named_on] if method.named_on else None
    start = 1.0 if is_smoothed else gaussian_scale(rows_NP, used.centroids_KP)
    return fit_scale(rows_NP, used.head, used.class_K, labels, start)


def far_images(
    usual: float, pca: PCA, features: Splits, reduced: Splits, used: Clustering, fit_on: str
) -> tuple[Splits, float]:
    """The images farther from every cluster than the share `usual` of the fitted ones, and that
    distance."""
    distances = {
        split: distance_to_clusters(pca, x, reduced[split], used.centroids_KP)
        for split, x in features.items()
    }
    limit = float(np.quantile(distances[fit_on], usual))
    return {split: distance > limit for split, distance in distances.items()}, limit


def record(
    config: ClusteringConfig, stage: Stage, inputs: Inputs, count: int, scale: float, limit: float
) -> None:
    stage.record(
        {
            "features": inputs.manifest.extraction["id"],
            "fit_on": inputs.method.fit_on,
            "clusters": count,
            "certainty": "confidence" if inputs.method.named_on else "margin",
            "confidence_scale": scale,
            "unusual_distance": limit,
            "config": json.loads(json.dumps(asdict(config), default=str)),
            "commit": git_commit(),
            "versions": versions(),
        }
    )


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


def probe_features(features: Splits, method: Method, seed: int) -> dict[str, Any] | None:
    """The part of metrics.json about the linear probe; None without labels to fit it to.

    Where test has no labels, `scored_on` is train, by cross-validation.
    """
    known = {s: method.labeled(features, s) for s in ("train", "test") if s in method.labels}
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


def choose_method(config: ClusteringConfig, features: Splits, manifest: Manifest) -> Method:
    fit_on = config.fit_on
    if fit_on not in features:
        if fit_on != "train":
            raise UserError(f"--fit-on {fit_on}: the extraction wrote only {', '.join(features)}")
        fit_on = artifacts.default_split(manifest.extraction["dataset"]["splits"])
        print(f"note: no train split; PCA and K-means are fitted on {fit_on}")
    return Method(
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
