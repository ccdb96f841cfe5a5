"""Cluster the features and score the clusters."""

import json
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch

from src.clusters.choose_k import candidates, scan, scan_table
from src.clusters.confidence import fit_scale, gaussian_scale, sample
from src.clusters.fine import FineClusters, find_fine
from src.clusters.flags import ClusteringConfig
from src.clusters.head import ClusterHead, batches
from src.clusters.inputs import Inputs, load_views, read_inputs
from src.clusters.method import Clustering, Method, Splits
from src.clusters.naming import follow, name_again, remember_last, say_what_is_older, suggest
from src.clusters.pca import PCA
from src.clusters.scoring import (
    fit_scores,
    over_seeds,
    pca_scores,
    probe_scores,
    score,
    score_baseline,
)
from src.clusters.summary import metrics_report, pca_lines
from src.clusters.trust import trust_report
from src.runtime.cli import UserError, check_seed
from src.storage import artifacts
from src.storage.artifacts import CLUSTERING, ExtractionRecord, Stage
from src.storage.scores import VERSION, ClusteringName, Scores, used_splits
from src.tracking.tracker import stage_tracker


def run(config: ClusteringConfig) -> None:
    _check(config)
    directory = config.feature_dir
    if config.names:
        name_again(directory)
        return
    if config.words or config.word_list:
        suggest(directory, config.words, config.word_list)
        return
    with artifacts.writing(directory, CLUSTERING) as stage:
        inputs = read_inputs(config)
        remember_last(directory, inputs.pictures)
        scores = cluster(config, stage, inputs)
        print(metrics_report(scores))
        remember_last(directory, inputs.pictures)
        try:
            follow(directory)
        except UserError as error:
            print(f"note: no names: {error}")
        say_what_is_older(directory)
    track(config, inputs.manifest.extraction, scores)
    print(f"wrote {directory / artifacts.METRICS} and the clusters")


def cluster(config: ClusteringConfig, stage: Stage, inputs: Inputs) -> Scores:
    """Compute and write everything; returns the scores."""
    method, features, fit_on = inputs.method, inputs.features, inputs.method.fit_on
    pca, reduced = method.reduce(features)
    size, most = len(features[fit_on]), inputs.counts[-1]
    smoothed_NP = method.smooth(reduced, most)
    print(pca_lines(pca_scores(pca), pca.mean_D.size, config.components))
    scanned = None
    if len(inputs.counts) > 1:
        x_NP = reduced[fit_on] if smoothed_NP is None else smoothed_NP
        scanned = scan(x_NP, inputs.counts, config.seed)
        print(scan_table(scanned))
    count = scanned["picked"] if scanned else inputs.counts[0]
    if method.neighbors_for(size, count) != method.neighbors_for(size, most):
        smoothed_NP = method.smooth(reduced, count)

    found = method.clusterings(reduced, smoothed_NP, count, config.seed)
    if empty := emptied(found, fit_on):
        print(f"note: smoothing leaves {empty} more clusters empty: K-means is used without it")
        method, smoothed_NP = replace(method, hops=0), None
        inputs = inputs._replace(method=method)
        del found["smoothed"]
    used = found.get("smoothed", found["kmeans"])
    fine = find_fine(method, reduced, smoothed_NP, count, config.seed)
    head = calibrated_head(method, pca, reduced, used, features[fit_on], config.unusual)
    images = {s: per_image(head, x, used.clusters[s]) for s, x in features.items()}
    scores: Scores = {
        "version": VERSION,
        "fit": fit_scores(method, found),
        "pca": pca_scores(pca),
        **score(method, features, reduced, found),
        "unusual": {split: int(part.unusual_N.sum()) for split, part in images.items()},
    }
    if scanned:
        scores["scan"] = scanned
    compare(scores, config, inputs, reduced, smoothed_NP)
    images_NCSS = inputs.pictures and inputs.pictures.splits[fit_on].images
    views = load_views(inputs.manifest, fit_on, pca, used.head)
    if trust := trust_report(method, reduced[fit_on], images_NCSS, count, config.seed, views):
        scores["trust"] = trust

    save(stage, pca, reduced, used, fine, images)
    stage.write_json(artifacts.METRICS, scores)
    record(config, stage, inputs, count, head)
    return scores


def emptied(found: dict[ClusteringName, Clustering], fit_on: str) -> int:
    """How many more clusters of the fitted split are empty with smoothing than without."""
    used = {name: len(np.unique(one.clusters[fit_on])) for name, one in found.items()}
    return max(0, used["kmeans"] - used.get("smoothed", used["kmeans"]))


def compare(
    scores: Scores,
    config: ClusteringConfig,
    inputs: Inputs,
    reduced: Splits,
    smoothed_NP: np.ndarray | None,
) -> None:
    """Add the scores that flags ask for: of other seeds, of a classifier, of other features."""
    method, count = inputs.method, scores["fit"]["clusters"]
    if config.seeds:
        seeds = range(config.seed, config.seed + config.seeds)
        scores["seeds"] = over_seeds(method, reduced, smoothed_NP, count, seeds)
    if config.linear_probe and (probe := probe_scores(method, inputs.features, config.seed)):
        scores["linear_probe"] = probe
    if inputs.baselines:
        scores["baselines"] = {
            kind: score_baseline(method, x, count, config.seed)
            for kind, x in inputs.baselines.items()
        }


