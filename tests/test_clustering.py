from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from dataset.load_dataset import load_dataset
from src.clustering import main
from src.clusters import choose_k
from src.clusters.choose_k import candidates, scan, scan_table, stability
from src.clusters.confidence import fit_scale
from src.clusters.head import ClusterHead
from src.clusters.method import Method
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError
from src.storage import artifacts
from src.storage.artifacts import CLUSTERING, EXTRACTION, LABELS, Manifest
from src.storage.files import digest, write_json
from tests.helpers.blobs import blobs, metrics, write
from tests.helpers.processes import Script


def test_three_splits_give_every_file_and_metric(tmp_path: Path) -> None:
    config = write(
        tmp_path, unlabeled=(blobs(90, 0)[0], None), train=blobs(60, 1), test=blobs(30, 2)
    )
    result = metrics(config)
    for split in ("train", "test"):
        scores = result["kmeans"]["splits"][split]
        assert scores["hungarian_accuracy"] == scores["transferred_accuracy"] == 1.0
        assert scores["nmi"] == pytest.approx(1)
        assert scores["knn_accuracy"] == 1.0
        assert scores["per_class"]["bee"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert set(result["kmeans"]["splits"]["unlabeled"]) == {
        "images", "silhouette", "davies_bouldin", "cluster_sizes"
    }  # fmt: skip
    assert result["kmeans"]["splits"]["unlabeled"]["cluster_sizes"] == [30, 30, 30]
    assert result["pca"]["components"] == len(result["pca"]["cumulative"]) == 5
    assert result["fit"]["fit_on"] == "train"
    part = Manifest(tmp_path).clustering
    assert (part["features"], part["clusters"], part["certainty"]) == ("abc", 3, "confidence")


def test_only_the_fit_split_moves_pca_and_centroids(tmp_path: Path) -> None:
    main(write(tmp_path, train=blobs(60, 1), test=blobs(30, 2)))
    fitted = artifacts.PCA_MEAN, artifacts.PCA_COMPONENTS, artifacts.CENTROIDS
    before = [Manifest(tmp_path).load(a).copy() for a in fitted]
    main(write(tmp_path, train=blobs(60, 1), unlabeled=blobs(33, 3)))
    after = [Manifest(tmp_path).load(a) for a in fitted]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert not artifacts.path(artifacts.REDUCED, tmp_path, "test").exists()
    assert not artifacts.path(artifacts.ASSIGNMENTS, tmp_path, "test").exists()


def test_the_number_of_clusters_counts_the_classes_of_the_fitted_split(tmp_path: Path) -> None:
    x, labels = blobs(60, 1)
    other, other_labels = blobs(30, 2)
    known = np.where(np.arange(60) < 50, labels, -1)
    names = ["ant", "bee", "cat", "dog", "eel"]
    config = write(tmp_path, names, train=(x, known), test=(other, other_labels + 2))
    assert metrics(config)["fit"]["clusters"] == 3
    assert metrics(replace(config, fit_on="test"))["fit"]["clusters"] == 3
    write(tmp_path, names, unlabeled=(x, None), test=(other, other_labels))
    assert metrics(config)["fit"]["clusters"] == 5
    assert metrics(replace(config, clusters="4"))["fit"]["clusters"] == 4


def test_unusual_is_far_from_every_cluster_in_all_dimensions(tmp_path: Path) -> None:
    """The odd image differs only where the two principal components do not look."""
    x, _ = blobs(33, 2)
    odd = x[:1].copy()
    odd[0, 10] = np.linalg.norm(odd)
    train, _ = blobs(300, 1)
    config = write(tmp_path, train=(train, None), test=(np.concatenate([x, odd]), None))
    main(replace(config, components=2, clusters="3", unusual=0.9))
    manifest = Manifest(tmp_path)
    assert manifest.load(artifacts.UNUSUAL, "train").sum() == 30
    clusters = manifest.load(artifacts.ASSIGNMENTS, "train")
    u = train / np.linalg.norm(train, axis=1, keepdims=True)
    pca = PCA(2).fit(u)  # the mean of a cluster, back among the features
    means = pca.inverse_transform([pca.transform(u[clusters == k]).mean(axis=0) for k in range(3)])
    for split, features in (("train", train), ("test", np.concatenate([x, odd]))):
        u = features / np.linalg.norm(features, axis=1, keepdims=True)
        distance = np.linalg.norm(u[:, None] - means, axis=2).min(axis=1)
        far = distance > manifest.clustering["unusual_distance"]
        np.testing.assert_array_equal(manifest.load(artifacts.UNUSUAL, split), far)
    assert far[-1]
    assert far[:-1].mean() < 0.3


def repeated(rows: int, times: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 12)).repeat(times, axis=0)


