"""The report in a real headless Chromium, against the `.npy` files and the images."""

import base64
import codecs
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from dataset.load_dataset import load_dataset
from docs import make_pictures
from docs.make_pictures import READY, copy_photographs, write_names
from src.storage import artifacts
from src.visualization import thumbnails
from src.visualization.duplicates import Copies
from src.visualization.images_table import write_images
from src.visualization.report import write_report
from src.visualization.results import load_results
from tests.helpers.browser import CONTEXTS, PHONE, OpenReport, Report, draw_report, read_table
from tests.helpers.digits import all_digits, digits, save_picture
from tests.helpers.pixel_run import Arrays, load_arrays, pixel_run
from tests.helpers.processes import Script

HOSTILE = ("<img src=x onerror=hacked=1>", "<script>hacked=1<", "a&amp;b'c\"@@data@@ $x^{")


@pytest.fixture(scope="module")
def drawn(pixel_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features, and a report, of a run on the digits."""
    directory = shutil.copytree(pixel_digits, tmp_path_factory.mktemp("drawn") / "features")
    log = directory / "metrics.jsonl"
    log.write_text('{"kind": "epoch", "epoch": 1, "step": 1, "loss": 4}\n')
    draw_report(directory)
    return directory


@pytest.fixture(scope="module")
def arrays(pixel_digits: Path) -> Arrays:
    return load_arrays(pixel_digits)


ODD_NAMES = {0: "a b#1?.png", 1: 'x, "y".png', 2: "caf\udce9.png"}  # the last one is no UTF-8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features and report of 60 pictures without labels, in a folder, with everything that a
    clustering may record about them."""
    root = tmp_path_factory.mktemp("root")
    for i, image in enumerate(digits("train")[:60]):
        save_picture(image, root / "my pictures/sub" / ODD_NAMES.get(i, f"digit{i:02d}.png"))
    directory = root / "features"
    pixel_run(directory, "folder", root / "my pictures", clusters="3:5")
    results = load_results(directory)
    pixels = {"halves": 0.43, "views": 0.29}
    trust = {"verdict": "partial", "halves": 0.834, "views": 0.716, "pixels": pixels}
    order = np.argsort(results.distance)
    results = replace(
        results, unusual=results.distance > results.distance[order[50]],
        metrics=results.metrics | {"trust": trust},
    )  # fmt: skip
    near = np.full(60, -1)
    near[[3, 9, 30]], near[[20, 21]] = 0, 1
    copies = Copies(near, ~np.isin(np.arange(60), [3, 30, 21]), np.geomspace(1, 9, 60))
    xy = results.x_NP[:, :2].copy()
    write_report(directory / artifacts.REPORT, results, [], copies, xy, "PCA")
    write_images(directory / artifacts.IMAGES, results, copies, xy)
    return directory


def assert_nearest(
    report: Report, arrays: Arrays, image: int, among: Sequence[int] = range(1797)
) -> None:
    """The page shows the nearest neighbors of an image."""
    distance = np.linalg.norm(arrays.x - arrays.x[image], axis=1)
    nearest = np.sort(distance[[other for other in among if other != image]])[:12]
    np.testing.assert_allclose(distance[report.images("#neighbors")], nearest, rtol=1e-5)


@pytest.fixture
def report(open_report: OpenReport, drawn: Path) -> Report:
    return open_report(drawn)


@pytest.fixture(params=CONTEXTS.values(), ids=CONTEXTS)
def unlabeled(open_report: OpenReport, pictures: Path, request: pytest.FixtureRequest) -> Report:
    return open_report(pictures, **request.param)


def test_readme_pictures(script: Script, drawn: Path, program: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    flags = ("--output-dir", tmp_path, "--chromium", program)
    run = script("docs/make_pictures.py", "--feature-dir", drawn, *flags)
    assert run.returncode == 0, run.stderr
    for name in ("map.png", "clusters.jpg", "report.png"):
        picture = tmp_path / name
        assert picture.stat().st_size < 250_000
        pixels = np.asarray(Image.open(picture).convert("HSV"))
        assert pixels[..., 2].std() > 10
    assert pixels.shape == (900, 1400, 3)
    assert (pixels[130:700, 50:1000, 1] > 80).sum() > 1797  # colorful: the map is drawn
    run = script("docs/make_pictures.py", "--feature-dir", tmp_path, *flags)
    assert run.returncode == 2
    assert f"run python visualize_features.py --feature-dir {tmp_path} first" in run.stderr


def test_the_example_is_the_page_with_smaller_pictures(
    script: Script, drawn: Path, tmp_path: Path
) -> None:
    flags = ("--feature-dir", drawn, "--output-dir", tmp_path, "--example")
    run = script("docs/make_pictures.py", *flags)
    assert run.returncode == 0, run.stderr
    example = tmp_path / "example_report.html"
    assert example.stat().st_size < 1_000_000
    pages = [file.read_text(encoding="utf-8") for file in (drawn / "report.html", example)]
    sheet = re.compile(r'(?<=id="sheet-0" data-type="">)[^<]+')
    assert len({sheet.sub("", page) for page in pages}) == 1
    sizes = [Image.open(io.BytesIO(base64.b64decode(sheet.findall(p)[0]))).size for p in pages]
    assert sizes[0] == sizes[1]


def test_the_example_has_smaller_thumbnails_if_it_must(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (drawn / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(make_pictures, "MAX_EXAMPLE_BYTES", len(page) - 60_000)
    monkeypatch.setattr(make_pictures, "SMALLER", [(32, 60), (16, 60)])
    make_pictures.write_example(drawn / "report.html", tmp_path / "e.html", "by A & B")
    example = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert len(example) < len(page) - 60_000
    assert '"tile": 16' in example
    assert "by A &amp; B" in example
    widths = [
        Image.open(io.BytesIO(base64.b64decode(make_pictures.SHEET.findall(text)[0][1]))).width
        for text in (page, example)
    ]
    assert widths[1] * 2 == widths[0]


def test_the_photographs_of_the_example_are_named_by_the_class_of_most(tmp_path: Path) -> None:
    """The classes of a folder are seen by nothing else."""
    source, photos = tmp_path / "source", tmp_path / "photos"
    split = load_dataset("digits", Path()).splits["train"]
    assert split.labels is not None
    for i in range(200):
        folder = source / "train" / f"class {split.labels[i] % 2}"
        save_picture(split.images[i], folder / f"{i:03d}.png")
    class_of = copy_photographs(source, photos, 150)
    assert copy_photographs(source, photos, 150) == class_of
    assert sorted(f.name for f in photos.iterdir()) == sorted(class_of)
    assert len(class_of) == 150
    pixel_run(tmp_path / "features", "folder", photos, clusters="4")
    write_names(tmp_path / "features", class_of)
    results = load_results(tmp_path / "features")
    assert set(results.grouping.names) == {"class 0", "class 1"}
    assert results.file_names
    is_one = np.array([class_of[name] == "class 1" for name in results.file_names])
    for k, name in results.grouping.given.names.items():
        share = is_one[results.clusters == int(k)].mean()
        assert (share > 0.5) == (name == "class 1") or share == 0.5
    for k, name in results.grouping.given.fine.items():
        share = is_one[results.fine == int(k)].mean()
        assert (share if name == "class 1" else 1 - share) >= 2 / 3


def test_it_shows_every_point(report: Report) -> None:
    for shown in (1797, 0):
        assert report.page.inner_text("#shown-count") == f"{shown:,} of 1,797 images"
        pixels = report.pixels("#map")
        drawn = (pixels != pixels[0, 0]).any(axis=2).sum()
        assert drawn > shown or drawn == shown == 0
        assert report.page.is_hidden("#empty") == bool(shown)
        report.page.click("h3:text-is('Split') >> xpath=../button[2]")


def test_hovering_shows_a_picture_and_a_click_more(report: Report, arrays: Arrays) -> None:
    tiles = [Image.fromarray(x).resize((32, 32)) for x in all_digits().transpose(0, 2, 3, 1)]
    images = np.stack(tiles).astype(int)
    for image in report.isolated_images(5):
        assert report.hovers_over(image, *report.point(image))
        differences = images - report.pixels("#tip canvas")
        assert np.abs(differences).mean(axis=(1, 2, 3)).argmin() == image
        report.page.mouse.click(*report.point(image))
        assert_nearest(report, arrays, image)
    second = report.images("#neighbors")[1]
    report.page.click("#neighbors .thumb >> nth=1")
    assert report.selected() == second


def test_filters_keep_what_they_name(report: Report, arrays: Arrays) -> None:
    clusters, labels, named = arrays.clusters, arrays.labels, arrays.class_of_cluster
    train = np.arange(len(labels)) < 1438
    keep, table = np.ones(len(labels), bool), np.ones(len(labels), bool)
    for act, box, rule in (
        (report.page.uncheck, "#group-3", clusters != 3),
        (report.page.uncheck, "#label-5", labels != 5),
        (report.page.check, "#wrong", named[clusters] != labels),
        (report.page.uncheck, "#split-1", train),
    ):
        act(box)
        keep &= rule
        if box in ("#wrong", "#split-1"):  # the table is where the others are chosen
            table &= rule
        assert report.shown() == keep.sum()

    report.settle()
    cells = report.js(
        "[...document.querySelectorAll('#crossing tbody tr')]"
        ".map(r => [...r.querySelectorAll('button')].map(b => +b.textContent))"
    )
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels[table], clusters[table]), 1)
    np.testing.assert_array_equal(cells, expected[:, np.argsort(named)])


def test_the_gallery_is_in_order(report: Report, arrays: Arrays) -> None:
    own = np.flatnonzero(arrays.clusters == 4)
    distance = arrays.distances[:, 4]
    report.page.click("#group-4 ~ button.name")
    keys = {"nearest": distance, "unsure": arrays.certainty, "farthest": -distance}
    for order, key in keys.items():
        report.page.select_option("#gallery-order", order)
        images = report.images("#gallery-grid")
        assert set(images) <= set(own)
        np.testing.assert_allclose(key[images], np.sort(key[own])[:48], rtol=1e-4, atol=1e-4)
    report.page.click("#more")
    assert len(report.images("#gallery-grid")) == min(len(own), 144)

    report.page.select_option("#gallery-order", "random")
    report.page.click("#more")
    images = np.array(report.images("#gallery-grid"))[:100]
    assert set(images) <= set(own)
    places = (*keys.values(), np.arange(len(distance)))  # the order has to do with none of them
    correlations = [np.corrcoef(np.arange(100), key[images])[0, 1] for key in places]
    assert np.abs(correlations).max() < 0.3


def test_it_works_with_the_keyboard(report: Report, arrays: Arrays) -> None:
    press, before = report.page.keyboard.press, report.pixels("#map")
    report.page.focus("#map")
    press("+")
    press("ArrowRight")
    box = report.page.locator("#map").bounding_box()
    for image in report.isolated_images(30):
        x, y = report.point(image, zoom=1.4)
        if 100 < x - box["x"] < box["width"] and 0 < y - box["y"] < box["height"]:
            assert report.hovers_over(image, x - 60, y)
    press("Enter")
    first = report.selected()
    press("n")
    second = report.selected()
    assert first != second
    assert arrays.clusters[first] == arrays.clusters[second]
    press("p")
    assert report.selected() == first
    press("Escape")
    assert report.page.is_hidden("#detail")
    for _ in range(14):  # until the points are pictures
        press("+")
    press("0")
    np.testing.assert_array_equal(report.pixels("#map"), before)

    report.page.focus("#theme")
    inside = "document.activeElement.closest('#gallery-grid') !== null"
    stops = next(stop for stop in range(50) if press("Tab") or report.js(inside))
    assert stops < 15
    press("ArrowRight")
    assert report.js("document.activeElement.matches('#gallery-grid :nth-child(2)')")
    press("Enter")
    assert report.selected() == report.images("#gallery-grid")[1]
    press("Tab")
    assert not report.js(inside)


def test_dragging_and_the_wheel_move_the_map(report: Report) -> None:
    (image,) = report.isolated_images(1)
    (x, y), mouse = report.point(image), report.page.mouse
    mouse.move(x, y)
    report.page.focus("#map")
    before = report.pixels("#map")
    mouse.wheel(0, -500)
    report.until_map_is_not(before)
    assert report.hovers_over(image, x, y)  # it stays under the pointer
    mouse.down()
    mouse.move(x + 30, y - 20, steps=3)
    mouse.up()
    assert report.hovers_over(image, x + 30, y - 20)
    assert report.page.is_hidden("#detail")  # a drag is not a click


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(open_report: OpenReport, drawn: Path, theme: str) -> None:
    report = open_report(drawn, color_scheme=theme, **PHONE)
    assert report.js("document.documentElement.scrollWidth") <= 400
    background = report.js("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background[4:-1].split(","))) / 3
    assert (brightness < 60) == (theme == "dark")
    curves = report.page.locator("#training .scroll").screenshot()
    curves = Image.open(io.BytesIO(curves)).convert("L")
    title = curves.crop((0, 0, curves.width, 0.2 * curves.height))  # of the first curves
    assert np.ptp(title) > 180
    assert (np.median(title) < 60) == (theme == "dark")
    (image,) = report.isolated_images(1)
    report.js("scrollTo(0, 0)")
    report.page.touchscreen.tap(*report.point(image))
    assert report.selected() == image
    report.page.click("#theme")
    assert report.js("getComputedStyle(document.body).backgroundColor") != background


def test_names_are_shown_and_not_run(open_report: OpenReport, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        for i in range(6):
            noise = rng.integers(0, 255, (3, 96, 96), np.uint8)
            save_picture(noise, tmp_path / "pictures/train" / name / f"script><b>{i}.png")
    pixel_run(tmp_path / "features", "folder", tmp_path / "pictures")
    draw_report(tmp_path / "features")
    report = open_report(tmp_path / "features")
    text = report.page.inner_text("body")
    assert text.startswith("Clusters of pictures")
    assert report.page.locator("#training").count() == 0
    assert all(name in text for name in HOSTILE)
    report.page.click("#gallery-grid .thumb >> nth=0")
    assert "<b>" in report.page.inner_text("#portrait")
    assert report.js("typeof hacked") == "undefined"
    assert report.js("document.querySelectorAll('b, img').length") == 0


def test_a_sample_of_the_pictures_is_called_one(
    open_report: OpenReport, drawn: Path, arrays: Arrays, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    monkeypatch.setitem(thumbnails.PIXELS, 60, 32 * 32 * 300)
    draw_report(tmp_path)
    report = open_report(tmp_path)
    assert "random sample of 300 images" in report.page.inner_text("#summary")
    assert report.shown() == 1797
    report.page.select_option("#gallery-group", "all")
    while report.page.is_visible("#more"):
        report.page.click("#more")
    pictured = report.images("#gallery-grid")
    assert len(pictured) == 300
    image = next(i for i in range(1797) if i not in pictured)
    report.select(image)
    assert_nearest(report, arrays, image, pictured)
    assert report.page.is_hidden("#portrait canvas")


@pytest.mark.parametrize("width", CONTEXTS)
def test_what_answers_a_click_is_in_view(
    open_report: OpenReport, drawn: Path, arrays: Arrays, width: str
) -> None:
    report = open_report(drawn, **CONTEXTS[width])
    page, place = report.page, "cluster " if width == "wide" else ""
    names = [f"{place}{k} → {c}" for k, c in enumerate(arrays.class_of_cluster)]
    assert sorted(report.js("written")) == names
    assert page.inner_text("#gallery-title").startswith(f"Cluster {names[0].removeprefix(place)}:")

    page.locator("#gallery-grid .thumb >> nth=40").click()
    assert report.selected() == report.images("#gallery-grid")[40]
    assert report.in_view("#portrait")
    assert report.js("[...document.querySelectorAll('[aria-current=true]')].length") >= 1
    (other,) = arrays.clusters[[report.isolated_images(1)[0]]]
    report.select(report.isolated_images(1)[0])
    assert page.input_value("#gallery-group") == str(other)
    page.click("#deselect")

    numbers = "[...document.querySelectorAll('#crossing button')].map(b => +b.textContent)"
    report.settle()
    before = report.js(numbers)
    cell = page.locator("#crossing button:enabled >> nth=1")
    cell.click()
    assert report.shown() == int(cell.text_content() or 0)
    report.settle()
    assert report.js(numbers) == before
    assert all(map(report.in_view, ("#gallery-title", "#shown-count", "#show-all")))
    assert len(report.js("written")) == 1  # clusters without a point have no name
    page.click("#show-all")
    assert report.shown() == 1797

    report.open_filters()
    page.click("#group-3 ~ button.link")
    assert report.shown() == (arrays.clusters == 3).sum()
    assert all(map(report.in_view, ("#shown-count", "#show-all")))
    page.click("h3:text-is('Cluster') >> xpath=../button[2]")
    assert page.is_visible("text=No image passes the filters.")


def test_the_wheel_is_the_pages_until_a_click(report: Report) -> None:
    page, box = report.page, report.page.locator("#map").bounding_box()
    x, y = box["x"] + 5, box["y"] + box["height"] / 2  # no point is near
    page.mouse.move(x, y)
    before = report.pixels("#map")
    page.mouse.wheel(0, 100)
    report.until("scrollY === 100 && !document.querySelector('#wheel-hint').hidden")
    np.testing.assert_array_equal(report.pixels("#map"), before)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -50)
    page.keyboard.up("Control")
    report.until_map_is_not(before)
    zoomed = report.pixels("#map")
    page.mouse.click(x, y)
    page.mouse.wheel(0, -50)
    report.until_map_is_not(zoomed)
    assert report.js("scrollY") == 100


def test_one_finger_scrolls_and_two_zoom(open_report: OpenReport, pictures: Path) -> None:
    report = open_report(pictures, **PHONE)
    before = report.pixels("#map")
    box = report.page.locator("#map").bounding_box()
    middle = {"x": 200, "y": int(box["y"] + box["height"] / 2)}
    devtools = report.page.context.new_cdp_session(report.page)
    pinch = {"scaleFactor": 2, "gestureSourceType": "touch", **middle}
    devtools.send("Input.synthesizePinchGesture", pinch)
    report.until_map_is_not(before)
    assert report.js("visualViewport.scale") == 1
    before = report.pixels("#map")
    for kind, moved in [("Start", 0), *(("Move", 20 * i) for i in range(1, 11)), ("End", None)]:
        at = [] if moved is None else [{"x": 200, "y": middle["y"] - moved}]
        devtools.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": at})
    report.until("scrollY > 100")
    np.testing.assert_array_equal(report.pixels("#map"), before)


def test_without_labels_it_shows_every_number_that_exists_and_no_other(unlabeled: Report) -> None:
    page = unlabeled.page
    unlabeled.open_filters()
    body = page.inner_html("main") + page.inner_text("body")
    assert "unknown" not in body
    assert "Class" not in page.inner_text("body")
    cells = page.locator("#metrics td").all_text_contents()
    assert "-" not in cells
    assert len(cells) == 2 * 6
    alt = page.get_attribute("#scan img", "alt")
    assert alt == "Scores by number of clusters: Separation, Davies-Bouldin index, Stability"
    assert page.locator("#training").count() == 0
    for words in ("partial", "0.83", "0.43", "0.72", "0.29"):
        assert words in page.inner_text("#verdict")
    groups = page.locator("#duplicates .grid")
    shown = [groups.nth(i).locator(".thumb") for i in range(groups.count())]
    images = [[int(t.get_attribute("data-image")) for t in row.all()] for row in shown]
    assert images == [[9, 3, 30], [20, 21]]  # the one to keep first
    assert unlabeled.js("document.documentElement.scrollWidth") <= unlabeled.js("innerWidth")


def test_few_points_are_pictures(unlabeled: Report, pictures: Path) -> None:
    (image,) = unlabeled.isolated_images(1)
    box = unlabeled.page.locator("#map").bounding_box()
    side = int(min(64, 0.55 * (box["width"] * box["height"] / 60) ** 0.5)) - 6
    x, y = unlabeled.point(image)
    left, top = int(x - box["x"] - side / 2), int(y - box["y"] - side / 2)
    drawn = unlabeled.pixels("#map")[top : top + side, left : left + side, 0]
    shown = load_results(pictures).pictures(np.arange(60))
    tiles = [Image.fromarray(x).resize((side, side)) for x in shown]
    red = np.stack([np.asarray(tile)[..., 0].ravel() for tile in tiles])
    assert np.corrcoef(drawn.ravel(), red)[0, 1:].argmax() == image


def test_no_name_hides_an_unusual_picture(
    open_report: OpenReport, pictures: Path, tmp_path: Path
) -> None:
    results, xy = load_results(pictures), np.random.default_rng(0).normal(size=(60, 2))
    image = int(np.flatnonzero(results.clusters == 0)[0])
    others = np.setdiff1d(np.flatnonzero(results.clusters == 0), image)
    xy[image] = np.sort(xy[others], axis=0)[len(others) // 2]  # where the name is written
    unusual = np.arange(60) == image
    for is_unusual in (False, True):
        shown = replace(results, unusual=unusual & is_unusual)
        copies = Copies(np.full(60, -1), np.ones(60, bool), np.zeros(60))
        write_report(tmp_path / artifacts.REPORT, shown, [], copies, xy, "PCA")
        write_images(tmp_path / artifacts.IMAGES, shown, copies, xy)
        report = open_report(tmp_path)
        box = report.page.locator("#map").bounding_box()
        side = int(0.55 * (box["width"] * box["height"] / 60) ** 0.5)
        x, y = report.point(image) - np.array([box["x"], box["y"]])
        drawn = report.pixels("#map")[int(y) - 6 : int(y) + 6, int(x) - 12 : int(x) + 12].astype(
            int
        )
        tile = Image.fromarray(results.pictures(np.array([image]))[0]).resize((side, side))
        middle = np.asarray(tile)[side // 2 - 6 : side // 2 + 6, side // 2 - 12 : side // 2 + 12]
        assert (np.abs(drawn - middle).mean() < 20) == is_unusual


def test_search_unusual_ones_and_the_original_picture(unlabeled: Report, pictures: Path) -> None:
    page, results = unlabeled.page, load_results(pictures)
    names = results.file_names or []
    page.fill("#search", "DIGIT1")
    assert unlabeled.shown() == sum("digit1" in name for name in names) == 10
    page.fill("#search", "")
    unlabeled.open_filters()
    page.check("#unusual-only")
    assert unlabeled.shown() == 9
    assert page.inner_text("label:has(#unusual-only) .count") == "9"
    page.click("#show-all")
    for name in ODD_NAMES.values():
        row = names.index(f"sub/{name}")
        unlabeled.select(row)
        link = page.locator("#portrait a").evaluate("a => a.href")
        target = os.fsdecode(unquote_to_bytes(link.removeprefix("file://")))
        assert Path(target) == pictures.parent / "my pictures/sub" / name
        assert f"{results.certainty[row]:.3f}" in page.inner_text("#portrait")
    assert "Margin" in page.inner_text("#portrait")


def test_a_frame_around_a_part_of_the_map_and_its_images_as_a_file(unlabeled: Report) -> None:
    report, page = unlabeled, unlabeled.page
    page.click("#frame")
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    places = report.points().tolist()
    right, bottom = box["x"] + 0.55 * box["width"], box["y"] + 0.6 * box["height"]
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(right, bottom, steps=3)
    page.mouse.up()
    inside = [i for i, (x, y) in enumerate(places) if x <= right and y <= bottom]
    assert 0 < len(inside) < 60
    assert report.shown() == len(inside)
    assert set(report.images("#gallery-grid")) == set(inside)
    report.open_filters()
    rows = read_table(report.downloaded("#save-csv"))
    assert len(rows) == len(inside)
    for row, i in zip(rows, inside, strict=True):
        for column in ("margin", "distance", "sharpness", "x", "y"):
            assert float(row.pop(column)) == pytest.approx(float(report.table[i][column]), rel=1e-5)
        assert row == {key: report.table[i][key] for key in row}
    page.click("#frame")
    assert report.shown() == 60


def test_a_table_for_spreadsheets(unlabeled: Report) -> None:
    for k, name in enumerate(("=1+1", "Bär")):
        unlabeled.page.fill(f"[aria-label='name of cluster {k}']", name)
        unlabeled.page.keyboard.press("Tab")
    unlabeled.open_filters()
    table = unlabeled.downloaded("#save-csv")
    assert table.startswith(codecs.BOM_UTF8)
    names = {row["name"] for row in read_table(table) if row["cluster"] in "01"}
    assert names == {"'=1+1", "Bär"}


def test_two_clusters_with_one_name_are_one(unlabeled: Report, pictures: Path) -> None:
    page, results = unlabeled.page, load_results(pictures)
    count = results.clustering["clusters"]
    for k in (0, 1):
        page.fill(f"[aria-label='name of cluster {k}']", " sparrow")
        page.keyboard.press("Tab")
    assert page.locator("#gallery-group option").count() == 1 + count - 1
    page.select_option("#gallery-group", index=1)
    assert page.inner_text("#gallery-title").startswith("Clusters 0 + 1 → sparrow: ")
    unlabeled.open_filters()
    page.click("#group-0 ~ button.link")
    assert unlabeled.shown() == (results.clusters < 2).sum()
    saved = json.loads(unlabeled.downloaded("#save-names"))
    assert saved["clusters"] == artifacts.Manifest(pictures).clusters_id
    assert saved["names"] == {"0": "sparrow", "1": "sparrow"}
    (pictures / artifacts.NAMES).write_text(json.dumps(saved))
    assert load_results(pictures).grouping.given.names == {"0": "sparrow", "1": "sparrow"}
    (pictures / artifacts.NAMES).unlink()


def test_copies_across_splits_are_warned_of(
    open_report: OpenReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, rows in {"train": [*range(30), 5], "test": [*range(40, 60), 2, 3]}.items():
        for i, row in enumerate(rows):
            save_picture(digits("train")[row], tmp_path / f"pictures/{split}/x/{i:02d}.png")
    pixel_run(tmp_path, "folder", tmp_path / "pictures")
    draw_report(tmp_path)
    assert "note: near-duplicates across splits: 2 groups" in capsys.readouterr().out
    page = open_report(tmp_path).page
    page.wait_for_selector("#duplicates h3")
    assert "6 images in 3 groups" in page.inner_text("#duplicates .hint")
    assert "2 of these groups lie in more than one split" in page.inner_text("#duplicates .hint")
    headings = page.locator("#duplicates h3").all_text_contents()
    assert headings == [  # of equal files the first is kept
        "Group 0, in train and test, keep train/x/02.png",
        "Group 1, in train and test, keep train/x/03.png",
        "Group 2, keep train/x/05.png",
    ]


def changed(directory: Path, copy: Path, **changes: Any) -> Path:
    """A copy of the report in `directory` with other data, in a folder of its own."""
    page = (directory / artifacts.REPORT).read_text(encoding="utf-8")
    content = re.compile(r'(?<=id="data">)[^<]+')
    data = json.loads(content.findall(page)[0]) | changes
    copy.mkdir()
    page = content.sub(lambda _: json.dumps(data).replace("<", "\\u003c"), page)
    (copy / artifacts.REPORT).write_text(page, encoding="utf-8")
    return copy


def test_a_table_of_very_many_classes_is_left_out(
    open_report: OpenReport, drawn: Path, tmp_path: Path
) -> None:
    classes = [str(c) for c in range(5_000)]
    report = open_report(changed(drawn, tmp_path / "many", classes=classes))
    assert report.page.is_hidden("#crossing")
    assert report.shown() == 1797
    assert report.page.locator("#crossing button").count() == 0


def test_typed_names_outlive_the_tab(unlabeled: Report, pictures: Path, tmp_path: Path) -> None:
    report, page = unlabeled, unlabeled.page
    count = load_results(pictures).clustering["clusters"]

    def type_name(cluster: int, name: str) -> None:
        field = f"[aria-label='name of cluster {cluster}']"
        page.fill(field, "")
        page.type(field, name)

    def names() -> list[str]:
        shown = [page.input_value(f"[aria-label='name of cluster {k}']") for k in range(count)]
        titles = [f"cluster {k}" + (f" → {name}" if name else "") for k, name in enumerate(shown)]
        assert page.locator("#gallery-group option").all_text_contents()[1:] == titles
        return shown[:3]

    def open_page(directory: Path) -> list[str]:
        page.goto((directory / artifacts.REPORT).as_uri())
        report.js(READY)
        return names()

    page.locator("#stored").scroll_into_view_if_needed()
    assert report.in_view("#stored")
    type_name(1, "<b>wren")
    page.keyboard.press("Tab")
    type_name(0, "cafe\u0301 ")  # and the page is closed in the middle of typing
    assert open_page(pictures) == ["caf\u00e9", "<b>wren", ""]
    saved = json.loads(report.downloaded("#save-names"))["names"]
    assert saved == {"0": "caf\u00e9", "1": "<b>wren"}

    other = changed(pictures, tmp_path / "other", namesFile={"clusters": "of another clustering"})
    assert open_page(other) == ["", "", ""]
    said = {"names": {"0": "finch", "2": "owl"}, "fine": {}, "moved": {}, "ignored": {}}
    later = changed(pictures, tmp_path / "later", said=said)
    assert open_page(later) == ["finch", "<b>wren", "owl"]  # made after "café" was typed
    type_name(2, "")
    type_name(0, "robin")
    assert open_page(later) == ["robin", "<b>wren", ""]


@pytest.mark.parametrize(
    "storage", ["undefined", "(() => { throw new DOMException('refused', 'SecurityError'); })()"]
)
def test_names_work_in_a_browser_without_storage(
    open_report: OpenReport, pictures: Path, storage: str
) -> None:
    report = open_report(pictures)
    page = report.page
    page.add_init_script(
        f"Object.defineProperty(window, 'localStorage', {{ get: () => {storage} }});"
    )
    page.reload()
    report.js(READY)
    assert page.is_hidden("#stored")
    page.fill("[aria-label='name of cluster 0']", "wren")
    page.keyboard.press("Tab")
    assert "wren" in page.inner_text("#gallery-group")
    assert json.loads(report.downloaded("#save-names"))["names"] == {"0": "wren"}
    page.reload()
    report.js(READY)
    assert page.input_value("[aria-label='name of cluster 0']") == ""
