"""The report in a real headless Chromium, against the `.npy` files and the images."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import Script
from PIL import Image
from pixel_run import Arrays, load_arrays, pixel_run
from scipy.spatial import KDTree

from dataset.load_dataset import load_dataset
from docs.make_pictures import FLAGS, READY
from src.storage import artifacts
from src.visualization import thumbnails
from visualize_features import VisualizeConfig, main

HOSTILE = ("<img src=x onerror=hacked=1>", "<script>hacked=1<", "a&amp;b'c\"@@data@@ $x^{")


def draw_report(directory: Path) -> None:
    main(VisualizeConfig(directory, directory, projection="pca", wandb="disabled"))


@pytest.fixture(scope="module")
def program() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return browser or pytest.skip(f"none of {', '.join(names)} is installed, and no $CHROMIUM")


@pytest.fixture(scope="module")
def chromium(program: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features, and a report, of a run on the digits."""
    directory = tmp_path_factory.mktemp("features")
    pixel_run(directory, "digits", Path())
    log = directory / "metrics.jsonl"
    log.write_text('{"kind": "epoch", "epoch": 1, "step": 1, "loss": 4}\n')
    draw_report(directory)
    return directory


@pytest.fixture(scope="module")
def arrays(digits: Path) -> Arrays:
    return load_arrays(digits)