def one_large_dimension() -> np.ndarray:
    x, _ = blobs(60, 1)
    return x / np.linalg.norm(x, axis=1, keepdims=True) + 24_000 * np.eye(20)[0]


def scaled(scale: float | np.ndarray) -> np.ndarray:
    return blobs(60, 1)[0] * scale


@pytest.mark.parametrize(
    "x",
    [
        repeated(3, 120),
        repeated(7, 40),
        scaled(1e-20),
        scaled(1e-38),
        scaled(1e20),
        scaled(1e36),
        scaled(np.geomspace(1e-30, 1e30, 60)[:, None]),
        one_large_dimension(),
        np.concatenate([scaled(1), np.zeros((20, 20))]),
    ],
    ids=["3 rows", "7 rows", "1e-20", "1e-38", "1e20", "1e36", "all scales", "offset", "zeros"],
)
@pytest.mark.parametrize("smooth", [True, False])
def test_predictions_of_the_same_features_are_the_same(
    x: np.ndarray, smooth: bool, tmp_path: Path
) -> None:
    config = write(tmp_path, train=(x, None))
    main(replace(config, clusters="3", smooth=smooth, components=20))
    manifest, predictor = Manifest(tmp_path), Predictor.load(tmp_path, features_only=True)
    clusters = manifest.load(artifacts.ASSIGNMENTS, "train")
    for size in (len(x), 1):
        parts = np.split(np.float32(x), len(x) // size)
        predictions = [predictor.predict_features(part) for part in parts]
        for artifact, field in (
            (artifacts.ASSIGNMENTS, "clusters"),
            (artifacts.UNUSUAL, "unusual"),
            (artifacts.CERTAINTY, "certainty"),
        ):
            found = np.concatenate([getattr(part, field) for part in predictions])
            np.testing.assert_allclose(found, manifest.load(artifact, "train"), atol=1e-6)
    if len(x) == 60:
        assert sorted(np.bincount(clusters)) == [20, 20, 20]
    assert manifest.load(artifacts.UNUSUAL, "train").mean() <= 0.02


@pytest.mark.parametrize("scale", [1e-20, 1e25])
def test_rows_that_cannot_be_squared_must_be_normalized(tmp_path: Path, scale: float) -> None:
    config = replace(write(tmp_path, train=(scaled(scale), None)), l2_normalize=False)
    with pytest.raises(UserError, match=r"spread by .*: scale the features, or leave out --no-l2"):
        main(config)


def test_names_of_classes_that_do_not_occur_cost_nothing(tmp_path: Path) -> None:
    x, labels = blobs(60, 1)
    names = [f"name {c}" for c in range(30_000)]
    config = write(tmp_path, names, train=(x, labels * 14_000), test=(x, labels * 14_000))
    scores = metrics(config)["smoothed"]["splits"]["test"]
    assert scores["transferred_accuracy"] == 1
    assert list(scores["per_class"]) == ["name 0", "name 14000", "name 28000"]
    assert scores["confusion"] == [[c, c, 20] for c in (0, 14_000, 28_000)]
    assert (tmp_path / artifacts.METRICS).stat().st_size < 20_000


def test_names_from_one_split_can_fail_on_another(tmp_path: Path) -> None:
    x, labels = blobs(30, 2)
    config = write(tmp_path, train=blobs(60, 1), test=(x, (labels + 1) % 3))
    scores = metrics(config)["kmeans"]["splits"]["test"]
    assert scores["hungarian_accuracy"] == 1.0
    assert scores["transferred_accuracy"] == scores["knn_accuracy"] == 0.0


@pytest.mark.parametrize(
    ("fit_on", "labeled", "named_on"),
    [
        ("test", ("train", "test"), "test"),  # the fitted split first
        ("unlabeled", ("train", "test"), "train"),
        ("unlabeled", ("test",), "test"),
    ],
)
def test_which_split_names_the_clusters(
    tmp_path: Path, fit_on: str, labeled: tuple[str, ...], named_on: str
) -> None:
    """The labels of test are shifted by one, so that the names tell the splits apart."""
    shift = {"unlabeled": 0, "train": 0, "test": 1}
    splits = {}
    for i, split in enumerate(shift):
        x, labels = blobs(30, i)
        splits[split] = x, (labels + shift[split]) % 3 if split in labeled else None
    result = metrics(replace(write(tmp_path, **splits), fit_on=fit_on))  # type: ignore[arg-type]
    assert result["fit"]["named_on"] == named_on
    manifest = Manifest(tmp_path)
    names = manifest.load(artifacts.CLUSTER_TO_CLASS)
    clusters = manifest.load(artifacts.ASSIGNMENTS, "test")
    assert (names[clusters] == (blobs(30, 2)[1] + shift[named_on]) % 3).all()
    reduced, labels = manifest.load(artifacts.REDUCED, named_on), manifest.load(LABELS, named_on)
    scores = ClusterHead.load(manifest).linear(torch.tensor(reduced))
    scale = fit_scale(scores, names, labels, start=1.0)
    assert manifest.clustering["confidence_scale"] == scale


def test_an_image_is_not_its_own_neighbor(tmp_path: Path) -> None:
    """Each image's only near neighbor is of another class."""
    x = np.eye(12, 20).repeat(2, axis=0) + 0.01 * np.random.default_rng(0).random((24, 20))
    labels = np.arange(24) % 2
    splits = metrics(write(tmp_path, train=(x, labels), test=(x, labels)))["kmeans"]["splits"]
    assert splits["train"]["knn_accuracy"] == 0.0
    assert splits["test"]["knn_accuracy"] == 1.0  # every image has its copy in train


def test_more_restarts_find_tighter_clusters(tmp_path: Path, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(200, 20))
    config = replace(write(tmp_path, train=(x, None)), clusters="20")
    once, often = (metrics(replace(config, restarts=n))["fit"]["inertia"] for n in (1, 20))
    assert often < once
    assert "note: less than 95%; --components 10 would keep more" in capsys.readouterr().out


def test_pca_above_its_limit_is_fitted_on_evenly_spaced_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(0).normal(size=(61, 30)).astype(np.float32)
    for limit, seen in ((21, x[::3]), (30, x)):
        monkeypatch.setattr("src.clusters.method.PCA_LIMIT", limit)
        method = Method("train", {}, [], False, components=5, restarts=1, hops=0, neighbors=10)
        reduced = method.reduce({"train": x})[1]["train"]
        expected = PCA(5, svd_solver="full").fit(seen).transform(x)
        np.testing.assert_allclose(np.abs(reduced), np.abs(expected), atol=1e-4)


def test_no_label_at_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write(tmp_path, [], unlabeled=(blobs(60, 0)[0], None), test=(blobs(30, 1)[0], None))
    result = metrics(replace(config, seeds=2))
    assert result["fit"] | {"inertia": 0, "head_agreement": 1} == {
        "clusters": 10, "fit_on": "unlabeled", "named_on": None, "inertia": 0, "head_agreement": 1
    }  # fmt: skip
    manifest = Manifest(tmp_path)
    assert manifest.load(artifacts.CLUSTER_TO_CLASS).tolist() == [-1] * 10
    assert manifest.clustering["certainty"] == "margin"
    assert "no train split; PCA and K-means are fitted on unlabeled" in capsys.readouterr().out


def test_unknown_labels_are_left_out_of_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x, labels = blobs(60, 1)
    labels = labels.copy()
    labels[:6] = -1
    result = metrics(write(tmp_path, train=(x, labels), test=(x, np.full(60, -1))))
    assert result["kmeans"]["splits"]["train"]["hungarian_accuracy"] == 1.0
    assert result["kmeans"]["splits"]["train"]["images"] == 60
    confusion = result["kmeans"]["splits"]["train"]["confusion"]
    assert sum(images for *_, images in confusion) == 54
    assert "nmi" not in result["kmeans"]["splits"]["test"]
    assert "6 labels of -1" in capsys.readouterr().out
    labels[1:] = -1  # one image, which has no neighbor
    labels[0] = 0
    splits = metrics(write(tmp_path, train=(x, labels)))["kmeans"]["splits"]
    assert splits["train"]["knn_accuracy"] is None


def test_duplicate_points_leave_clusters_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x, labels = np.repeat(np.eye(3, 20), 8, axis=0), np.repeat(np.arange(3), 8)
    result = metrics(replace(write(tmp_path, train=(x, labels)), clusters="5", components=100))
    scores = result["kmeans"]["splits"]["train"]
    assert sorted(scores["cluster_sizes"]) == [0, 0, 8, 8, 8]
    assert [scores["hungarian_accuracy"], scores["silhouette"]] == pytest.approx([1, 1])
    out = capsys.readouterr().out
    assert "5 clusters of train, 0 to 8 images" in out
    assert "2 clusters are empty" in out
    assert "span 2 dimensions, fewer than --components 100" in out


def test_one_class_and_one_cluster(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write(tmp_path, ["ant"], train=(blobs(30, 1)[0], np.zeros(30)))
    scores = metrics(replace(config, clusters="2"))["kmeans"]["splits"]["train"]
    assert scores["nmi"] is scores["ari"] is None
    config = write(tmp_path, train=blobs(30, 1))
    scores = metrics(replace(config, clusters="1", seeds=2))["kmeans"]["splits"]["train"]
    undefined = ("nmi", "ari", "silhouette", "davies_bouldin")
    assert [scores[name] for name in undefined] == [None] * 4
    assert scores["hungarian_accuracy"] == pytest.approx(1 / 3)
    assert "note: train: NMI, ARI, silhouette, Davies-Bouldin undefined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": "0"}, "--clusters 0: expected a number"),
        ({"clusters": "9:5"}, "--clusters 9:5: expected"),
        ({"clusters": "1:5"}, "--clusters 1:5: expected"),
        ({"clusters": "many"}, "--clusters many: expected"),
        ({"clusters": "61"}, "61 clusters need as many images, train has 60"),
        ({"clusters": f"2:{10**15}"}, f"{10**15} clusters need as many images, train has 60"),
        ({"components": 0}, "--components 0"),
        ({"restarts": 0}, "--restarts 0"),
        ({"hops": 0}, "--hops 0"),
        ({"neighbors": 0}, "--neighbors 0"),
        ({"seeds": 1}, "--seeds 1"),
        ({"seed": -1}, "--seed -1"),
        ({"unusual": 0.0}, "--unusual 0.0"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"fit_on": "unlabeled"}, "--fit-on unlabeled: the extraction wrote only train"),
    ],
)
def test_flags_that_cannot_be_met(tmp_path: Path, change: dict, message: str) -> None:
    config = write(tmp_path, train=blobs(60, 1))
    with pytest.raises(UserError, match=message):
        main(replace(config, **change))


