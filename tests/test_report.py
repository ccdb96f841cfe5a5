"""The report in a real headless Chromium, against the `.npy` files and the images."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Script
from PIL import Image
from pixel_run import everything, pixel_run

from dataset.load_dataset import load_dataset
from src.storage import artifacts
from src.visualization import thumbnails
from src.visualization.report import script_json
from src.visualization.report_sections import ticks
from visualize_features import VisualizeConfig, main

# Not wait_for_function: under load that falls back on eval, which the page forbids.
READY = "new Promise(done => { const f = () => report.ready() ? done() : setTimeout(f, 50); f(); })"
SPLITS = ["train", "test"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = ("<img src=x onerror=hacked=1>", "<script>hacked=1<", "a&amp;b'c\"@@data@@ $x^{")


# ---- without a browser --------------------------------------------------------------------------


def test_json_cannot_leave_its_element() -> None:
    content = {"name": "</script><!--<script>", "n": [1, None]}
    assert "<" not in script_json(content)
    assert json.loads(script_json(content)) == content


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 6.1), (1e-6, 9e-4), (-2, 250), (5, 5)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    span = (high - low) or 5
    assert all(low - span <= tick <= high + span for tick in found)
    assert all(len(f"{tick:g}".strip("-0.").replace(".", "")) <= 5 for tick in found)


# ---- in Chromium --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip(f"there is none of {', '.join(names)} here, and no $CHROMIUM")


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
    main(
        VisualizeConfig(
            feature_dir=directory, checkpoint_dir=directory, projection="pca", wandb="disabled"
        )
    )
    return directory


def test_the_pictures_of_the_readme_are_small(
    script: Script, digits: Path, program: str, tmp_path: Path
) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    flags = ("--output-dir", tmp_path, "--chromium", program)
    run = script("docs/make_pictures.py", "--feature-dir", digits, *flags)
    assert run.returncode == 0, run.stderr
    for name in ("map", "clusters", "report"):
        picture = tmp_path / f"{name}.png"
        assert picture.stat().st_size < 250_000
        pixels = np.asarray(Image.open(picture).convert("L"))
        assert pixels.std() > 10
    assert pixels.shape == (900, 1400)
    with Image.open(picture) as image:
        on_map = np.asarray(image.convert("HSV"))[130:700, 50:1000]
    assert (on_map[..., 1] > 80).sum() > 1797  # colorful pixels: the map is drawn
    run = script("docs/make_pictures.py", "--feature-dir", tmp_path, *flags)
    assert run.returncode == 2
    assert "run python visualize_features.py first" in run.stderr


class Opened:
    """A page, and everything that went wrong in it."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        options = {"viewport": {"width": 1400, "height": 900}} | context
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._watch)
        self.page.goto(file.as_uri(), timeout=60_000)
        self.page.evaluate(READY)

    def _listen(self, message: Any) -> None:
        if "willReadFrequently" not in message.text:  # these tests read the canvas, not the page
            self.complaints.append(message.text)

    def _watch(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:", "data:")):
            self.complaints.append(f"request: {request.url}")

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def shown(self) -> int:
        return self.js("report.shown()")

    def images(self, where: str) -> list[int]:
        """The images whose pictures stand in a part of the page."""
        return self.js(
            f"[...document.querySelectorAll('{where} .thumb')].map(b => +b.dataset.image)"
        )

    def point(self, image: int) -> tuple[float, float]:
        """Where an image stands in the window."""
        box, at = self.page.locator("#map").bounding_box(), self.js(f"report.place({image})")
        return box["x"] + at["x"], box["y"] + at["y"]


@pytest.fixture
def opened(chromium: Any, digits: Path) -> Iterator[Opened]:
    page = Opened(chromium, digits / artifacts.REPORT)
    yield page
    page.context.close()
    assert page.complaints == []


def loners(page: Opened, count: int) -> list[int]:
    """The images with the most room around them on the map."""
    spots = page.js("Array.from({length: report.data.count}, (_, i) => report.place(i))")
    xy = np.array([[spot["x"], spot["y"]] for spot in spots])
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return np.argsort(-apart.min(axis=1))[:count].tolist()


def seen(page: Opened, canvas: str) -> np.ndarray:
    """uint8 (height, width, 3): the pixels of a canvas."""
    size = page.js(f"(c => [c.height, c.width])(document.querySelector('{canvas}'))")
    flat = page.js(
        f"(c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data))"
        f"(document.querySelector('{canvas}'))"
    )
    return np.array(flat, np.uint8).reshape(*size, 4)[..., :3]


def inked(page: Opened) -> int:
    """How many pixels of the map are not its background, once it is drawn again."""
    return page.js(
        """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
            const map = document.querySelector("#map");
            const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
            const colors = new Uint32Array(pixels.buffer);
            done(colors.filter(color => color !== colors[0]).length);
        })))"""
    )


def test_it_shows_every_point(opened: Opened, digits: Path) -> None:
    count = sum(len(artifacts.load(artifacts.REDUCED, digits, split)) for split in SPLITS)
    assert opened.shown() == opened.js("report.data.count") == count
    assert opened.page.inner_text("#shown-count") == f"{count:,} of {count:,} images"
    assert inked(opened) > count  # pixels; some points hide others
    opened.page.click("text=Split >> xpath=../button[2]")
    assert opened.shown() == 0
    assert inked(opened) == 0


def test_hovering_shows_the_right_picture(opened: Opened) -> None:
    dataset = load_dataset("digits", Path())
    images = np.concatenate([dataset.splits[split].images for split in SPLITS])
    offset = len(dataset.splits["train"].images)
    for image in loners(opened, 5):
        opened.page.mouse.move(*opened.point(image))
        opened.page.wait_for_selector(f"#tip[data-image='{image}']:not([hidden])")
        picture = seen(opened, "#tip canvas")
        apart = np.abs(images.transpose(0, 2, 3, 1).astype(int) - picture).mean(axis=(1, 2, 3))
        assert apart.argmin() == image
        name = f"train {image}" if image < offset else f"test {image - offset}"
        assert opened.page.inner_text("#tip").startswith(name)


def test_a_click_shows_the_nearest_neighbors(opened: Opened, digits: Path) -> None:
    x = everything(digits, artifacts.REDUCED, SPLITS).astype(np.float64)
    for image in loners(opened, 3):
        opened.page.mouse.click(*opened.point(image))
        distance = np.linalg.norm(x - x[image], axis=1)
        distance[image] = np.inf
        found = opened.images("#neighbors")
        assert len(found) == 12
        np.testing.assert_allclose(distance[found], np.sort(distance)[:12], rtol=1e-5)
    second = opened.images("#neighbors")[1]
    opened.page.click("#neighbors .thumb >> nth=1")
    assert opened.page.get_attribute("#detail", "data-image") == str(second)


def test_filters_keep_what_they_say(opened: Opened, digits: Path) -> None:
    clusters = everything(digits, artifacts.ASSIGNMENTS, SPLITS)
    labels = everything(digits, artifacts.LABELS, SPLITS)
    wrong = artifacts.load(artifacts.CLUSTER_TO_CLASS, digits)[clusters] != labels
    keep = np.ones(len(clusters), bool)

    opened.page.uncheck("#cluster-3")
    keep &= clusters != 3
    assert opened.shown() == keep.sum()
    opened.page.uncheck("#label-5")
    keep &= labels != 5
    assert opened.shown() == keep.sum()
    opened.page.check("#wrong")
    assert opened.shown() == (keep & wrong).sum()
    opened.page.uncheck("#split-1")
    train = np.arange(len(clusters)) < len(artifacts.load(artifacts.LABELS, digits, "train"))
    assert opened.shown() == (keep & wrong & train).sum()

    cells = opened.js(
        "[...document.querySelectorAll('#crossing tbody tr')]"
        ".map(r => [...r.querySelectorAll('button')].map(b => +b.textContent))"
    )
    left = keep & wrong & train
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels[left], clusters[left]), 1)
    named = artifacts.load(artifacts.CLUSTER_TO_CLASS, digits)
    assert sorted(named) == list(range(10))
    np.testing.assert_array_equal(cells, expected[:, np.argsort(named)])


