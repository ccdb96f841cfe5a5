"""What becomes of more images than everything can be computed of: samples, with their errors. The
limits are lowered here."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.metrics import adjusted_rand_score

from src.clusters import scoring
from src.evaluation import sampling
from src.evaluation.metrics import internal_metrics, knn_accuracy
from src.evaluation.near_duplicates import near_duplicates
from src.evaluation.sampling import standard_error
from src.evaluation.silhouette import silhouettes_of
from src.storage import artifacts
from src.storage.artifacts import ASSIGNMENTS, FINE, Manifest
from src.training.forecast import later_stages
from src.visualization import report as page
from src.visualization.duplicates import Copies, find_copies
from src.visualization.results import load_results
from tests.helpers import blobs
from tests.helpers.browser import OpenReport, draw_report

EXACT = 400


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "EXACT", EXACT)
    monkeypatch.setattr(sampling, "FITTED", EXACT)
    monkeypatch.setattr(sampling, "SCORED", 200)
    monkeypatch.setattr(scoring, "SCORED", 200)
    monkeypatch.setattr(scoring, "PRODUCTS", EXACT**2)
    monkeypatch.setattr(page, "SHOWN", 300)
    monkeypatch.setattr(page, "SHOWN_FINE", 100)


def test_the_error_is_that_of_all_possible_samples() -> None:
    values = np.array([0.3, -1.0, 4.0, 0.5, 2.2, 0.0])
    samples = [list(rows) for rows in itertools.combinations(values, 3)]
    squared = np.mean([standard_error(np.array(sample), len(values)) ** 2 for sample in samples])
    assert squared == pytest.approx(np.var(np.mean(samples, axis=1)))


def test_silhouettes_of_a_sample_are_those_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.evaluation.silhouette.BLOCK", 64)
    rng = np.random.default_rng(0)
    clusters = rng.integers(5, size=700) * 3
    clusters[17] = 1  # alone
    x = (rng.normal(size=(700, 8)) + 1000 + clusters[:, None] / 4).astype(np.float32)
    x[20:30] = x[19]
    rows = np.append(rng.permutation(np.arange(30, 700))[:150], np.arange(15, 25))
    expected = sk.silhouette_samples(x.astype(np.float64), clusters)[rows]
    np.testing.assert_allclose(silhouettes_of(x, clusters, rows), expected, atol=1e-6)


@pytest.mark.usefixtures("low_limits")
def test_the_silhouette_of_many_rows_comes_with_its_error() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(4, size=900)
    x = (rng.normal(size=(900, 5)) + clusters[:, None]).astype(np.float32)
    scores, few = internal_metrics(x, clusters), internal_metrics(x[:EXACT], clusters[:EXACT])
    assert "silhouette_error" not in few
    assert few["silhouette"] == pytest.approx(sk.silhouette_score(x[:EXACT], clusters[:EXACT]))
    error, whole = scores["silhouette_error"], sk.silhouette_samples(x, clusters)
    assert error == pytest.approx(whole.std() / np.sqrt(200) * np.sqrt(1 - 200 / 900), rel=0.1)
    assert scores["silhouette"] != pytest.approx(whole.mean(), abs=1e-6)
    assert scores["silhouette"] == pytest.approx(whole.mean(), abs=3 * error)
    assert scores["davies_bouldin"] == pytest.approx(sk.davies_bouldin_score(x, clusters))


def test_clusters_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    splits = {"train": blobs.blobs(900, 0), "test": blobs.blobs(300, 1)}
    whole = blobs.write(tmp_path / "whole", **splits)
    exact = blobs.metrics(whole)
    assert "±" not in capsys.readouterr().out
    assert "sample" not in exact["fit"]
    for name, value in {"EXACT": EXACT, "FITTED": 300, "SCORED": 200}.items():
        monkeypatch.setattr(sampling, name, value)
    monkeypatch.setattr(scoring, "PRODUCTS", 300 * 300 * 20)
    monkeypatch.setattr(scoring, "SCORED", 200)
    sampled = blobs.write(tmp_path / "sampled", **splits)
    scores, printed = blobs.metrics(sampled), capsys.readouterr().out

    assert scores["fit"]["sample"] == 300
    assert "a random sample of 300 of the 900 images of train; all of them are assigned" in printed
    assert "±: standard error, as the score is that of a random sample of the images" in printed
    for name in ("kmeans", "smoothed"):
        train, test = (scores[name]["splits"][split] for split in ("train", "test"))
        exactly = exact[name]["splits"]["train"]
        assert train["images"] == sum(train["cluster_sizes"]) == 900
        assert f"{train['silhouette']:.3f} ± {train['silhouette_error']:.1g}" in printed
        limit = 4 * train["silhouette_error"]
        assert train["silhouette"] == pytest.approx(exactly["silhouette"], abs=limit)
        assert train["knn_accuracy"] == train["hungarian_accuracy"] == 1
        assert train["knn_error"] == 0
        assert not {"silhouette_error", "knn_error"} & {*test}
    assert exact["trust"]["verdict"] == scores["trust"]["verdict"] == "clear"
    one, other = Manifest(whole.feature_dir), Manifest(sampled.feature_dir)
    for split in splits:
        pair = one.load(ASSIGNMENTS, split), other.load(ASSIGNMENTS, split)
        assert adjusted_rand_score(*pair) == 1
        assert len(other.load(FINE, split)) == len(pair[0])
    fine, (_, labels) = other.load(FINE, "train"), splits["train"]
    assert all(len({*labels[fine == f]}) == 1 for f in range(fine.max() + 1))
    assert len(np.unique(other.load(FINE, "train"))) == len(other.load(artifacts.FINE_TREE)) + 1


@pytest.mark.usefixtures("low_limits")
def test_knn_of_a_sample_leaves_each_image_out() -> None:
    """Of noise: with itself among its neighbors, an image would always be right."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(1000, 6)), rng.integers(2, size=1000)
    method = type("M", (), {"named_on": "train", "labels": {"train": labels}})()
    method.labeled_rows = lambda split: np.arange(1000)
    scores = scoring.knn_of(method, {"train": x}, "train")
    exact = knn_accuracy(x, labels, x, labels, leave_one_out=True)
    assert scores["knn_error"] == pytest.approx(np.sqrt(0.25 / 200 * 0.8), rel=0.05)
    assert scores["knn_accuracy"] == pytest.approx(exact, abs=3 * scores["knn_error"])