def calibrated_head(
    method: Method, pca: PCA, reduced: Splits, used: Clustering, fitted_ND: np.ndarray, usual: float
) -> ClusterHead:
    """The head of the clusters that are used, with its confidence scale, from the split that names
    them, and the distance from which on an image is unusual."""
    named_on = method.named_on
    head = ClusterHead(
        pca.mean_D, pca.components_PD, used.centroids_KP, used.head, pca.l2_normalize,
        certainty_name="confidence" if named_on else "margin",
    )  # fmt: skip
    rows_NP = reduced[named_on or method.fit_on]
    head.confidence_scale = 1.0 if method.hops else gaussian_scale(rows_NP, used.centroids_KP)
    if named_on:
        labels_N = method.labels[named_on]
        rows = sample(np.flatnonzero(labels_N >= 0))
        scores = used.head(torch.tensor(rows_NP[rows]))
        head.confidence_scale = fit_scale(
            scores, used.class_K, labels_N[rows], start=head.confidence_scale
        )
    head.set_unusual(fitted_ND, usual)
    return head


class PerImage(NamedTuple):
    """What the head says about the images of a split."""

    certainty_N: np.ndarray
    distance_N: np.ndarray
    """To the centroid of the own cluster."""
    unusual_N: np.ndarray


def per_image(head: ClusterHead, features_ND: np.ndarray, clusters: np.ndarray) -> PerImage:
    # In place: small results between large intermediate ones could fragment the memory.
    count = len(clusters)
    found = PerImage(*(np.empty(count, dtype) for dtype in (np.float32, np.float32, np.bool_)))
    both = batches(features_ND, head.batch), batches(clusters, head.batch)
    for start, x_BD, own_B in zip(range(0, count, head.batch), *both, strict=True):
        _, sure_B, distances_BK, unusual_B, *_ = head(x_BD)
        results = sure_B, distances_BK.gather(1, own_B[:, None])[:, 0], unusual_B
        for all_N, part_B in zip(found, results, strict=True):
            all_N[start : start + head.batch] = part_B.numpy()
    return found


def record(
    config: ClusteringConfig, stage: Stage, inputs: Inputs, count: int, head: ClusterHead
) -> None:
    stage.record(
        {
            "features": inputs.manifest.extraction["id"],
            "fit_on": inputs.method.fit_on,
            "clusters": count,
            "certainty": head.certainty_name,
            "confidence_scale": head.confidence_scale,
            "unusual_distance": head.unusual_distance,
            "config": json.loads(json.dumps(asdict(config), default=str)),
        }
    )


def _check(config: ClusteringConfig) -> None:
    for flag, value, least in (
        ("--components", config.components, 1),
        ("--restarts", config.restarts, 1),
        ("--hops", config.hops, 1),
        ("--neighbors", 1 if config.neighbors is None else config.neighbors, 1),
        ("--seeds", 2 if config.seeds is None else config.seeds, 2),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
    if not 0 < config.unusual <= 1:
        raise UserError(f"--unusual {config.unusual}: it must be above 0 and at most 1")
    check_seed(config.seed)
    candidates(config.clusters, classes=0)  # raises if --clusters cannot be parsed


def save(
    stage: Stage,
    pca: PCA,
    reduced: Splits,
    used: Clustering,
    fine: FineClusters,
    images: dict[str, PerImage],
) -> None:
    """Write every array that later stages read."""
    stage.save(artifacts.PCA_MEAN, pca.mean_D)
    stage.save(artifacts.PCA_COMPONENTS, pca.components_PD)
    stage.save(artifacts.PCA_VARIANCE_RATIO, pca.variance_ratio_P)
    stage.save(artifacts.CENTROIDS, used.centroids_KP)
    stage.save(artifacts.HEAD_WEIGHTS, used.head.weights.numpy())
    stage.save(artifacts.HEAD_BIAS, used.head.bias.numpy())
    stage.save(artifacts.CLUSTER_TO_CLASS, used.class_K)
    stage.save(artifacts.FINE_TREE, fine.tree)
    for split in reduced:
        stage.save(artifacts.REDUCED, reduced[split], split)
        stage.save(artifacts.ASSIGNMENTS, used.clusters[split], split)
        stage.save(artifacts.FINE, fine.fine[split], split)
        stage.save(artifacts.CERTAINTY, images[split].certainty_N, split)
        stage.save(artifacts.DISTANCE, images[split].distance_N, split)
        stage.save(artifacts.UNUSUAL, images[split].unusual_N, split)


def track(config: ClusteringConfig, extraction: ExtractionRecord, scores: Scores) -> None:
    """Log the scores to W&B, in the group of the training that the features come from."""
    parts = {"clusters": scores["kmeans"]}
    if "smoothed" in scores:
        parts["smoothed"] = scores["smoothed"]
    for kind, baseline in scores.get("baselines", {}).items():
        parts[f"baselines/{kind}"] = baseline["kmeans"]
    with stage_tracker(config.wandb, config.wandb_dir, "clustering", config, extraction) as tracker:
        for prefix, part in parts.items():
            for split, of_split in part["splits"].items():
                tracker.log(of_split, f"{prefix}/{split}")
        for split, of_split in used_splits(scores).items():
            if "per_class" in of_split:
                rows = [[name, *values.values()] for name, values in of_split["per_class"].items()]
                columns = ["class", "precision", "recall", "f1"]
                tracker.table(f"clusters/{split}/classes", columns, rows)
        tracker.log(scores["fit"], "kmeans")
        if "linear_probe" in scores:
            tracker.log(scores["linear_probe"], "linear_probe")
        tracker.log(scores["pca"], "reduction")
        for component, cumulative in enumerate(scores["pca"]["cumulative"], start=1):
            tracker.log({"component": component, "cumulative": cumulative}, "pca")