def test_a_failed_run_leaves_the_earlier_clusters_whole_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, train=blobs(60, 1))
    main(config)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Method, "clusterings", fail)
    with pytest.raises(OSError, match="gone"):
        main(replace(config, clusters="2"))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.setattr(artifacts.Stage, "write_json", fail)
    with pytest.raises(OSError, match="gone"):
        main(replace(config, clusters="2"))
    with pytest.raises(UserError, match=r"no finished results of src/clustering\.py"):
        _ = Manifest(tmp_path).clustering


@pytest.mark.parametrize(
    ("flag", "classes", "expected"),
    [("7", 3, [7]), ("2:4", 3, [2, 3, 4]), ("auto", 3, range(2, 21)), (None, 3, [3]),
     (None, 0, [10]), (None, 1, [10])],
)  # fmt: skip
def test_candidates(flag: str | None, classes: int, expected: Sequence[int]) -> None:
    assert [*candidates(flag, classes)] == [*expected]


def test_the_scan_weighs_silhouette_and_stability() -> None:
    """Two pairs of blobs: three clusters split one of the pairs by chance, four split both."""
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0], [0, 5], [100, 0], [100, 5]])
    x = centers.repeat(30, axis=0) + 0.5 * rng.normal(size=(120, 2))
    result = scan(x, [3, 4], seed=0)
    assert result["silhouette"][0] > result["silhouette"][1]
    assert result["stability"][0] < result["stability"][1]
    assert result["picked"] == 4
    result = scan(x, [4, 2, 3], seed=0)
    assert result["picked"] == 2
    assert result["runners_up"] == [4, 3]
    rows = [line.split() for line in scan_table(result).splitlines()[1:-1]]
    assert [row[4:] for row in rows] == [["next"], ["<-", "picked"], ["next"]]
    for _, separation, stable, score, *_ in rows:
        assert float(score) == pytest.approx(float(separation) * float(stable), abs=2e-3)