def test_what_comes_after_training_is_estimated_for_many_images() -> None:
    assert later_stages(10_000, cores=2) is None
    assert (later_stages(100_000, cores=2) or "").endswith("about 4 minutes")
    assert (later_stages(10**6, cores=2) or "").endswith("about 17 minutes")


@pytest.mark.usefixtures("low_limits")
def test_near_duplicates_of_a_sample() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(300, 3, 4, 4), dtype=np.uint8)
    images = images.repeat(8, axis=2).repeat(8, axis=3)
    images = np.concatenate([images, images])  # the second half are the copies
    groups = near_duplicates({"train": images[:300], "test": images[300:]})
    asked = sampling.scored_rows(600)
    number = np.concatenate([*groups.values()])
    found = np.flatnonzero(number >= 0)
    assert len(asked) == 200
    assert set(found) == {*asked, *(asked + 300) % 600}
    assert (number[found] == number[(found + 300) % 600]).all()


@pytest.mark.usefixtures("low_limits")
def test_the_page_of_a_sample_has_whole_groups_of_copies(
    open_report: OpenReport, pixel_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SHOWN_COPIES", 12)
    monkeypatch.setattr(page, "SHOWN", 200)
    results, rows = load_results(pixel_digits), np.arange(1797)
    groups = np.where(rows < 1400, rows % 280, -1)  # of five copies, the last one is to keep
    copies = Copies(groups, rows >= 1120, np.zeros(1797, np.float32))
    shown = page.shown_images(results, copies)
    page.write_report(
        tmp_path / "report.html", results, [], copies, results.x_NP[:, :2].copy(), "PCA"
    )
    report = open_report(tmp_path)
    for _ in range(10):
        if report.page.is_visible("#more-duplicates"):
            report.page.click("#more-duplicates")
    headings = report.page.locator("#duplicates h3").all_text_contents()
    for group in range(2):
        assert {*range(group, 1400, 280)} <= {*shown}
        assert f"Group {group}, keep train[{1120 + group}]" in headings
    assert len(headings) == len({*groups[shown]} - {-1})
    kept = {*groups[shown[copies.keep_N[shown]]]} - {-1}
    assert sum(", keep train[" in heading for heading in headings) == len(kept)
    assert not [heading for heading in headings if "undefined" in heading]


@pytest.mark.usefixtures("low_limits")
def test_the_page_of_a_sample(
    open_report: OpenReport, pixel_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    directory = shutil.copytree(pixel_digits, tmp_path / "features")
    draw_report(directory)
    results, printed = load_results(directory), capsys.readouterr().out
    copies = find_copies(results)
    shown = page.shown_images(results, copies)
    assert 300 <= len(shown) <= 500
    assert {*results.fine[shown]} == {*results.fine}
    assert f"the report has a sample of {len(shown):,} of 1,797 images" in printed
    assert re.search(r"sample of 200 of the 1,797 images .* have some", capsys.readouterr().out)

    report = open_report(directory)
    assert len(report.table) == 1797
    assert report.shown() == len(shown)
    summary = report.page.inner_text("#summary")
    assert summary.startswith("1,797 images")
    assert f"a sample of {len(shown):,}. images.csv has every image" in summary
    assert not report.page.is_visible("#broken")
    # An image of the page is that of its name.
    assert report.js("nameOf(count - 1)") == report.names[shown[-1]]
    report.select(int(shown[50]))
    assert report.selected() == shown[50]
    fact = report.page.inner_text("#portrait dl")
    assert f"{results.distance[shown[50]]:.3f}" in fact

    def ink() -> int:
        pixels = report.pixels("#map").astype(int)
        return int((np.abs(pixels - pixels[0, 0]).sum(axis=2) > 20).sum())

    report.js("sheetsLeft = 1; request()")  # dots, as with a larger sample
    everything = ink()
    report.js("point.count = 0; request()")
    only_sample = ink()
    assert everything > only_sample + 500
    report.js("point.count = 1797; request()")
    # Points belong to groups as images do.
    of_points = np.array(report.js("[...groupOfPoint]"))
    assert (of_points[shown] == report.js("[...group]")).all()
    places = np.array(report.js("[...point.xy]")).reshape(-1, 2) / 65535
    xy = np.array([[float(row["x"]), float(row["y"])] for row in report.table])
    np.testing.assert_allclose(places, (xy - xy.min(0)) / np.ptp(xy, axis=0), atol=2e-5)
    assert ink() == everything
    report.js("showOnly('group', 0)")
    assert ink() < everything / 2

    text = (directory / artifacts.REPORT).read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace('id="xy" data-type="f4">', 'id="xy" data-type="f4">!'))
    tab = report.page.context.browser.new_page()
    tab.goto(broken.as_uri())
    assert "images.csv, in the same folder, has every image" in tab.inner_text("#broken")
