import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import laplace, uniform_filter
from scipy.spatial.distance import cdist
from sklearn import metrics as sk

from src.evaluation import sharpness as sharp
from src.evaluation import silhouette
from src.evaluation.metrics import (
    effective_rank,
    external_metrics,
    hungarian_accuracy,
    hungarian_match,
    internal_metrics,
    knn_accuracy,
)
from src.evaluation.silhouette import silhouette_samples
from src.evaluation.tables import class_line, summary_table


@pytest.mark.parametrize(("classes", "n_clusters"), [(4, 4), (3, 5), (5, 3)])
def test_hungarian_match_is_the_best_of_all_namings(classes: int, n_clusters: int) -> None:
    rng = np.random.default_rng(classes)
    labels, clusters = rng.integers(classes, size=60), rng.integers(n_clusters, size=60)
    names = list(range(classes)) + [-1] * n_clusters
    best = max(
        np.mean(np.array(naming)[clusters] == labels)
        for naming in set(itertools.permutations(names, n_clusters))
    )
    match_K = hungarian_match(labels, clusters, n_clusters)
    named = match_K[match_K >= 0]
    assert len(set(named)) == len(named)
    assert np.mean(match_K[clusters] == labels) == pytest.approx(best)
    assert hungarian_accuracy(labels, clusters) == pytest.approx(best)


def test_a_cluster_without_an_image_of_the_class_left_for_it_has_no_class() -> None:
    labels, clusters = np.array([0, 0, 0]), np.array([0, 0, 1])
    assert hungarian_match(labels, clusters, 3).tolist() == [0, -1, -1]


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("images", [50, 15])  # more and fewer than the 20 that vote
def test_knn_agrees_with_a_naive_loop(images: int, leave_one_out: bool) -> None:
    rng = np.random.default_rng(0)
    bank, bank_labels = rng.normal(size=(images, 6)), rng.integers(4, size=images)
    queries, labels = rng.normal(size=(30, 6)), rng.integers(4, size=30)
    if leave_one_out:
        queries, labels = bank, bank_labels
    right = []
    for i, query in enumerate(queries):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        votes = np.zeros(4)
        for n in [n for n in np.argsort(-cosine) if not leave_one_out or n != i][:20]:
            votes[bank_labels[n]] += np.exp(cosine[n] / 0.07)
        right.append(votes.argmax() == labels[i])
    accuracy = knn_accuracy(bank, bank_labels, queries, labels, leave_one_out)
    assert accuracy == pytest.approx(np.mean(right))


@pytest.mark.parametrize("offset", [0, 100, 24_000])
@pytest.mark.parametrize("scale", [1e-20, 1, 1e20])
def test_knn_where_one_dimension_is_large(offset: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=300)
    x = rng.normal(size=(4, 8))[labels] + 0.5 * rng.normal(size=(300, 8))
    x = np.float32(scale * np.column_stack([x, np.full(300, offset)]))
    unit = np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    distances = cdist(unit[:100], unit[100:])
    cosine = 1 - distances**2 / 2
    votes = np.zeros((100, 4))
    for row, near in enumerate(np.argsort(distances)[:, :20]):
        np.add.at(votes[row], labels[100:][near], np.exp(cosine[row, near] / 0.07))
    expected = np.mean(votes.argmax(axis=1) == labels[:100])
    assert knn_accuracy(x[100:], labels[100:], x[:100], labels[:100]) == expected
    assert expected > 0.9


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_effective_rank_is_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape) + 5
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    share = share[share > 1e-12]
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert effective_rank(np.full((10, 5), 0.1)) == 0.0


@pytest.mark.parametrize("block", [7, 64, 512])
def test_silhouette_equals_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silhouette, "BLOCK", block)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 12)) + 4).astype(np.float32)
    clusters = rng.integers(5, size=300)
    x[10:40] = x[10]  # duplicates within and across clusters
    clusters[7] = 9  # a cluster of one, and labels with gaps
    got = silhouette_samples(x, clusters)
    np.testing.assert_allclose(got, sk.silhouette_samples(x, clusters), atol=1e-6)
    assert got[7] == 0
    undefined = {"silhouette": None, "davies_bouldin": None}
    assert internal_metrics(x, np.arange(300)) == undefined  # every sample is a cluster of its own
    assert silhouette_samples(np.ones((6, 3)), np.arange(6) % 2).tolist() == [0] * 6  # equal points