def test_the_gallery_goes_out_from_the_centroid(opened: Opened, digits: Path) -> None:
    x = everything(digits, artifacts.REDUCED, SPLITS).astype(np.float64)
    clusters = everything(digits, artifacts.ASSIGNMENTS, SPLITS)
    centroids = artifacts.load(artifacts.CENTROIDS, digits).astype(np.float64)
    distances = np.linalg.norm(x[:, None] - centroids[None], axis=2)
    own = np.flatnonzero(clusters == 4)

    opened.page.click("#cluster-4 ~ button.name")
    found = opened.images("#gallery-grid")
    assert set(found) <= set(own)
    np.testing.assert_allclose(distances[found, 4], np.sort(distances[own, 4])[:48], rtol=1e-4)
    opened.page.select_option("#gallery-order", "unsure")
    ratio = distances[own, 4] / np.sort(distances[own], axis=1)[:, 1]
    found = opened.images("#gallery-grid")
    unsure = distances[found, 4] / np.sort(distances[found], axis=1)[:, 1]
    np.testing.assert_allclose(unsure, np.sort(ratio)[::-1][:48], rtol=1e-4)
    opened.page.click("#more")
    assert len(opened.images("#gallery-grid")) == min(len(own), 144)


def test_it_works_with_the_keyboard(opened: Opened, digits: Path) -> None:
    before = opened.js("report.view()")
    opened.page.focus("#map")
    opened.page.keyboard.press("+")
    opened.page.keyboard.press("ArrowRight")
    after = opened.js("report.view()")
    assert after["scale"] == pytest.approx(1.4 * before["scale"])
    assert after["x"] > before["x"]
    opened.page.keyboard.press("Enter")
    first = int(opened.page.get_attribute("#detail", "data-image") or -1)
    opened.page.keyboard.press("]")
    second = int(opened.page.get_attribute("#detail", "data-image") or -1)
    clusters = everything(digits, artifacts.ASSIGNMENTS, SPLITS)
    assert first != second
    assert clusters[first] == clusters[second]
    opened.page.keyboard.press("Escape")
    assert opened.page.is_hidden("#detail")
    for _ in range(14):  # until the points are pictures
        opened.page.keyboard.press("+")
    opened.page.keyboard.press("0")
    assert opened.js("report.view()") == before