def test_the_scan_takes_no_fewer_images_than_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    monkeypatch.setattr(choose_k, "IMAGES", 4)
    assert scan(x, [2, 6], seed=0) == scan(x[[0, 1, 3, 4, 6, 8]], [2, 6], seed=0)


def test_the_highest_score_is_picked_also_where_clusters_are_weak() -> None:
    x = np.random.default_rng(8).normal(size=(150, 3))
    result = scan(x, range(2, 7), seed=0)
    score = np.array(result["silhouette"]) * result["stability"]
    assert [result["picked"], *result["runners_up"]] == [*(2 + np.argsort(-score)[:3])]


def test_stability_is_the_agreement_of_halves_and_0_where_they_are_too_small() -> None:
    x, scores = np.random.default_rng(0).normal(size=(41, 3)).astype(np.float32), []
    for i in range(2):
        halves = np.array_split(np.random.default_rng([3, i]).permutation(41), 2)
        models = [KMeans(4, n_init=10, random_state=3).fit(x[half]) for half in halves]
        scores.append(adjusted_rand_score(*(model.predict(x) for model in models)))
    assert stability(x, 4, seed=3) == pytest.approx(np.mean(scores))
    assert stability(x, 21, seed=3) == 0


def test_the_scan_picks_the_number_of_blobs_and_seeds_above_the_highest_start_over(
    tmp_path: Path,
) -> None:
    config = replace(write(tmp_path, train=blobs(60, 1)), clusters="2:5", seed=2**32 - 1, seeds=3)
    result = metrics(config)
    assert result["scan"]["picked"] == result["fit"]["clusters"] == 3
    assert result["scan"]["clusters"] == [2, 3, 4, 5]
    assert result["seeds"]["count"] == 3