@pytest.mark.parametrize("spread", np.geomspace(1e-4, 1, 9))
@pytest.mark.parametrize(("origin", "unit"), [(0, 1), (1000, 1), (0, 1e-30), (0, 1e30)])
def test_silhouette_of_clusters_tight_and_close_in_pairs(
    spread: float, origin: float, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near neighbors, within a cluster and between two: where the product form cancels."""
    monkeypatch.setattr(silhouette, "BLOCK", 16)
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(6), 40)
    centers = rng.normal(size=(3, 100)).repeat(2, axis=0) + spread * rng.normal(size=(6, 100))
    x = unit * (origin + centers[clusters] + spread * rng.normal(size=(240, 100)))
    distance = cdist(x, x)
    sums_NK = np.stack([distance[:, clusters == k].sum(axis=1) for k in range(6)], axis=1)
    own = np.eye(6, dtype=bool)[clusters]
    within, between = sums_NK[own] / 39, np.where(own, np.inf, sums_NK / 40).min(axis=1)
    expected = (between - within) / np.maximum(between, within)
    np.testing.assert_allclose(silhouette_samples(x, clusters), expected, atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 17])
def test_sharpness_is_the_variance_of_the_laplacian(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharp, "BLOCK", 2)
    images = np.random.default_rng(0).integers(256, size=(5, 3, side, side), dtype=np.uint8)
    images[4] = 77
    expected = [laplace(x.mean(axis=0), mode="nearest").var() for x in images]
    got = sharp.sharpness(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    blurred = uniform_filter(images, (0, 0, 3, 3))
    assert side < 17 or (sharp.sharpness(blurred)[:4] < got[:4] / 4).all()


def test_external_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200)
    clusters = np.where(rng.random(200) < 0.7, labels ^ 1, rng.integers(4, size=200))
    names = ["a", "b", "c", "d"]
    class_K = np.array([0, 1, 2, -1])
    got = external_metrics(labels, clusters, class_K, names)

    predicted = hungarian_match(labels, clusters, 4)[clusters]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted)
    for c, name in enumerate(names):
        expected = {"precision": precision[c], "recall": recall[c], "f1": f1[c]}
        assert got["per_class"][name] == pytest.approx(expected)
    table = sk.confusion_matrix(labels, predicted)
    assert got["confusion"] == [[*pair, table[pair]] for pair in np.ndindex(4, 4) if table[pair]]
    assert got["nmi"] == pytest.approx(sk.normalized_mutual_info_score(labels, clusters))
    assert got["ari"] == pytest.approx(sk.adjusted_rand_score(labels, clusters))
    assert got["hungarian_accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert got["transferred_accuracy"] == pytest.approx(np.mean(class_K[clusters] == labels))


def test_more_clusters_than_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    clusters = np.array([0, 0, 0, 1, 2, 2, 1])
    got = external_metrics(labels, clusters, np.full(4, -1), ["a", "b", "never seen"])
    assert got["hungarian_accuracy"] == pytest.approx(5 / 7)
    assert got["transferred_accuracy"] == 0.0
    assert got["confusion"] == [[0, -1, 1], [0, 0, 3], [1, -1, 1], [1, 1, 2]]
    assert list(got["per_class"]) == ["a", "b"]


def test_memory_is_for_the_classes_that_occur() -> None:
    names = [f"class {c}" for c in range(100_000)]
    labels = np.array([7, 7, 31_000, 99_999])
    tracemalloc.start()
    got = external_metrics(labels, labels % 3, np.array([99_999, 7, -1]), names)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got["hungarian_accuracy"] == got["transferred_accuracy"] == 0.75
    assert got["confusion"] == [[7, 7, 2], [31_000, 7, 1], [99_999, 99_999, 1]]
    assert list(got["per_class"]) == ["class 7", "class 31000", "class 99999"]
    assert peak < 20e6


def test_summary_table_lines_up_and_names_both_protocols() -> None:
    scores = {"images": 5, "hungarian_accuracy": 0.9, "transferred_accuracy": 0.8, "nmi": 0.7,
              "ari": None, "silhouette": 0.123456, "davies_bouldin": 12.3,
              "knn_accuracy": 0.95}  # fmt: skip
    splits = {"unlabeled": {"images": 9, "silhouette": 0.1, "davies_bouldin": 2.0}}
    splits |= {"test": scores, "train": scores | {"nmi": None}}
    lines = summary_table(
        {"kmeans": {"splits": splits},
         "baselines": {"raw_pixels": {"kmeans": {"splits": {"test": scores}}}},
         "smoothed": {"splits": splits | {"test": scores | {"transferred_accuracy": 0.6}}},
         "fit": {"named_on": "train"}}
    ).splitlines()  # fmt: skip
    rows = [" ".join(line.split()) for line in lines]
    assert rows[3] == "learned features K-means test 0.900 0.700 0.123 12.300 0.950"
    assert "ARI" not in rows[0]  # nowhere defined
    assert any(row.startswith("learned features K-means train 0.900 - 0.123") for row in rows)
    assert rows[4].startswith("learned features K-means, neighbors smoothed test 0.900")
    assert rows[5].startswith("raw pixels K-means test")
    assert len({len(line) for line in lines[:8]}) == 1
    assert "named on train, test has an accuracy of 0.600" in lines[-1]


def test_class_line_begins_with_the_worst_and_ends_after_ten() -> None:
    scores = {f"class {i}": {"f1": 1 - i / 100, "recall": 0.0} for i in range(12)}
    line = class_line(scores)
    assert line.startswith("F1 of each class, worst first: class 11 0.890, class 10 0.900, ")
    assert line.endswith("class 2 0.980, 2 more in metrics.json")
    assert "more" not in class_line({"a": {"f1": 0.5}})
