"""The figures and their data, against scikit-learn, naive loops and the files."""

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from src.runtime.cli import RunError, UserError
from src.storage import artifacts
from src.visualization import figures, projection, results, thumbnails
from src.visualization import stage as visualization
from src.visualization.duplicates import Copies, kept
from src.visualization.flags import VisualizeConfig
from src.visualization.images_table import write_images
from src.visualization.map_figure import projection_map
from src.visualization.palette import BASE, cluster_colors, colors
from src.visualization.projection import project
from src.visualization.report_sections import training_image
from src.visualization.results import load_results
from tests.helpers import ROOT
from tests.helpers.digits import all_digits, digits, save_picture, write_digits
from tests.helpers.pixel_run import load_arrays, pixel_run
from tests.helpers.processes import Script, run_python

RECORDS = [
    {"kind": "step", "step": 1, "epoch": 0.5, "loss": 5.0, "learning_rate": 0.1},
    {"kind": "epoch", "epoch": 1, "step": 2, "loss": 4.5, "gradient_norm": None},
    {"kind": "epoch", "epoch": 2, "step": 4, "loss": 4.0, "knn_accuracy": 0.5},
]


@pytest.mark.parametrize("labeled", [True, False])
def test_results_agree_with_the_files(labeled: bool, pixel_digits: Path, tmp_path: Path) -> None:
    if not labeled:
        pixel_run(tmp_path, "digits", Path(), labeled=False)
    directory = pixel_digits if labeled else tmp_path
    results, arrays = load_results(directory), load_arrays(directory)
    own = arrays.distances[np.arange(len(arrays.x)), arrays.clusters]
    np.testing.assert_allclose(results.distance, own, rtol=1e-4)
    assert results.clustering["certainty"] == ("confidence" if labeled else "margin")
    np.testing.assert_allclose(results.certainty, arrays.certainty, atol=1e-4)


def test_the_table_has_a_row_for_each_image(pixel_digits: Path, tmp_path: Path) -> None:
    results, arrays = load_results(pixel_digits), load_arrays(pixel_digits)
    near, xy = np.full(len(arrays.x), -1), np.float32(arrays.x[:, :2])
    near[[5, 1500]] = 3
    keep = np.arange(len(near)) != 5
    sharp = np.where(keep, np.float32(2.5), np.nan)
    unusual = np.arange(len(near)) % 100 == 0
    write_images(
        tmp_path / "images.csv", replace(results, unusual=unusual), Copies(near, keep, sharp), xy
    )
    with (tmp_path / "images.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "path", "cluster", "name", "confidence", "distance", "unusual", "fine", "ignored", "split",
        "near_duplicates", "keep", "sharpness", "x", "y",
    ]  # fmt: skip
    places = [(split, i) for split, count in (("train", 1438), ("test", 359)) for i in range(count)]
    for column, expected in {
        "path": [f"{split}[{i}]" for split, i in places],
        "split": [split for split, _ in places],
        "cluster": arrays.clusters,
        "name": arrays.class_of_cluster[arrays.clusters],
        "unusual": unusual.astype(int),
        "fine": results.fine,
        "ignored": np.zeros(len(near), int),
        "near_duplicates": np.where(near >= 0, "3", ""),
        "keep": keep.astype(int),
        "sharpness": np.where(keep, "2.5", ""),
    }.items():
        assert [row[column] for row in rows] == list(map(str, expected)), column
    own = arrays.distances[np.arange(len(arrays.x)), arrays.clusters]
    columns = {"confidence": arrays.certainty, "distance": own, "x": xy[:, 0], "y": xy[:, 1]}
    for column, expected in columns.items():
        np.testing.assert_allclose([float(row[column]) for row in rows], expected, atol=2e-4)


