import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset.load_dataset import load_dataset
from src.clustering import ClusteringConfig, main
from src.clusters.choose_k import candidates, scan
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import EXTRACTION

ROOT = Path(__file__).parents[1]
NAMES = ["ant", "bee", "cat"]


def blobs(count: int, seed: int, dim: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Features of three directions far apart, and the direction of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    x = np.eye(3, dim)[labels] * rng.uniform(1, 9, (count, 1)) + 0.05 * rng.normal(
        size=(count, dim)
    )
    return x, labels


def write(directory: Path, names: list[str] = NAMES, **splits: tuple) -> ClusteringConfig:
    """A directory as the extraction leaves it, and a quick configuration for it."""
    for split, (x, labels) in splits.items():
        artifacts.save(artifacts.FEATURES, directory, x, split)
        if labels is not None:
            artifacts.save(artifacts.LABELS, directory, labels, split)
    sizes = {split: len(x) for split, (x, _) in splits.items()}
    part = {"id": "abc", "dataset": {"class_names": names, "splits": sizes}}
    artifacts.record(directory, EXTRACTION, part)
    return ClusteringConfig(directory, components=5, restarts=2, wandb="disabled")


def metrics(config: ClusteringConfig) -> dict:
    main(config)
    return json.loads((config.feature_dir / artifacts.METRICS).read_text())


def test_three_splits_give_every_file_and_metric(tmp_path: Path) -> None:
    config = write(
        tmp_path, unlabeled=(blobs(90, 0)[0], None), train=blobs(60, 1), test=blobs(30, 2)
    )
    found = metrics(config)
    for split in ("train", "test"):
        scores = found["splits"][split]
        assert scores["hungarian_accuracy"] == scores["transferred_accuracy"] == 1.0
        assert scores["nmi"] == pytest.approx(1)
        assert scores["ari"] == pytest.approx(1)
        assert scores["knn_accuracy"] == 1.0
        assert scores["per_class"]["bee"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert set(found["splits"]["unlabeled"]) == {
        "images", "silhouette", "davies_bouldin", "cluster_sizes"
    }  # fmt: skip
    assert found["splits"]["unlabeled"]["cluster_sizes"] == [30, 30, 30]
    assert found["pca"]["components"] == 5
    assert len(found["pca"]["cumulative"]) == 5
    assert found["kmeans"]["fit_on"] == "train"
    assert found["kmeans"]["clusters"] == 3
    part = artifacts.recorded(tmp_path, artifacts.CLUSTERING)
    assert part["features"] == "abc"
    assert part["clusters"] == 3


@pytest.mark.parametrize("whiten", [False, True])
def test_the_files_say_how_to_cluster_another_image(tmp_path: Path, whiten: bool) -> None:
    config = write(tmp_path, train=blobs(60, 1), test=blobs(30, 2))
    main(replace(config, components=2, whiten=whiten))  # more of them would be whitened noise
    x, labels = blobs(30, 2)
    x = x.astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = artifacts.load(artifacts.PCA_MEAN, tmp_path)
    components = artifacts.load(artifacts.PCA_COMPONENTS, tmp_path)
    centroids = artifacts.load(artifacts.CENTROIDS, tmp_path)
    reduced = (x - mean) @ components.T
    clusters = ((reduced[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    stored = artifacts.load(artifacts.REDUCED, tmp_path, "test")
    np.testing.assert_allclose(reduced, stored, atol=1e-5 * np.abs(stored).max())
    assert (clusters == artifacts.load(artifacts.ASSIGNMENTS, tmp_path, "test")).all()
    assert (artifacts.load(artifacts.CLUSTER_TO_CLASS, tmp_path)[clusters] == labels).all()
    if whiten:
        train = artifacts.load(artifacts.REDUCED, tmp_path, "train")
        np.testing.assert_allclose(train.std(axis=0, ddof=1), 1, rtol=1e-4)


def test_only_the_fit_split_moves_pca_and_centroids(tmp_path: Path) -> None:
    config = write(tmp_path, train=blobs(60, 1), test=blobs(30, 2))
    main(config)
    before = [artifacts.load(a, tmp_path).copy() for a in (artifacts.PCA_MEAN, artifacts.CENTROIDS)]
    main(write(tmp_path, train=blobs(60, 1), test=blobs(33, 3)))
    after = [artifacts.load(a, tmp_path) for a in (artifacts.PCA_MEAN, artifacts.CENTROIDS)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_names_from_one_split_can_fail_on_another(tmp_path: Path) -> None:
    x, labels = blobs(30, 2)
    config = write(tmp_path, train=blobs(60, 1), test=(x, (labels + 1) % 3))
    scores = metrics(config)["splits"]["test"]
    assert scores["hungarian_accuracy"] == 1.0
    assert scores["transferred_accuracy"] == scores["knn_accuracy"] == 0.0


def test_no_label_at_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write(tmp_path, [], unlabeled=(blobs(60, 0)[0], None))
    found = metrics(replace(config, seeds=2))
    assert found["kmeans"] | {"inertia": 0} == {
        "clusters": 10, "fit_on": "unlabeled", "named_on": None, "inertia": 0, "restarts": 2
    }  # fmt: skip
    assert artifacts.load(artifacts.CLUSTER_TO_CLASS, tmp_path).tolist() == [-1] * 10
    assert "no train split, PCA and K-means are fitted on unlabeled" in capsys.readouterr().out


def test_unknown_labels_are_left_out_of_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x, labels = blobs(60, 1)
    labels = labels.copy()
    labels[:6] = -1
    found = metrics(write(tmp_path, train=(x, labels), test=(x, np.full(60, -1))))
    assert found["splits"]["train"]["hungarian_accuracy"] == 1.0
    assert found["splits"]["train"]["images"] == 60
    assert np.sum(found["splits"]["train"]["confusion"]) == 54
    assert "nmi" not in found["splits"]["test"]
    assert "6 labels of -1" in capsys.readouterr().out


def test_more_clusters_than_classes(tmp_path: Path) -> None:
    config = replace(write(tmp_path, train=blobs(60, 1)), clusters="6")
    scores = metrics(config)["splits"]["train"]
    assert scores["majority_accuracy"] == 1.0 > scores["hungarian_accuracy"]
    assert np.array(scores["confusion"]).shape == (3, 4)
    named = artifacts.load(artifacts.CLUSTER_TO_CLASS, tmp_path).tolist()
    assert sorted(named) == [-1, -1, -1, 0, 1, 2]


def test_duplicate_points_leave_clusters_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x, labels = np.repeat(np.eye(3, 20), 8, axis=0), np.repeat(np.arange(3), 8)
    found = metrics(replace(write(tmp_path, train=(x, labels)), clusters="5", components=100))
    scores = found["splits"]["train"]
    assert sorted(scores["cluster_sizes"]) == [0, 0, 8, 8, 8]
    assert scores["hungarian_accuracy"] == 1.0
    assert scores["silhouette"] == pytest.approx(1)
    out = capsys.readouterr().out
    assert "2 clusters are empty" in out
    assert "span 2 dimensions, fewer than --components 100" in out


def test_one_class_and_one_cluster(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write(tmp_path, ["ant"], train=(blobs(30, 1)[0], np.zeros(30)))
    scores = metrics(replace(config, clusters="2"))["splits"]["train"]
    assert scores["nmi"] is scores["ari"] is None
    scores = metrics(replace(config, clusters="1", seeds=2))["splits"]["train"]
    assert scores["silhouette"] is scores["davies_bouldin"] is None
    assert scores["hungarian_accuracy"] == 1.0
    assert "note: train: NMI, ARI, silhouette, Davies-Bouldin undefined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": "0"}, "--clusters 0: expected a number"),
        ({"clusters": "9:5"}, "--clusters 9:5: expected"),
        ({"clusters": "1:5"}, "--clusters 1:5: expected"),
        ({"clusters": "many"}, "--clusters many: expected"),
        ({"clusters": "61"}, "61 clusters need as many images, train has 60"),
        ({"components": 0}, "--components 0"),
        ({"restarts": 0}, "--restarts 0"),
        ({"seeds": 1}, "--seeds 1"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32 - 2, "seeds": 3}, "--seed 4294967296"),
        ({"fit_on": "unlabeled"}, "--fit-on unlabeled: there are only features of train"),
    ],
)
def test_flags_that_cannot_be_met(tmp_path: Path, change: dict, message: str) -> None:
    config = write(tmp_path, train=blobs(60, 1))
    with pytest.raises(UserError, match=message):
        main(replace(config, **change))


def test_features_that_cannot_be_clustered(tmp_path: Path) -> None:
    x, labels = blobs(60, 1)
    x[3, 4] = np.nan
    x[5, :2] = np.inf
    with pytest.raises(UserError, match=r"train_features\.npy holds 3 numbers that are NaN or inf"):
        main(write(tmp_path / "nan", train=(x, labels)))
    with pytest.raises(UserError, match="all 60 rows are equal"):
        main(write(tmp_path / "constant", train=(np.full((60, 20), 0.3), labels)))
    with pytest.raises(UserError, match="different lengths"):
        main(write(tmp_path / "dim", train=blobs(60, 1), test=blobs(60, 1, dim=21)))
    with pytest.raises(UserError, match="labels from 0 to 2 for 60 images of 2 classes"):
        main(write(tmp_path / "labels", ["a", "b"], train=blobs(60, 1)))
    config = write(tmp_path / "rows", train=blobs(60, 1))
    artifacts.save(artifacts.FEATURES, config.feature_dir, blobs(50, 1)[0], "train")
    with pytest.raises(UserError, match="has 50 rows, the extraction wrote 60"):
        main(config)


def test_a_failed_run_leaves_no_finished_clusters(tmp_path: Path) -> None:
    main(write(tmp_path, train=blobs(60, 1)))
    with pytest.raises(UserError):
        main(write(tmp_path, train=(np.ones((60, 20)), None)))
    with pytest.raises(UserError, match=r"no finished results of src/clustering\.py"):
        artifacts.recorded(tmp_path, artifacts.CLUSTERING)


def test_files_of_a_split_that_is_gone_are_removed(tmp_path: Path) -> None:
    main(write(tmp_path, train=blobs(60, 1), test=blobs(30, 2)))
    main(write(tmp_path, train=blobs(60, 1)))
    assert not artifacts.exists(artifacts.REDUCED, tmp_path, "test")
    assert not artifacts.exists(artifacts.ASSIGNMENTS, tmp_path, "test")


def test_candidates() -> None:
    assert candidates("7", 3) == [7]
    assert candidates("2:4", 3) == [2, 3, 4]
    assert candidates("auto", 3) == list(range(2, 21))
    assert candidates(None, 3) == [3]
    assert candidates(None, 0) == candidates(None, 1) == [10]


def test_the_scan_finds_the_number_of_blobs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = 8 * np.eye(5, 8)[np.arange(200) % 5] + rng.normal(size=(200, 8))
    assert scan(x, [2, 3, 4, 5, 6, 7], seed=0, runs=3, restarts=3)["picked"] == 5

    found = metrics(replace(write(tmp_path, train=blobs(60, 1)), clusters="2:5"))
    assert found["scan"]["picked"] == found["kmeans"]["clusters"] == 3
    assert found["scan"]["clusters"] == [2, 3, 4, 5]
    assert len(found["scan"]["stability"]) == len(found["scan"]["silhouette"]) == 4


def test_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    config = replace(write(tmp_path, train=blobs(60, 1)), clusters="7", restarts=1, seeds=3)
    runs = [
        metrics(replace(config, seed=s, seeds=None))["splits"]["train"]["ari"] for s in range(3)
    ]
    found = metrics(config)["seeds"]
    assert found["count"] == 3
    assert found["splits"]["train"]["ari"]["mean"] == pytest.approx(np.mean(runs))
    assert found["splits"]["train"]["ari"]["std"] == pytest.approx(np.std(runs, ddof=1))


def test_baselines_follow_the_same_protocol(tmp_path: Path) -> None:
    digits = load_dataset("digits", tmp_path)
    splits = {
        name: (split.images.reshape(len(split.images), -1), split.labels)
        for name, split in digits.splits.items()
    }
    config = replace(write(tmp_path, list(digits.class_names), **splits), baselines=True)
    part = artifacts.recorded(tmp_path, EXTRACTION)
    part["dataset"] |= {
        "name": "digits", "data_dir": ".", "cache_dir": None, "image_size": 32,
        "fingerprint": digits.fingerprint
    }  # fmt: skip
    artifacts.record(tmp_path, EXTRACTION, part)
    with pytest.raises(UserError, match=r"run python src/feature_extraction\.py --untrained first"):
        main(config)
    for name, (x, _) in splits.items():
        noise = np.random.default_rng(0).normal(size=(len(x), 30))
        artifacts.save(artifacts.UNTRAINED_FEATURES, tmp_path, noise, name)
    found = metrics(config)
    # The "learned" features are raw pixels as well here, so the figures must be the same.
    assert found["baselines"]["raw_pixels"]["splits"] == found["splits"]
    assert found["splits"]["test"]["nmi"] > 0.5
    assert found["baselines"]["untrained"]["splits"]["test"]["nmi"] < 0.2

    part["dataset"]["fingerprint"] = "other"
    artifacts.record(tmp_path, EXTRACTION, part)
    with pytest.raises(UserError, match="other images than the features came from"):
        main(config)


def test_as_a_person_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, "src/clustering.py", "--feature-dir", str(tmp_path)]
    command += ["--wandb", "disabled"]
    early = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert early.returncode == 2
    assert early.stderr.count("\n") == 1
    assert "src/feature_extraction.py" in early.stderr
    write(tmp_path, train=blobs(60, 1), test=blobs(30, 2))
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "Hungarian accuracy" in run.stdout
    assert "bee" in run.stdout
    assert "learned features  test                1.000" in run.stdout
