"""The clustering stage at the full size of STL-10, and its own code against scikit-learn's.

    python benchmarks/clustering_scale.py
    python benchmarks/clustering_scale.py --rows 1000000    # every stage, step by step

Makes 113,000 clustered features of 2,048 dimensions in a temporary directory (0.9 GB), runs
src/clustering.py on them, fitted on train and on all unlabeled ones, and measures its time and
memory. Then, in this process: nearest neighbors and the exact silhouette against scikit-learn's,
and the exact PCA against a full SVD. Exit code 1 if a target is missed.

With --rows: imports as many rows of features in float16, clusters them, draws the page and predicts
one row; prints the seconds and memory of every step (`step_times.py`). A million rows of 2,048
features take 13 GB of disk.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import subspace_angles
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from src.clusters.pca import fit_pca
from src.evaluation.neighbors import l2_normalized, nearest, unit
from src.evaluation.silhouette import silhouette_samples
from src.runtime.cli import run_script
from src.storage import artifacts

CLASSES = [f"class {c}" for c in range(10)]
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class BenchmarkConfig:
    rows: int | None = None
    """Rows of imported features for every stage, in place of the data set below."""
    clusters: int = 50
    """Of these rows."""
    unlabeled: int = 100_000
    """Images of the unlabeled split."""
    train: int = 5_000
    """Images of the train split."""
    test: int = 8_000
    """Images of the test split."""
    dimensions: int = 2048
    """Length of a feature vector."""
    silhouette_samples: int = 30_000
    """Samples, of 100 dimensions, to compare the silhouette with scikit-learn's on."""
    seed: int = 0
    """Random seed of the features."""
    directory: Path | None = None
    """Directory for the temporary features; by default the system's."""


def main(config: BenchmarkConfig) -> int:
    if config.rows:
        return every_stage(config, config.rows)
    with tempfile.TemporaryDirectory(dir=config.directory) as directory:
        write_features(config, Path(directory))
        in_time = [stage(Path(directory), fit_on) for fit_on in ("train", "unlabeled")]
        neighbors_in_time = neighbors(config, Path(directory))
    return 0 if all([*in_time, neighbors_in_time, silhouette(config), pca(config)]) else 1


def every_stage(config: BenchmarkConfig, rows: int) -> int:
    """Import, cluster, draw and predict `rows` of features, with the time of every step."""
    with tempfile.TemporaryDirectory(dir=config.directory) as directory:
        features, one, results = (Path(directory) / n for n in ("x.npy", "one.npy", "features"))
        shape = (rows, config.dimensions)
        out = np.lib.format.open_memmap(features, mode="w+", dtype=np.float16, shape=shape)
        clustered(out, config.seed, stream=0)
        np.save(one, out[:1])
        del out
        quiet = ("--wandb", "disabled")
        for script, *flags in (
            ("src/import_features.py", "--train", features),
            ("src/clustering.py", "--clusters", config.clusters, *quiet),
            ("visualize_features.py", *quiet),
            ("src/inference.py", "--features", one, *quiet),
        ):
            command = [sys.executable, "benchmarks/step_times.py", script, *flags]
            command += ["--feature-dir", results]
            print(f"\n{script}, {rows:,} x {config.dimensions:,}", flush=True)
            if code := subprocess.run([*map(str, command)], cwd=ROOT).returncode:
                return code
    return 0


def write_features(config: BenchmarkConfig, directory: Path) -> None:
    images = {"unlabeled": config.unlabeled, "train": config.train, "test": config.test}
    with artifacts.writing(directory, artifacts.EXTRACTION) as extraction:
        for stream, (split, count) in enumerate(images.items()):
            shape = (count, config.dimensions)
            with extraction.create(artifacts.FEATURES, shape, split) as out:
                labels = clustered(out, config.seed, stream)
            if split != "unlabeled":
                extraction.save(artifacts.LABELS, labels, split)
        dataset = {
            "name": "stl10", "data_dir": ".", "cache_dir": None, "image_size": 96,
            "fingerprint": "", "class_names": CLASSES, "splits": images,
        }  # fmt: skip
        extraction.record(
            {
                "id": "benchmark", "dataset": dataset, "precision": "float32",
                "checkpoint": {"file": "", "digest": "", "epoch": 0, "config": {}},
                "tracking": {"group": "", "run_id": None},
            }
        )  # fmt: skip