def test_of_copies_the_one_with_most_pixels_then_bytes_is_kept(tmp_path: Path) -> None:
    image = digits("test")[0]
    for name, side, options in (
        ("small.png", 8, {}), ("wide.bmp", 16, {}), ("same.bmp", 16, {}), ("other.png", 16, {}),
        ("alone.png", 4, {}), ("q30.jpg", 16, {"quality": 30}), ("q95.jpg", 16, {"quality": 95}),
    ):  # fmt: skip
        save_picture(image[:, :side, :side], tmp_path / name, **options)
    names = sorted(file.name for file in tmp_path.iterdir())
    group = {"small.png": 0, "wide.bmp": 0, "same.bmp": 0, "other.png": 0, "alone.png": -1,
             "q30.jpg": 1, "q95.jpg": 1}  # fmt: skip
    numbers = np.array([group[name] for name in names])
    best = {name for name, keep in zip(names, kept(numbers, names, tmp_path), strict=True) if keep}
    assert best == {"same.bmp", "alone.png", "q95.jpg"}  # of equal ones the first
    (tmp_path / "same.bmp").unlink()
    (tmp_path / "q95.jpg").write_bytes(b"no picture")
    rest = [name for name in names if name != "alone.png"]
    numbers = np.array([group[name] for name in rest])
    best = {name for name, keep in zip(rest, kept(numbers, rest, tmp_path), strict=True) if keep}
    assert best == {"wide.bmp", "q30.jpg"}
    assert kept(np.array([-1, 0, 0]), None, tmp_path).tolist() == [True, True, False]


def test_pictures_come_in_the_order_asked_for(pixel_digits: Path) -> None:
    rows = np.array([1500, 3, 1437, 1438, 0])
    expected = all_digits()[rows].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(load_results(pixel_digits).pictures(rows), expected)


def test_missing_and_mixed_files_are_named(pixel_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results in"):
        load_results(tmp_path)
    shutil.copytree(pixel_digits, tmp_path, dirs_exist_ok=True)
    np.save(tmp_path / "test_clusters.npy", np.zeros(359, int))
    with pytest.raises(UserError, match=r"test_clusters\.npy does not match"):
        load_results(tmp_path)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_map_keeps_neighbors(method: projection.ProjectionName) -> None:
    x = np.float32(PCA(20).fit_transform(load_digits().data[:400]))
    xy = project(x, method, seed=0)
    assert (xy.shape, xy.dtype) == ((400, 2), np.float32)
    np.testing.assert_array_equal(xy, project(x, method, seed=0))
    assert trustworthiness(x, xy, n_neighbors=10) > {"tsne": 0.95, "pca": 0.85}[method]


def test_scikit_learn_stands_in_for_opentsne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    x = np.float32(load_digits().data[:200])
    assert trustworthiness(x, project(x, "tsne", seed=0), n_neighbors=10) > 0.95
    with pytest.raises(UserError, match="pip install umap-learn"):
        project(x, "umap", seed=0)


def test_points_beyond_the_sample_lie_among_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "FIT_POINTS", 200)
    x = np.float32(PCA(20).fit_transform(load_digits().data[:300]))  # no equal distances
    xy = project(x, "tsne", seed=1)
    fitted = np.sort(np.random.default_rng(1).permutation(300)[:200])
    for other in np.setdiff1d(np.arange(300), fitted):
        nearest = fitted[np.argsort(np.linalg.norm(x[fitted] - x[other], axis=1))[:5]]
        np.testing.assert_allclose(xy[other], np.median(xy[nearest], axis=0), atol=1e-3)


@pytest.mark.parametrize(("count", "dim"), [(1, 3), (9, 3), (10, 1), (10, 2)])
def test_tiny_maps(count: int, dim: int) -> None:
    x = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    enough = projection.can_arrange(x)
    assert enough == (count == 10 and dim == 2)
    xy = project(x, "tsne" if enough else "pca", 0)
    assert xy.shape == (count, 2)
    assert np.isfinite(xy).all()