class Report:
    """A report in a tab of the browser, and everything that went wrong in it."""

    def __init__(self, browser: Any, directory: Path, **context: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}} | context)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.urls: list[str] = []
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.goto((directory / artifacts.REPORT).as_uri(), timeout=60_000)
        self.js(READY)

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def images(self, selector: str) -> list[int]:
        """The images whose thumbnails stand in an element."""
        thumbnails = f"document.querySelectorAll('{selector} .thumb')"
        return self.js(f"[...{thumbnails}].map(thumbnail => +thumbnail.dataset.image)")

    def selected(self) -> int:
        return int(self.page.get_attribute("#detail", "data-image") or -1)

    def point(self, image: int) -> tuple[float, float]:
        """The position of an image in the window."""
        box, place = self.page.locator("#map").bounding_box(), self.js(f"report.place({image})")
        return box["x"] + place["x"], box["y"] + place["y"]

    def isolated_images(self, count: int) -> list[int]:
        """The images with the most room around them on the map."""
        places = self.js("Array.from({length: report.data.count}, (_, i) => report.place(i))")
        xy = np.array([[place["x"], place["y"]] for place in places])
        return np.argsort(-KDTree(xy).query(xy, 2)[0][:, 1])[:count].tolist()

    def pixels(self, selector: str) -> np.ndarray:
        """uint8 (height, width, 3): a canvas, after it is drawn again."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        url = self.js(f"document.querySelector('{selector}').toDataURL()")
        with urlopen(url) as png:
            return np.asarray(Image.open(io.BytesIO(png.read())).convert("RGB"))


@pytest.fixture
def open_report(chromium: Any) -> Iterator[Callable[..., Report]]:
    """Opens the report in a directory; the test fails if anything goes wrong in the page."""
    reports = []

    def open_in_browser(directory: Path, **context: Any) -> Report:
        reports.append(Report(chromium, directory, **context))
        return reports[-1]

    yield open_in_browser
    for report in reports:
        report.page.close()
        assert report.complaints == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in report.urls)


@pytest.fixture
def report(open_report: Callable[..., Report], digits: Path) -> Report:
    return open_report(digits)


def test_readme_pictures(script: Script, digits: Path, program: str, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    flags = ("--output-dir", tmp_path, "--chromium", program)
    run = script("docs/make_pictures.py", "--feature-dir", digits, *flags)
    assert run.returncode == 0, run.stderr
    for name in ("map", "clusters", "report"):
        picture = tmp_path / f"{name}.png"
        assert picture.stat().st_size < 250_000
        pixels = np.asarray(Image.open(picture).convert("HSV"))
        assert pixels[..., 2].std() > 10
    assert pixels.shape == (900, 1400, 3)
    assert (pixels[130:700, 50:1000, 1] > 80).sum() > 1797  # colorful: the map is drawn
    run = script("docs/make_pictures.py", "--feature-dir", tmp_path, *flags)
    assert run.returncode == 2
    assert "run python visualize_features.py first" in run.stderr


def test_it_shows_every_point(report: Report) -> None:
    for shown in (1797, 0):
        assert report.js("report.visibleCount()") == shown
        assert report.page.inner_text("#shown-count") == f"{shown:,} of 1,797 images"
        pixels = report.pixels("#map")
        drawn = (pixels != pixels[0, 0]).any(axis=2).sum()
        assert drawn > shown or drawn == shown == 0
        report.page.click("text=Split >> xpath=../button[2]")


def test_hovering_shows_a_picture_and_a_click_more(report: Report, arrays: Arrays) -> None:
    splits = load_dataset("digits", Path()).splits
    images = np.concatenate([split.images for split in splits.values()]).transpose(0, 2, 3, 1)
    for image in report.isolated_images(5):
        report.page.mouse.move(*report.point(image))
        report.page.wait_for_selector(f"#tip[data-image='{image}']:not([hidden])")
        differences = images.astype(int) - report.pixels("#tip canvas")
        assert np.abs(differences).mean(axis=(1, 2, 3)).argmin() == image
        name = f"train {image}" if image < 1438 else f"test {image - 1438}"
        assert report.page.inner_text("#tip").startswith(name)
        report.page.mouse.click(*report.point(image))
        distance = np.linalg.norm(arrays.x - arrays.x[image], axis=1)
        distance[image] = np.inf
        neighbors = report.images("#neighbors")
        assert len(neighbors) == 12
        np.testing.assert_allclose(distance[neighbors], np.sort(distance)[:12], rtol=1e-5)
    report.page.click("#neighbors .thumb >> nth=1")
    assert report.selected() == neighbors[1]


def test_filters_keep_what_they_name(report: Report, arrays: Arrays) -> None:
    clusters, labels, named = arrays.clusters, arrays.labels, arrays.class_of_cluster
    train = np.arange(len(labels)) < 1438
    keep = np.ones(len(labels), bool)
    for act, box, rule in (
        (report.page.uncheck, "#cluster-3", clusters != 3),
        (report.page.uncheck, "#label-5", labels != 5),
        (report.page.check, "#wrong", named[clusters] != labels),
        (report.page.uncheck, "#split-1", train),
    ):
        act(box)
        keep &= rule
        assert report.js("report.visibleCount()") == keep.sum()

    cells = report.js(
        "[...document.querySelectorAll('#crossing tbody tr')]"
        ".map(r => [...r.querySelectorAll('button')].map(b => +b.textContent))"
    )
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels[keep], clusters[keep]), 1)
    np.testing.assert_array_equal(cells, expected[:, np.argsort(named)])


def test_the_gallery_is_in_order(report: Report, arrays: Arrays) -> None:
    own = np.flatnonzero(arrays.clusters == 4)
    distance = arrays.distances[:, 4]
    report.page.click("#cluster-4 ~ button.name")
    for order, key in (
        ("nearest", distance),
        ("unsure", arrays.certainty),
        ("farthest", -distance),
    ):
        report.page.select_option("#gallery-order", order)
        images = report.images("#gallery-grid")
        assert set(images) <= set(own)
        np.testing.assert_allclose(key[images], np.sort(key[own])[:48], rtol=1e-4, atol=1e-4)
    report.page.click("#more")
    assert len(report.images("#gallery-grid")) == min(len(own), 144)


def test_it_works_with_the_keyboard(report: Report, arrays: Arrays) -> None:
    press, before = report.page.keyboard.press, report.js("report.view()")
    report.page.focus("#map")
    press("+")
    press("ArrowRight")
    after = report.js("report.view()")
    assert after["scale"] == pytest.approx(1.4 * before["scale"])
    assert after["x"] > before["x"]
    press("Enter")
    first = report.selected()
    press("]")
    second = report.selected()
    assert first != second
    assert arrays.clusters[first] == arrays.clusters[second]
    press("Escape")
    assert report.page.is_hidden("#detail")
    for _ in range(14):  # until the points are pictures
        press("+")
    press("0")
    assert report.js("report.view()") == before


def test_dragging_and_the_wheel_move_the_map(report: Report) -> None:
    (image,) = report.isolated_images(1)
    (x, y), mouse = report.point(image), report.page.mouse
    mouse.move(x, y)
    mouse.wheel(0, -500)
    assert report.point(image) == pytest.approx((x, y), abs=1.5)  # it stays under the pointer
    mouse.down()
    mouse.move(x + 30, y - 20, steps=3)
    mouse.up()
    assert report.point(image) == pytest.approx((x + 30, y - 20), abs=1.5)
    assert report.page.is_hidden("#detail")  # a drag is not a click


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(open_report: Callable[..., Report], digits: Path, theme: str) -> None:
    phone = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
    report = open_report(digits, color_scheme=theme, **phone)
    assert report.js("document.documentElement.scrollWidth") <= 400
    background = report.js("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background[4:-1].split(","))) / 3
    assert (brightness < 60) == (theme == "dark")
    screenshot = Image.open(io.BytesIO(report.page.screenshot(full_page=True))).convert("L")
    x, y, width, height = report.page.locator("#training .scroll").bounding_box().values()
    title = screenshot.crop((x, y, x + width, y + 0.08 * height))  # of the first curves
    assert np.ptp(title) > 180
    assert (np.median(title) < 60) == (theme == "dark")
    (image,) = report.isolated_images(1)
    report.page.touchscreen.tap(*report.point(image))
    assert report.selected() == image
    report.page.click("#theme")
    assert report.js("getComputedStyle(document.body).backgroundColor") != background


def test_names_are_shown_and_not_run(open_report: Callable[..., Report], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        folder = tmp_path / "pictures/train" / name
        folder.mkdir(parents=True)
        for i in range(6):
            noise = rng.integers(0, 255, (96, 96, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"script><b>{i}.png")
    pixel_run(tmp_path, "folder", tmp_path / "pictures")
    draw_report(tmp_path)
    report = open_report(tmp_path)
    text = report.page.inner_text("body")
    assert text.startswith("Clusters of pictures")
    assert "No training was logged." in text
    assert all(name in text for name in HOSTILE)
    report.page.click("#gallery-grid .thumb >> nth=0")
    assert "<b>" in report.page.inner_text("#portrait")
    assert report.js("typeof hacked") == "undefined"
    assert report.js("document.querySelectorAll('b, img').length") == 0


def test_a_sample_of_the_pictures_is_called_one(
    open_report: Callable[..., Report], digits: Path, arrays: Arrays, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thumbnails, "PIXELS", 32 * 32 * 300)
        draw_report(tmp_path)
    report = open_report(tmp_path)
    assert "random sample of 300 images" in report.page.inner_text("#summary")
    assert report.js("report.visibleCount()") == 1797
    pictured = report.js("Array.from(pictured)")
    image = next(i for i in range(1797) if i not in pictured)
    report.js(f"select({image})")
    distance = np.linalg.norm(arrays.x - arrays.x[image], axis=1)
    nearest = np.sort(distance[pictured])[:12]
    np.testing.assert_allclose(distance[report.images("#neighbors")], nearest, rtol=1e-5)
    assert report.page.is_hidden("#portrait canvas")