def stage(directory: Path, fit_on: str) -> bool:
    started = time.monotonic()
    command = [sys.executable, "src/clustering.py", "--feature-dir", str(directory)]
    command += ["--wandb", "disabled", "--fit-on", fit_on]
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    gigabytes = peak / (1e9 if sys.platform == "darwin" else 1e9 / 1024)
    print(
        f"stage, fitted on {fit_on}: {seconds:.0f} s (target 120), peak memory {gigabytes:.1f} GB "
        "(target 6)"
    )
    return seconds <= 120 and gigabytes <= 6


def neighbors(config: BenchmarkConfig, directory: Path, k: int = 10, sample: int = 5_000) -> bool:
    """Of all images among all, as the smoothing looks for them twice."""
    x = np.concatenate([
        np.load(artifacts.path(artifacts.REDUCED, directory, s)) for s in artifacts.SPLITS
    ])  # fmt: skip
    started = time.monotonic()
    _, ours = nearest(unit(x), unit(x), k, torch.arange(len(x)))
    seconds = time.monotonic() - started
    rows, x = np.random.default_rng(config.seed).permutation(len(x))[:sample], l2_normalized(x)
    model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x)
    started = time.monotonic()
    theirs = model.kneighbors(x[rows], return_distance=False)
    ratio = (time.monotonic() - started) * len(x) / sample / seconds
    found = ours.numpy()[rows]
    same = np.mean([len(set(a) & set(b)) / k for a, b in zip(found, theirs, strict=True)])
    print(
        f"nearest {k} of {len(x):,} x {x.shape[1]}: {seconds:.0f} s (target 60 for two hops), "
        f"{ratio:.1f} times faster than scikit-learn, {same:.2%} the same"
    )
    return bool(2 * seconds <= 60 and same > 0.999)


def clustered(out_ND: np.ndarray, seed: int, stream: int, block: int = 4096) -> np.ndarray:
    """Fill `out_ND` with features like a ReLU network's, and return the class (N,) of each row.

    Ten overlapping classes in 128 dimensions, a random map to D, some noise, ReLU.
    """
    shared = np.random.default_rng(seed)
    centers = shared.normal(size=(len(CLASSES), 128)).astype(np.float32)
    spread = np.geomspace(1, 0.1, 128, dtype=np.float32)
    lift = shared.normal(size=(128, out_ND.shape[1])).astype(np.float32)
    own = np.random.default_rng([seed, stream])
    labels = own.integers(len(CLASSES), size=len(out_ND))
    for start in range(0, len(out_ND), block):
        rows = slice(start, start + block)
        z = centers[labels[rows]] * 0.5 + own.normal(size=(len(out_ND[rows]), 128))
        x = (z.astype(np.float32) * spread) @ lift
        x += 0.1 * own.standard_normal(x.shape, dtype=np.float32)
        out_ND[rows] = np.maximum(x, 0)
    return labels


def silhouette(config: BenchmarkConfig) -> bool:
    rng = np.random.default_rng(config.seed)
    clusters = rng.integers(10, size=config.silhouette_samples)
    x = rng.normal(size=(10, 100))[clusters] + rng.normal(size=(len(clusters), 100))
    x = x.astype(np.float32)
    started = time.monotonic()
    ours = silhouette_samples(x, clusters)
    middle = time.monotonic()
    theirs = metrics.silhouette_samples(x, clusters)
    ratio = (time.monotonic() - middle) / (middle - started)
    error = np.abs(ours - theirs).max()
    print(
        f"silhouette of {len(x):,} x 100: {middle - started:.2f} s, {ratio:.1f} times faster than "
        f"scikit-learn (target 4), largest difference {error:.1e} (target 1e-4)"
    )
    return ratio >= 4 and error <= 1e-4


def pca(config: BenchmarkConfig) -> bool:
    x = np.empty((config.train, config.dimensions), np.float32)
    clustered(x, config.seed, stream=1)
    started = time.monotonic()
    ours = fit_pca(x, 100, l2_normalize=True)
    middle = time.monotonic()
    theirs = PCA(100, svd_solver="full").fit(l2_normalized(x).astype(np.float64))
    ratio = (time.monotonic() - middle) / (middle - started)
    angle = subspace_angles(
        ours.components_PD.T.astype(np.float64), np.asarray(theirs.components_).T
    ).max()
    error = np.abs(ours.variance_ratio_P - theirs.explained_variance_ratio_).max()
    print(
        f"PCA of {len(x):,} x {x.shape[1]:,}: {middle - started:.2f} s, {ratio:.1f} times faster "
        f"than a full SVD, subspace angle {angle:.1e} (target 1e-3), largest difference of a "
        f"variance ratio {error:.1e} (target 1e-4)"
    )
    return bool(angle <= 1e-3 and error <= 1e-4)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