@pytest.mark.parametrize("count", [150, 72])  # all, and a sample
def test_every_tile_shows_its_image(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "SIDE", 8 * 32)  # sheets of 64
    monkeypatch.setattr(thumbnails, "PIXELS", {60: 32 * 32 * count, 40: 0})
    pictures = digits("train")[:150].transpose(0, 2, 3, 1)
    images = np.pad(pictures, ((0, 0), (6, 6), (6, 6), (0, 0)))
    sheets = thumbnails.make_sheets(lambda rows, _: images[rows], 150, 48)  # 48 pixels do not fit
    assert len(np.unique(sheets.rows)) == count
    assert len(sheets.webp) == -(-count // 64)
    tiles = []
    for content in sheets.webp:
        sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        tiles.extend(sheet.reshape(-1, 32, 8, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3))
    for row, tile in zip(sheets.rows, tiles, strict=False):
        apart = np.abs(images.astype(int) - tile).mean(axis=(1, 2, 3))
        assert apart.argmin() == row
        assert apart.min() < 12


@pytest.mark.parametrize(
    ("count", "size", "tile"),
    [(400, 160, 160), (400, 3000, 192), (400, 96, 96), (2000, 3000, 96), (2000, 20, 32),
     (13_000, 3000, 64), (20_000, 96, 48), (60_000, 96, 32)],
)  # fmt: skip
def test_tiles_are_as_large_as_the_page_may_be(count: int, size: int, tile: int) -> None:
    chosen, quality = thumbnails.tile_for(count, size)
    assert chosen == tile
    most = 0.2 if quality == 60 else 0.15  # bytes a pixel of photographs
    assert min(count, 13_000) * tile**2 * most * 4 / 3 < (4.5e6 if count == 400 else 11.5e6)


def test_thumbnails_of_own_pictures_are_larger_than_what_the_run_used(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    originals = [rng.integers(0, 255, (3, 150, 150), np.uint8) for _ in range(12)]
    for i, picture in enumerate(originals):
        save_picture(picture, folder / f"{i:02d}.png")
    pixel_run(tmp_path, "folder", folder, clusters="2")  # at 96 pixels
    results = load_results(tmp_path)
    assert results.side() == 150
    rows = np.array([7, 2])
    large = results.thumbnails(rows, 150)
    np.testing.assert_array_equal(large, [originals[row].transpose(1, 2, 0) for row in rows])
    (folder / "02.png").write_bytes(b"")  # while the page is written
    assert results.thumbnails(rows, 160).shape == (2, 160, 160, 3)


@pytest.mark.parametrize("to_seen", [
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]],
], ids=["normal", "red-blind", "green-blind"])  # fmt: skip
def test_color_blind_people_can_tell_ten_clusters_apart(to_seen: np.ndarray) -> None:
    """By CIELAB distance. The matrices for linear RGB are from Machado et al. 2009, table 1."""
    encoded = np.array([to_rgb(color) for color in BASE]).T
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(to_seen @ linear, 0, 1) / [[0.9505], [1], [1.089]]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    assert pdist(lab).min() > 17  # matplotlib's own ten reach 4.6


def test_a_cluster_has_the_color_of_its_class() -> None:
    first, second, third, fourth = cluster_colors([2, -1, 0, -1], 3)
    assert (first, third) == (colors(3)[2], colors(3)[0])
    assert second != fourth
    assert not {second, fourth} & set(colors(3))
    assert cluster_colors([-1] * 12, 0) == colors(12)
    assert len(set(colors(50))) == 50


def test_curves_take_each_quantity_from_the_records_that_have_it() -> None:
    assert figures.curve(RECORDS, "loss") == [(0.5, 5.0)]
    assert figures.curve(RECORDS, "epoch loss") == [(1, 4.5), (2, 4.0)]
    assert figures.curve(RECORDS, "knn_accuracy") == [(2, 0.5)]
    assert figures.curve(RECORDS, "gradient_norm") == []  # null in the log
    image = training_image(RECORDS)
    assert image == training_image(RECORDS)
    assert 'alt="Curves by epoch: Loss, Learning rate, Accuracy"' in image
    assert b"<dc:date>" not in base64.b64decode(image.partition("base64,")[2].rstrip('">'))


