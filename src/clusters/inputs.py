"""What clustering reads: features and labels, other features to compare with, pictures, views."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.load_dataset import Dataset, reload_dataset
from src.clusters.choose_k import candidates, fewer
from src.clusters.flags import ClusteringConfig
from src.clusters.head import LinearHead
from src.clusters.method import Method, Splits
from src.clusters.pca import PCA
from src.clusters.trust import Views
from src.runtime.cli import UserError, printable
from src.storage import artifacts, checkpoint
from src.storage.artifacts import FEATURES, LABELS, UNTRAINED_FEATURES, Manifest


class Inputs(NamedTuple):
    """What clustering reads, and how it clusters."""

    manifest: Manifest
    features: Splits
    method: Method
    counts: range
    """The numbers of clusters to choose from."""
    pictures: Dataset | None
    """None where they are missing."""
    baselines: dict[str, Splits]
    """Other features, by their kind."""


def read_inputs(config: ClusteringConfig) -> Inputs:
    manifest = Manifest(config.feature_dir)
    splits = manifest.extraction["dataset"]["splits"]
    features = {split: manifest.load(FEATURES, split) for split in splits}
    method = choose_method(config, features, manifest)
    counts = choose_counts(config.clusters, method, len(features[method.fit_on]))
    pictures, baselines = load_pictures(manifest, config.baselines), {}
    if config.baselines:
        compared = [s for s in features if s in method.labels or s == method.fit_on]
        baselines = load_baselines(manifest, pictures, compared)
    return Inputs(manifest, features, method, counts, pictures, baselines)


def choose_counts(flag: str | None, method: Method, images: int) -> range:
    """The numbers of clusters to choose from, for as many images of the fitted split. Where that
    has labels, the classes of other splits do not count."""
    classes = len(method.class_names)
    if (labels := method.labels.get(method.fit_on)) is not None:
        classes = len(np.unique(labels[labels >= 0]))
    counts = candidates(flag, classes)
    if flag is None:
        count = fewer(counts[0], images, classes > 0)
        counts = range(count, count + 1)
    if counts[-1] > images:
        raise UserError(
            f"--clusters: {counts[-1]} clusters need as many images, {method.fit_on} has {images}"
        )
    return counts


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


def load_baselines(
    manifest: Manifest, pictures: Dataset | None, splits: list[str]
) -> dict[str, Splits]:
    """Raw pixels, uint8, and features of the network before training, of `splits`, each (N, D);
    the latter only if the features are not the same, and neither without pictures."""
    untrained, recorded = {}, manifest.extraction["checkpoint"]
    if pictures is None:
        print("note: no baselines without pictures")
        return {}
    if recorded is None:
        print("note: the features were imported, so raw pixels are the only baseline")
    elif Path(recorded["file"]).name == checkpoint.file_name(0):
        print("note: the features are those of epoch 0, so raw pixels are the only baseline")
    else:
        untrained = {split: manifest.load(UNTRAINED_FEATURES, split) for split in splits}
    images = {split: pictures.splits[split].images for split in splits}
    pixels = {split: np.ascontiguousarray(x).reshape(len(x), -1) for split, x in images.items()}
    return {"raw_pixels": pixels} | ({"untrained": untrained} if untrained else {})


def load_pictures(manifest: Manifest, is_required: bool) -> Dataset | None:
    """The pictures that the features were computed from; None where they are missing.

    Raises:
        UserError: they are missing and `is_required`, unless they were never known.
    """
    recorded = manifest.extraction["dataset"]
    try:
        return reload_dataset(recorded)
    except UserError as error:
        if is_required and recorded["data_dir"]:
            raise
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
