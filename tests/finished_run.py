"""A small finished run, made with scikit-learn, for the tests of what comes after clustering."""

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize as to_length_1

from dataset.load_dataset import Dataset, load_dataset
from src import artifacts, checkpoint
from src.artifacts import (
    ASSIGNMENTS,
    CENTROIDS,
    CLUSTER_TO_CLASS,
    CLUSTERING,
    FEATURES,
    LABELS,
    PCA_COMPONENTS,
    PCA_MEAN,
    PCA_VARIANCE_RATIO,
    REDUCED,
)
from src.augment import normalize
from src.feature_extraction import ExtractionConfig, main
from src.models.simclr import SimCLR, calibrate_batch_norm


def write_checkpoint(
    file: Path, name: str, data_dir: Path, arch: str = "resnet18", small_images: bool = False
) -> Dataset:
    """An untrained network with calibrated batch norm, as `src/train.py` saves it."""
    dataset = load_dataset(name, data_dir)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = SimCLR(arch, small_images)  # type: ignore[arg-type]
    for bn in model.backbone.batch_norms():
        torch.nn.init.uniform_(bn.weight, 0.5, 1)  # with 0 every residual branch is silent
    images = next(iter(dataset.splits.values())).images[:128]
    calibrate_batch_norm(
        model.backbone, [normalize(torch.from_numpy(np.ascontiguousarray(images)))]
    )
    config = {
        "dataset": name, "data_dir": str(data_dir), "arch": arch, "small_images": small_images,
    }  # fmt: skip
    described = {
        "fingerprint": dataset.fingerprint,
        "image_size": dataset.image_size,
        "class_names": list(dataset.class_names),
    }
    state = {"model": model.state_dict(), "epoch": 0, "config": config, "dataset": described}
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(file, state | {"tracking": {}})
    return dataset


def digits_run(parent: Path) -> tuple[Path, Path]:
    """A finished run on the digits, made once per test session: its features and checkpoint."""
    features, file = parent / "digits_features", parent / "digits" / checkpoint.file_name(0)
    if not features.exists():
        write_checkpoint(file, "digits", Path())
        extract(features, file)
        cluster(features)
    return features, file


def extract(directory: Path, file: Path) -> None:
    main(ExtractionConfig(checkpoint=file, feature_dir=directory, device="cpu"))


def cluster(
    directory: Path,
    fit_on: str = "train",
    clusters: int = 10,
    components: int = 20,
    l2_normalize: bool = True,
) -> None:
    """What `src/clustering.py` leaves, by scikit-learn."""
    part = artifacts.recorded(directory, artifacts.EXTRACTION)
    splits = part["dataset"]["splits"]

    def prepared(split: str) -> np.ndarray:
        features = np.array(artifacts.load(FEATURES, directory, split))
        return to_length_1(features) if l2_normalize else features

    pca = PCA(components, svd_solver="full").fit(prepared(fit_on))
    reduced = {s: (prepared(s) - pca.mean_) @ pca.components_.T for s in splits}
    kmeans = KMeans(clusters, n_init=3, random_state=0).fit(reduced[fit_on])
    assigned = {s: kmeans.predict(reduced[s]).astype(np.int64) for s in splits}
    artifacts.save(PCA_MEAN, directory, pca.mean_)
    artifacts.save(PCA_COMPONENTS, directory, pca.components_)
    artifacts.save(PCA_VARIANCE_RATIO, directory, pca.explained_variance_ratio_)
    artifacts.save(CENTROIDS, directory, kmeans.cluster_centers_)
    for split in splits:
        artifacts.save(REDUCED, directory, reduced[split], split)
        artifacts.save(ASSIGNMENTS, directory, assigned[split], split)
    to_class = np.full(clusters, -1)
    if artifacts.exists(LABELS, directory, fit_on):
        counts = np.zeros((clusters, len(part["dataset"]["class_names"])))
        np.add.at(counts, (assigned[fit_on], artifacts.load(LABELS, directory, fit_on)), 1)
        rows, columns = linear_sum_assignment(-counts)
        to_class[rows] = columns
    artifacts.save(CLUSTER_TO_CLASS, directory, to_class)
    recorded = {
        "features": part["id"], "normalize": l2_normalize, "whiten": False, "fit_on": fit_on,
        "clusters": clusters, "config": {}, "commit": None, "versions": {},
    }  # fmt: skip
    artifacts.record(directory, CLUSTERING, recorded)