@pytest.mark.parametrize("panels", [5, 6])
def test_the_training_curves_fill_the_figure_and_no_title_is_cut_off(panels: int) -> None:
    last = {"activation_rms": 1.0, "projection_std": 0.1, "projection_rank": 9.0}
    last |= RECORDS[-1] if panels == 6 else {"kind": "epoch", "epoch": 2}
    with figures.styled():
        figure = figures.training_curves([*RECORDS[:2], last])
        figure.draw_without_rendering()
    assert len(figure.axes) == panels
    for ax in figure.axes:
        assert ax.lines
        assert ax._left_title.get_window_extent().x1 <= figure.bbox.x1  # type: ignore[attr-defined]
    right_edges = [figure.axes[number].get_window_extent().x1 for number in (2, -1)]
    assert right_edges[0] == pytest.approx(right_edges[1], abs=1)


SCAN: Any = {
    "clusters": [2, 3, 4], "silhouette": [0.1, 0.3, 0.2], "davies_bouldin": [2.0, 1.5, 1.8],
    "stability": [0.5, 0.9, 0.4], "picked": 3,
}  # fmt: skip


def test_every_figure_has_titles_and_nothing_is_cut_off_or_crossed() -> None:
    steps = [
        {"kind": "epoch", "epoch": e, "loss": 3 - e / 9, "gradient_norm": 6.0 / e,
         "learning_rate": 8e-5 / e, "activation_rms": 1 + e / 9, "projection_std": 0.08,
         "projection_rank": 100 - e, "knn_accuracy": 0.5, "kmeans_accuracy": 0.4}
        for e in range(1, 8)
    ]  # fmt: skip
    ratio, scores = 0.04 * 0.97 ** np.arange(100), np.linspace(-0.1, 0.4, 60)
    groups, names = np.arange(60) % 3, ["0 → dress", "1 → t-shirt", "2"]
    with figures.styled():
        drawn = {
            "training": figures.training_curves([steps[0] | {"kind": "step"}, *steps]),
            "pca": figures.pca_variance(ratio / ratio.sum()),
            "silhouette": figures.silhouette_profile(scores, groups, names, colors(3)),
            "sizes": figures.cluster_sizes({"train": np.array([9, 40, 3])}, names),
            "scan": figures.cluster_scan(SCAN),
            "confusion": figures.confusion_matrix(np.eye(3), names, "train: accuracy 79.3%"),
        }
        for figure in drawn.values():
            figure.draw_without_rendering()
    for name, figure in drawn.items():
        for ax in figure.axes:
            assert ax.get_title(loc="left"), name
            texts: list[Any] = [ax._left_title, *ax.texts]  # type: ignore[attr-defined]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            if legend := ax.get_legend():
                boxes.append(legend.get_window_extent())
                assert boxes[-1].y0 >= ax.get_window_extent().y1, name
            for box in boxes:
                assert min(box.x0, box.y0) >= -1, name
                assert box.x1 <= figure.bbox.x1 + 1, name
                assert box.y1 <= figure.bbox.y1 + 1, name
            for line in ax.lines:
                crossed = [b for b in boxes if line.get_path().transformed(line.get_transform())
                           .intersects_bbox(b, filled=False)]  # fmt: skip
                assert not crossed, name


