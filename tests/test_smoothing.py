"""Neighbors, smoothed rows and the linear head against naive loops and scikit-learn."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from src.clusters.head import fit_head, nearest_centroid
from src.clusters.method import Method
from src.clusters.naming import name_again
from src.clusters.smoothing import smooth
from src.evaluation.metrics import hungarian_accuracy
from src.evaluation.neighbors import CosineBank, lifted, nearest, unit
from src.storage import artifacts
from src.storage.artifacts import Manifest
from tests.helpers.blobs import blobs, metrics, write


@pytest.mark.parametrize(
    ("bank", "queries", "k"),
    [
        (3000, 700, 10),
        (2999, None, 10),
        (3000, 5, 100),
        (40, None, 10),
        (7, None, 10),
        (1, None, 3),
    ],
)
def test_neighbors_are_those_of_scikit_learn(bank: int, queries: int | None, k: int) -> None:
    rng = np.random.default_rng(0)
    bank_ND = rng.normal(size=(bank, 6))
    asked = bank_ND if queries is None else rng.normal(size=(queries, 6))
    own = torch.arange(bank) if queries is None else None
    similarity, rows = CosineBank(bank_ND).nearest(asked, k, own)
    k = min(k, bank - (queries is None))
    assert rows.shape == similarity.shape == (len(asked), k)
    if not k:
        return
    model = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank_ND)
    distances, expected = model.kneighbors(None if queries is None else asked)
    np.testing.assert_allclose(similarity, 1 - distances, atol=1e-5)
    assert np.mean(rows.numpy() == expected) > 0.999  # but for the order of equal ones


def test_equal_rows_are_each_others_neighbors() -> None:
    x = np.eye(50, 60).repeat(40, axis=0)  # 40 columns of similarity 1, more than k
    _, rows = nearest(unit(x), unit(x), 10, torch.arange(len(x)))
    each = np.arange(len(x))[:, None]
    assert (rows.numpy() // 40 == each // 40).all()
    assert (rows.numpy() != each).all()
    assert all(len(set(row)) == 10 for row in rows.tolist())


@pytest.mark.parametrize(("step", "k"), [(1, 5), (3, 5), (60, 3)])
def test_the_nearest_by_distance_among_some_rows(step: int, k: int) -> None:
    x = np.random.default_rng(0).normal(size=(240, 20)).astype(np.float32)
    x[120:150] = x[0]  # more copies than neighbors: a point may not be among its own nearest
    candidates = np.arange(0, 240, step)
    own = torch.full((240,), -1)
    own[candidates] = torch.arange(len(candidates))
    _, neighbors = nearest(*lifted(x[candidates], x), 5, own)
    assert neighbors.shape == (240, k)
    for row, places in enumerate(neighbors.numpy()):
        distances = np.linalg.norm(np.float64(x[candidates]) - x[row], axis=1)
        distances[candidates == row] = np.inf
        assert len(set(places)) == len(places)
        np.testing.assert_allclose(distances[places], np.sort(distances)[: len(places)], atol=1e-6)


def test_smoothing_is_the_formula() -> None:
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    rows = [row / np.linalg.norm(row) for row in x.astype(np.float64)]
    for _ in range(2):
        after = []
        for i, row in enumerate(rows):
            others = sorted((j for j in range(60) if j != i), key=lambda j: -(rows[j] @ row))
            total = row + np.mean([rows[j] for j in others[:4]], axis=0)
            after.append(total / np.linalg.norm(total))
        rows = after
    np.testing.assert_allclose(smooth(x, hops=2, neighbors=4), rows, atol=1e-6)


def test_few_rows_and_no_direction() -> None:
    assert smooth(np.ones((1, 3), np.float32), 2, 10).tolist() == pytest.approx(
        np.full((1, 3), 3**-0.5)
    )
    x = np.float32([[0, 0], [1, 0], [0.9, 0.1]])
    assert np.isfinite(smooth(x, 2, 10)).all()


def test_smoothed_clusters_of_digits_are_better_and_used(tmp_path: Path) -> None:
    x, labels = load_digits(return_X_y=True)
    config = write(tmp_path, list("0123456789"), train=(x, labels))
    result = metrics(replace(config, components=30, seeds=3))
    plain, smoothed = (part["splits"]["train"] for part in (result["kmeans"], result["smoothed"]))
    assert smoothed["nmi"] > plain["nmi"] + 0.05
    assert smoothed["knn_accuracy"] == plain["knn_accuracy"]
    assert result["fit"]["head_agreement"] > 0.95
    assert result["seeds"]["smoothed"]["train"]["nmi"]["mean"] > plain["nmi"] + 0.05
    clusters = Manifest(tmp_path).load(artifacts.ASSIGNMENTS, "train")
    assert hungarian_accuracy(labels, clusters) == smoothed["hungarian_accuracy"]


def test_both_are_scored_in_the_space_of_the_components(tmp_path: Path) -> None:
    """Blobs so far apart that both find the same clusters, hence the same silhouettes."""
    result = metrics(write(tmp_path, train=blobs(60, 1), test=blobs(30, 2)))
    for split in ("train", "test"):
        plain, smoothed = (part["splits"][split] for part in (result["kmeans"], result["smoothed"]))
        for name in ("silhouette", "davies_bouldin"):
            assert smoothed[name] == pytest.approx(plain[name], abs=1e-9)
    centroids = Manifest(tmp_path).load(artifacts.CENTROIDS)
    reduced = Manifest(tmp_path).load(artifacts.REDUCED, "train")
    clusters = Manifest(tmp_path).load(artifacts.ASSIGNMENTS, "train")
    means = [reduced[clusters == k].mean(axis=0) for k in range(3)]
    np.testing.assert_allclose(centroids, means, atol=1e-6)


def test_without_smoothing_only_k_means(tmp_path: Path) -> None:
    config = write(tmp_path, train=blobs(60, 1))
    both, alone = metrics(config), metrics(replace(config, smooth=False, seeds=2))
    assert "smoothed" not in alone
    assert "smoothed" not in alone["seeds"]
    assert alone["kmeans"] == both["kmeans"]


def test_the_flags_reach_the_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    for hops, k in ((1, 3), (3, 7)):
        method = Method("train", {}, [], False, 8, 1, hops=hops, neighbors=k)
        np.testing.assert_array_equal(method.smooth({"train": x}, 25), smooth(x, hops, k))


@pytest.mark.parametrize(("clusters", "k"), [(50, 1), (25, 1), (12, 3), (4, 10), (1, 10)])
def test_neighbors_follow_the_size_of_the_clusters(clusters: int, k: int) -> None:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    method = Method("train", {}, [], False, 8, 1, hops=1, neighbors=None)
    np.testing.assert_array_equal(method.smooth({"train": x}, clusters), smooth(x, 1, k))


def test_after_a_scan_neighbors_follow_the_number_picked(tmp_path: Path) -> None:
    config = write(tmp_path, train=blobs(30, 1))
    picked, three = (metrics(replace(config, clusters=flag)) for flag in ("2:15", "3"))
    assert picked["fit"] == three["fit"]
    assert picked["smoothed"] == three["smoothed"]


def few_each(classes: int, sizes: Sequence[int], spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), np.resize(sizes, classes))
    noise = spread * rng.normal(size=(len(labels), 16))
    return rng.normal(size=(classes, 16))[labels] + noise, labels


def test_many_classes_of_few_images(tmp_path: Path) -> None:
    names = [str(c) for c in range(60)]
    result = metrics(replace(write(tmp_path, names, train=few_each(60, [5], 0.25)), components=16))
    scores = result["smoothed"]["splits"]["train"]
    assert min(scores["cluster_sizes"]) > 0
    assert scores["hungarian_accuracy"] >= result["kmeans"]["splits"]["train"]["hungarian_accuracy"]


def test_smoothing_that_empties_clusters_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(c) for c in range(40)]
    config = write(tmp_path, names, train=few_each(40, [1, 2, 9], 0.3))
    config = replace(config, components=16, seeds=2)
    result = metrics(replace(config, neighbors=10))
    assert "more clusters empty: K-means is used without it" in capsys.readouterr().out
    said = {"clusters": Manifest(tmp_path).clusters_id, "names": {}, "fine": {"0": "owl"}}
    (tmp_path / artifacts.NAMES).write_text(json.dumps(said))
    name_again(tmp_path)
    naming = Manifest(tmp_path).naming
    assert naming is not None
    assert naming["scale"] == 1  # the clusters' one is of squared distances
    (tmp_path / artifacts.NAMES).unlink()

    assert result == metrics(replace(config, smooth=False))
    assert min(result["kmeans"]["splits"]["train"]["cluster_sizes"]) > 0
    manifest = Manifest(tmp_path)
    head = nearest_centroid(manifest.load(artifacts.CENTROIDS))
    np.testing.assert_array_equal(manifest.load(artifacts.HEAD_WEIGHTS), head.weights)


@pytest.mark.parametrize("count", [2, 4])
def test_the_head_is_a_logistic_regression(count: int) -> None:
    rng = np.random.default_rng(0)
    x = 50 * rng.normal(size=(300, 6))
    clusters = (x[:, :1] > [0] if count == 2 else x[:, :2] > 0) @ (2 ** np.arange(count // 2))
    clusters = np.where(rng.random(300) < 0.1, rng.integers(count, size=300), clusters)
    head = fit_head(x.astype(np.float32), clusters, count + 1)  # and a cluster without images
    length = np.sqrt((x**2).sum(axis=1).mean())
    expected = LogisticRegression(tol=1e-8, max_iter=1000).fit(x / length, clusters)
    probability = head(torch.tensor(x).float()).softmax(1).numpy()
    np.testing.assert_allclose(
        probability[:, :count], expected.predict_proba(x / length), atol=2e-3
    )
    assert not probability[:, count].any()
    assert (head.assign(x.astype(np.float32)) == probability.argmax(axis=1)).all()


def test_the_head_of_one_cluster() -> None:
    head = fit_head(np.ones((4, 2), np.float32), np.full(4, 1), 3)
    assert head.assign(np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)).max() == 1