def test_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    config = replace(write(tmp_path, train=blobs(60, 1)), clusters="7", restarts=1, seed=5, seeds=3)
    alone = [metrics(replace(config, seed=s, seeds=None)) for s in range(5, 8)]
    runs = [result["kmeans"]["splits"]["train"]["ari"] for result in alone]
    result = metrics(config)["seeds"]
    assert result["count"] == 3
    assert result["kmeans"]["train"]["ari"]["mean"] == pytest.approx(np.mean(runs))
    assert result["kmeans"]["train"]["ari"]["std"] == pytest.approx(np.std(runs, ddof=1))


def test_baselines_follow_the_same_protocol(tmp_path: Path) -> None:
    digits = load_dataset("digits", tmp_path)
    splits = {
        name: (split.images.reshape(len(split.images), -1), split.labels)
        for name, split in digits.splits.items()
    }
    config = replace(write(tmp_path, list(digits.class_names), **splits), baselines=True)
    part = dict(Manifest(tmp_path).extraction)
    part["dataset"]["fingerprint"] = digits.fingerprint
    artifacts.record(tmp_path, EXTRACTION, part)
    with pytest.raises(UserError, match=r"run python src/feature_extraction\.py --untrained first"):
        main(config)
    with artifacts.writing(tmp_path, EXTRACTION) as stage:
        for name, (x, labels) in splits.items():
            noise = np.random.default_rng(0).normal(size=(len(x), 30))
            stage.save(artifacts.FEATURES, x, name)
            stage.save(LABELS, labels, name)
            stage.save(artifacts.UNTRAINED_FEATURES, noise, name)
        stage.record(part)
    result = metrics(config)
    # The "learned" features are raw pixels as well here, so the figures must be the same.
    assert result["baselines"]["raw_pixels"]["kmeans"]["splits"] == result["kmeans"]["splits"]
    assert result["kmeans"]["splits"]["test"]["nmi"] > 0.5
    assert result["baselines"]["untrained"]["kmeans"]["splits"]["test"]["nmi"] < 0.2

    part = dict(Manifest(tmp_path).extraction)
    part["dataset"]["fingerprint"] = "other"
    artifacts.record(tmp_path, EXTRACTION, part)
    with pytest.raises(UserError, match="other images than those that the features were"):
        main(config)


def test_scores_of_another_version_are_refused(tmp_path: Path) -> None:
    scores = dict(metrics(write(tmp_path, train=blobs(60, 1))))
    part = dict(Manifest(tmp_path).clustering)
    file = tmp_path / artifacts.METRICS
    for changed in ({k: v for k, v in scores.items() if k != "version"}, {**scores, "version": 0}):
        write_json(file, changed)
        with file.open("rb") as stream:
            part["files"][file.name] = digest(stream)
        artifacts.record(tmp_path, CLUSTERING, part)
        with pytest.raises(UserError, match=r"metrics\.json is of.*run python src/clustering\.py"):
            Manifest(tmp_path).metrics()


def test_as_a_person_runs_it(tmp_path: Path, script: Script) -> None:
    write(tmp_path / "features", train=blobs(60, 1), test=blobs(30, 2))
    done = script("src/clustering.py", "--wandb", "disabled")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hungarian accuracy" in done.stdout
    assert "bee" in done.stdout
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for clusters in ("K-means", "K-means, neighbors smoothed"):
        assert any(row.startswith(f"learned features {clusters} test 1.000") for row in rows)
