import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, cohen_kappa_score

from dataset.load_dataset import load_dataset
from src.clusters import trust
from src.clusters.method import Method
from src.clusters.trust import (
    Views,
    clear_from,
    describe,
    halves_agreement,
    small_pixels,
    trust_report,
    views_agreement,
)
from src.models.encoder import TrainedBackbone
from src.models.preprocessing import pixels, raw_pixels
from src.storage import artifacts
from src.storage.artifacts import Manifest
from src.training.batches import paired_views
from src.training.views import ViewSettings
from tests.helpers.finished_run import FinishedRun, cluster


def method(hops: int = 0, **labels: np.ndarray) -> Method:
    return Method("train", labels, [], False, components=10, restarts=3, hops=hops, neighbors=10)


def groups(count: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = 10 * np.eye(4, 8)[np.arange(count) % 4] + spread * rng.normal(size=(count, 8))
    return x.astype(np.float32)


def test_agreement_of_halves_is_that_of_scikit_learn() -> None:
    """Without smoothing, a half assigns an image to its nearest centroid."""
    x, scores = groups(201, 5), []
    for i in range(6):
        halves = np.array_split(np.random.default_rng([7, i]).permutation(201), 2)
        models = [KMeans(6, n_init=3, random_state=7).fit(x[half]) for half in halves]  # type: ignore[arg-type]
        scores.append(adjusted_rand_score(*(model.predict(x) for model in models)))
    assert len(set(scores)) > 1
    assert halves_agreement(method(), x, 6, seed=7) == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("hops", [0, 2])
def test_groups_are_clear_and_noise_is_not(hops: int) -> None:
    assert halves_agreement(method(hops), groups(200, 0.5), 4, 0) == 1
    noise = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    assert halves_agreement(method(hops), noise, 4, 0) < 0.4


def test_labels_do_not_change_it() -> None:
    x = groups(100, 5)
    with_labels = halves_agreement(method(train=np.zeros(100, int)), x, 5, 0)
    assert with_labels == halves_agreement(method(), x, 5, 0)


def test_the_verdict_follows_halves_views_and_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, images = np.zeros((20, 2), np.float32), np.zeros((20, 3, 24, 24), np.uint8)
    drawn = Views(np.zeros((2, 20)), np.zeros((2, 20, 5)))
    for halves, views, raw, word in (
        (0.46, None, {"halves": 0.9, "views": None}, "clear"),
        (0.44, None, {"halves": 0.4, "views": None}, "partial"),
        (0.4, None, {"halves": 0.5, "views": None}, "no better than pixels"),
        (0.9, 0.31, {"halves": 0.1, "views": 0.2}, "clear"),
        (0.9, 0.29, {"halves": 0.1, "views": 0.2}, "no better than pixels"),  # within the error
        (0.1, None, None, "partial"),
    ):
        measured = {"halves": halves, "views": views, "pixels": raw}
        for name, value in measured.items():
            monkeypatch.setattr(trust, f"{name}_agreement", lambda *_, value=value: value)
        report = trust_report(method(), x, raw and images, 3, 0, views and drawn) or {}
        assert report == {"verdict": word, **measured}
        assert describe(report).startswith(f"{word}: ")


def test_no_verdict_about_one_cluster_or_small_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    for clusters, images in ((1, trust.IMAGES), (11, trust.IMAGES), (6, 10)):
        monkeypatch.setattr(trust, "IMAGES", images)
        assert trust_report(method(), groups(20, 1), None, clusters, 0) is None


def test_agreement_of_views_is_scotts_pi() -> None:
    """Cohen's kappa is Scott's pi once either view has been the first one."""
    rng = np.random.default_rng(0)
    first = rng.choice(4, 300, p=[0.6, 0.2, 0.2, 0])
    for changed in (0, 90, 300):
        second = np.where(np.arange(300) < changed, rng.integers(3, size=300), first)
        kappa = cohen_kappa_score(np.append(first, second), np.append(second, first))
        assert views_agreement(np.stack([first, second])) == pytest.approx(kappa)
        assert (kappa == 1, abs(kappa) < 0.2) == (changed == 0, changed == 300)
    assert views_agreement(np.zeros((2, 5), int)) == 0


@pytest.mark.parametrize("raw", [{"halves": 0.2, "views": 0.341}, None])
@pytest.mark.parametrize("views", [0.678, None])
def test_words_only_about_what_was_measured(raw: dict | None, views: float | None) -> None:
    raw = raw and raw | ({} if views else {"views": None})
    line = describe({"verdict": "clear", "halves": 0.9, "views": views, "pixels": raw})
    expected = "0.90, raw pixels 0.20" if raw else "0.90"
    if views:
        expected += "; Scott's pi between views 0.68" + (", raw pixels 0.34" if raw else "")
    assert line.endswith(f" (ARI between halves {expected}; 1 is identical, 0 is chance)")


def test_more_images_must_agree_better() -> None:
    assert [round(clear_from(count), 2) for count in (20, 400, 2_000, 10_000)] == [
        0.45, 0.53, 0.65, 0.65,
    ]  # fmt: skip


def test_small_pixels_are_means_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (9, 3, 48, 48)).astype(np.uint8)
    expected = images.reshape(9, 3, 24, 2, 24, 2).mean(axis=(3, 5)).reshape(9, -1)
    monkeypatch.setattr(trust, "BLOCK", 4)
    np.testing.assert_allclose(small_pixels(images), expected, rtol=1e-5)
    monkeypatch.setattr(trust, "IMAGES", 5)
    np.testing.assert_allclose(small_pixels(images), expected[::2], rtol=1e-5)