def test_the_confusion_matrix_shows_percent_of_the_class() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0]])
    with figures.styled():
        ax = figures.confusion_matrix(counts, ["$x^{", "b"], "t").axes[0]
    cells = {text.get_position(): text.get_text() for text in ax.texts[1:]}
    assert cells == {(0, 0): "75", (1, 0): "25"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["$x^{", "b", "no class"]


def test_the_confusion_matrix_has_the_classes_that_occur(
    pixel_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"class {c}" for c in range(21_841)]
    results = replace(load_results(pixel_digits), class_names=names)
    scores: Any = {"confusion": [[7, 7, 1], [7, 20_000, 3], [9, -1, 2]], "hungarian_accuracy": 1}
    with figures.styled():
        figure = visualization.confusion(results, "test", scores)
    assert figure
    (ax,) = figure.axes
    classes = ["class 7", "class 9", "class 20000"]
    assert [label.get_text() for label in ax.get_yticklabels()] == classes
    assert [label.get_text() for label in ax.get_xticklabels()] == [*classes, "no class"]
    cells = {text.get_position(): text.get_text() for text in ax.texts[1:]}
    assert cells == {(0, 0): "25", (2, 0): "75", (3, 1): "100"}
    monkeypatch.setattr(figures, "CONFUSED", 2)
    assert visualization.confusion(results, "test", scores) is None
    assert "no confusion matrix of 3 classes" in capsys.readouterr().out


def test_the_cluster_sizes_are_the_sums_of_the_splits() -> None:
    sizes = {"train": np.array([1200, 3, 0]), "test": np.array([34, 0, 0])}
    ax = figures.cluster_sizes(sizes, ["0", "1", "2"]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["1,234", "3", "0"]


@pytest.mark.parametrize("names", [["a", "b"], ["a rather long name of a class"] * 20, ["x"] * 40])
@pytest.mark.parametrize(("known", "height"), [(True, 0.5), (False, 1.3), (True, 0.1), (False, 3)])
def test_points_fill_the_map(
    pixel_digits: Path, names: list[str], known: bool, height: float
) -> None:
    rng = np.random.default_rng(0)
    xy, groups = rng.uniform(size=(100, 2)) * [1, height], rng.integers(0, len(names), 100)
    results = load_results(pixel_digits)
    numbers = [*range(len(names))]
    grouping = replace(
        results.grouping, names=["cluster 0", *names[:-1]], numbers=numbers,
        classes=np.array(numbers) - 1,
    )  # fmt: skip
    labels = np.where((np.arange(100) < 50) & known, groups, -1)
    results = replace(results, groups=groups, grouping=grouping, labels=labels, class_names=names)
    with figures.styled():
        figure = projection_map(results, xy, "t-SNE")
        figure.draw_without_rendering()
    assert len(figure.axes) == 1 + known
    for ax in figure.axes:
        box = ax.get_window_extent()
        left, bottom, right, top = ax.transData.transform([xy.min(axis=0), xy.max(axis=0)]).flat
        x_span, y_span = np.ptp(xy, axis=0)
        assert (top - bottom) / (right - left) == pytest.approx(y_span / x_span, rel=0.03)
        shares = (right - left) / box.width, (top - bottom) / box.height
        assert 0.9 < max(shares) <= 1
        assert min(shares) > (0.9 if 0.4 < height < 1.4 else 0.2)
        assert (ax.get_legend() is None) == (len(names) > 20)
        if legend := ax.get_legend():
            legend_box = legend.get_window_extent()
            assert min(legend_box.x0, legend_box.y0) >= -1
            assert legend_box.width <= box.width * 1.03
            assert legend_box.y1 <= box.y0 + 1


def test_both_maps_draw_a_cluster_and_its_class_in_one_color(pixel_digits: Path) -> None:
    results = load_results(pixel_digits)
    assert results.class_of_cluster.tolist() != list(range(10))
    points = np.float32(np.random.default_rng(0).permutation(len(results.clusters)))
    with figures.styled():
        figure = projection_map(results, np.stack([points, points], axis=1), "t-SNE")
    inks = []  # of every image, by cluster and by class
    for ax in figure.axes:
        dots = ax.collections[-1]
        order = np.argsort(np.ma.getdata(dots.get_offsets())[:, 0])
        inks.append(dots.get_facecolors()[order][np.int64(points)])
    same_ink = (inks[0] == inks[1]).all(axis=1)
    right = results.class_of_cluster[results.clusters] == results.labels
    np.testing.assert_array_equal(same_ink, right)
    by_cluster, by_class = ([t.get_text() for t in ax.get_legend().texts] for ax in figure.axes)
    assert [name.split(" → ")[1] for name in by_cluster] == by_class
    shown = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert shown == {str(k): np.median(points[results.clusters == k]) for k in range(10)}


def test_the_silhouette_figure_names_the_mean(pixel_digits: Path) -> None:
    results = load_results(pixel_digits)
    figure = visualization.silhouettes(results, "train")
    mean = results.metrics["smoothed"]["splits"]["train"]["silhouette"]
    assert figure.axes[0].texts[0].get_text().endswith(f"mean {mean:.3f}")


def test_a_run_gets_every_figure(script: Script, stl10_dir: Path, tmp_path: Path) -> None:
    pixel_run(tmp_path / "features", "stl10", stl10_dir, clusters="3:6")
    log = tmp_path / "trained/metrics.jsonl"  # beside the checkpoint of the features
    log.parent.mkdir()
    log.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    run = script("visualize_features.py", "--wandb", "disabled")
    assert (run.returncode, run.stderr) == (0, "")
    assert len((tmp_path / "features" / artifacts.IMAGES).read_text().splitlines()) == 81
    for line in ("wrote 9 figures to features", "open features/report.html"):
        assert line in run.stdout
    drawn = sorted((tmp_path / "features/figures").glob("[a-z]*"))
    assert [file.name for file in drawn] == [
        "cluster_scan.png", "cluster_sizes.png", "clusters.png", "confusion_test.png",
        "confusion_train.png", "map.png", "pca_variance.png", "silhouette.png", "training.png",
    ]  # fmt: skip
    for file in drawn:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert (pixels < 128).any(), file
        assert min(pixels.shape) > 200, file


def test_nobody_else_writes_before_the_last_file_is_written(
    pixel_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another clustering nor another visualization."""
    directory = shutil.copytree(pixel_digits, tmp_path / "features")
    first_and_last, called = ["load_results", "write_images"], []

    def alone(name: str) -> Callable[..., object]:
        function = getattr(visualization, name)

        def checked(*arguments: object) -> object:
            with pytest.raises(UserError, match="another stage is writing in"):
                visualization.run(config)
            called.append(name)
            return function(*arguments)

        return checked

    config = VisualizeConfig(feature_dir=directory, projection="pca", wandb="disabled")
    for name in first_and_last:
        monkeypatch.setattr(visualization, name, alone(name))
    visualization.run(config)
    assert called == first_and_last
    assert not list(directory.rglob(".*.tmp"))


def test_missing_inputs_are_named(script: Script, stl10_dir: Path, tmp_path: Path) -> None:
    pixel_run(tmp_path / "features", "stl10", stl10_dir, labeled=False, clusters="4")
    flags = ("--format", "pdf", "--projection", "pca", "--data-dir", tmp_path)
    run = script("visualize_features.py", *flags)
    assert run.returncode == 0, run.stderr
    for note in ("no training log", "no pictures: no STL-10 images", "no labels"):
        assert note in run.stdout
    names = sorted(file.name for file in (tmp_path / "features/figures").glob("[a-z]*"))
    assert names == ["cluster_sizes.pdf", "map.pdf", "pca_variance.pdf", "silhouette.pdf"]
    assert (tmp_path / "features/figures/map.pdf").read_bytes().startswith(b"%PDF")


def test_own_pictures_and_a_bad_seed(script: Script, tmp_path: Path) -> None:
    write_digits(tmp_path / "pictures", 40, "train")
    pixel_run(tmp_path / "features", "folder", tmp_path / "pictures", clusters="3")
    draw = ("visualize_features.py", "--projection", "pca")
    for seed in (-1, 2**32):
        run = script(*draw, "--seed", seed)
        assert run.returncode == 2
        assert f"--seed {seed}: it must be from 0 to 4294967295" in run.stderr
    for flags, logged in (((), False), (("--wandb", "offline"), True)):
        flags = (*draw[1:], *flags)
        run = run_python(ROOT / draw[0], *flags, cwd=tmp_path, WANDB_MODE="offline")
        assert run.returncode == 0, run.stderr
        assert bool(list(tmp_path.glob("wandb/**/*.png"))) == logged
    inside = ("--wandb", "offline", "--wandb-dir", "pictures/w")
    shutil.copytree(tmp_path / "features", tmp_path / "pictures/features")
    for flags in (inside, ("--feature-dir", "pictures/features")):
        run = script(*draw, *flags)
        assert run.returncode == 2
        assert f"{flags[-2]} {tmp_path / flags[-1]} is among the pictures" in run.stderr


def test_a_failed_run_is_not_taken_for_missing_pictures(
    pixel_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunError("a process died")

    monkeypatch.setattr(results, "reload_dataset", fail)
    with pytest.raises(RunError):
        load_results(pixel_digits)