def test_dragging_and_the_wheel_move_the_map(opened: Opened) -> None:
    image = loners(opened, 1)[0]
    x, y = opened.point(image)
    opened.page.mouse.move(x, y)
    opened.page.mouse.wheel(0, -500)
    assert opened.point(image) == pytest.approx((x, y), abs=1.5)  # what is under the pointer stays
    opened.page.mouse.down()
    opened.page.mouse.move(x + 30, y - 20, steps=3)
    opened.page.mouse.up()
    assert opened.point(image) == pytest.approx((x + 30, y - 20), abs=1.5)
    assert opened.page.is_hidden("#detail")  # a drag is not a click


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(chromium: Any, digits: Path, theme: str) -> None:
    page = Opened(
        chromium, digits / artifacts.REPORT, color_scheme=theme, has_touch=True, is_mobile=True,
        viewport={"width": 400, "height": 800},
    )  # fmt: skip
    assert page.js("document.documentElement.scrollWidth") <= 400
    back = page.js("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, back[4:-1].split(","))) / 3
    assert (brightness < 60) == (theme == "dark")
    page.page.touchscreen.tap(*page.point(loners(page, 1)[0]))
    assert page.page.get_attribute("#detail", "data-image") == str(loners(page, 1)[0])
    page.page.click("#theme")
    assert page.js("getComputedStyle(document.body).backgroundColor") != back
    page.context.close()
    assert page.complaints == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a folder whose classes are called what nobody would call them."""
    root = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for number, name in enumerate(HOSTILE):
        folder = root / "pictures/train" / name
        folder.mkdir(parents=True)
        for i in range(6):
            noise = rng.integers(0, 60, (96, 96, 3)) + 90 * np.eye(3, dtype=int)[number]
            Image.fromarray(np.uint8(noise)).save(folder / f"<b>{i}.png")
    pixel_run(root, "folder", root / "pictures")
    config = VisualizeConfig(
        feature_dir=root, checkpoint_dir=root, projection="pca", wandb="disabled"
    )
    main(config)
    return root


def test_names_are_shown_and_not_run(chromium: Any, hostile: Path) -> None:
    page = Opened(chromium, hostile / artifacts.REPORT)
    text = page.page.inner_text("body")
    assert text.startswith("Clusters of pictures")
    for name in HOSTILE:
        assert name in text
    page.page.click("#gallery-grid .thumb >> nth=0")
    assert "<b>" in page.page.inner_text("#portrait")
    assert page.js("typeof hacked") == "undefined"
    assert page.js("document.querySelectorAll('b, img').length") == 0
    page.context.close()
    assert page.complaints == []


def test_a_sample_of_the_pictures_is_said_to_be_one(
    chromium: Any, digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(thumbnails, "PIXELS", 32 * 32 * 300)
    for file in digits.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    main(
        VisualizeConfig(
            feature_dir=tmp_path, checkpoint_dir=tmp_path, projection="pca", wandb="disabled"
        )
    )
    page = Opened(chromium, tmp_path / artifacts.REPORT)
    assert "random sample of 300 images" in page.page.inner_text("#summary")
    assert page.shown() == 1797
    pictured = page.js("Array.from(shown)")
    x = everything(digits, artifacts.REDUCED, SPLITS).astype(np.float64)
    image = next(i for i in range(1797) if i not in pictured)
    page.js(f"select({image})")
    nearest = np.sort(np.linalg.norm(x[pictured] - x[image], axis=1))[:12]
    found = page.images("#neighbors")
    np.testing.assert_allclose(np.linalg.norm(x[found] - x[image], axis=1), nearest, rtol=1e-5)
    assert page.page.is_hidden("#portrait canvas")
    page.context.close()
    assert page.complaints == []