def test_raw_digits_are_as_good_as_themselves() -> None:
    images = load_dataset("digits", None).splits["test"].images  # type: ignore[arg-type]
    own = method(2)
    pca, reduced = own.reduce({"train": small_pixels(images)})
    x_NP = reduced["train"]
    assert (trust_report(own, x_NP, images, 10, 0) or {})["views"] is None
    head = own.cluster({"train": x_NP}, 10, 0, own.smooth({"train": x_NP}, 10)).head
    strong, weak = ViewSettings(), ViewSettings(1, 0, 0, 0, 0, rotation=5)
    agreements = []
    for settings in (strong, weak):
        pairs = list(paired_views(images, settings, torch.device("cpu")))
        views = [torch.cat([x.chunk(2)[i] for x in pairs]) for i in range(2)]
        raw_2nS = np.stack([raw_pixels(pixels(x)).numpy() for x in views])
        clusters_2n = np.stack([head.assign(pca.transform(x)) for x in raw_2nS])
        report = trust_report(own, x_NP, images, 10, 0, Views(clusters_2n, raw_2nS)) or {}
        assert report["pixels"] == {"halves": report["halves"], "views": report["views"]}
        assert report["verdict"] == "no better than pixels"
        agreements.append(report["views"])
    assert agreements[0] < 0.5 < 0.8 < agreements[1] < 1


def test_views_from_the_checkpoint_to_the_metrics(digits_run: FinishedRun, tmp_path: Path) -> None:
    features, file = digits_run
    manifest = Manifest(features)
    views_2nD = manifest.load(artifacts.VIEWS, "train")
    assert (views_2nD.shape, views_2nD.dtype) == ((2, 128, 512), np.float32)
    raw_2nS = manifest.load(artifacts.VIEW_PIXELS, "train")
    trained = TrainedBackbone.load(file, file.parent, torch.device("cpu"))
    images = load_dataset("digits", Path()).splits["train"].images
    pairs = list(paired_views(images, ViewSettings(), torch.device("cpu")))
    for i in range(2):
        view = torch.cat([x.chunk(2)[i] for x in pairs])
        np.testing.assert_allclose(raw_2nS[i], raw_pixels(pixels(view)), rtol=1e-5)
        with torch.inference_mode():
            expected = trained.backbone(view)
        for j in range(2):
            alike = torch.cosine_similarity(torch.tensor(views_2nD[j]), expected)
            assert (float(alike.min()) > 0.99) == (i == j)

    for flags in ({}, {"smooth": False}, {"fit_on": "test"}):
        directory = features
        if flags:
            directory = shutil.copytree(features, tmp_path / next(iter(flags)))
            cluster(directory, **flags)
        manifest = Manifest(directory)
        reported = manifest.metrics()["trust"]
        if "fit_on" in flags:  # another split than the one whose views there are
            assert (reported["views"], reported["pixels"]["views"]) == (None, None)
            continue
        mean, components = map(manifest.load, (artifacts.PCA_MEAN, artifacts.PCA_COMPONENTS))
        length = np.linalg.norm(views_2nD, axis=2, keepdims=True)
        weights, bias = map(manifest.load, (artifacts.HEAD_WEIGHTS, artifacts.HEAD_BIAS))
        x_2nP = (views_2nD / length - mean) @ components.T
        first, second = (x_2nP @ weights.T + bias).argmax(2)
        kappa = cohen_kappa_score(np.append(first, second), np.append(second, first))
        assert reported["views"] == pytest.approx(kappa)
        assert 0 < reported["pixels"]["views"] < 1
