"""A report in a tab of a headless Chromium."""

import csv
import io
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

from docs.make_pictures import READY
from src.storage import artifacts
from visualize_features import VisualizeConfig, main

PHONE = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
CONTEXTS = {"wide": {}, "phone": PHONE}
WRITTEN = """
window.written = [];
const canvas = CanvasRenderingContext2D.prototype, { putImageData, fillText } = canvas;
canvas.putImageData = function (...all) { written = []; return putImageData.apply(this, all); };
canvas.fillText = function (...all) { written.push(all[0]); return fillText.apply(this, all); };
"""
"""Collects the names that the map shows since it was last drawn."""


def draw_report(directory: Path) -> None:
    places = {"feature_dir": directory, "checkpoint_dir": directory}
    main(VisualizeConfig(**places, projection="pca", wandb="disabled"))


class Report:
    """A report in a tab of the browser, and everything that went wrong in it."""

    def __init__(self, browser: Any, directory: Path, **context: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}} | context)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.urls: list[str] = []
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.add_init_script(WRITTEN)
        self.directory = directory
        self.page.goto((directory / artifacts.REPORT).as_uri(), timeout=60_000)
        self.js(READY)

    def until(self, condition: str) -> None:
        """Wait for it, and fail where it does not come true."""
        self.js(
            "new Promise((done, fail) => { const end = Date.now() + 20000, look = () => "
            f"({condition}) ? done() : Date.now() > end ? fail('never: ' + {condition!r})"
            " : setTimeout(look, 20); look(); })"
        )

    def settle(self) -> None:
        """Wait for what the page postpones until nothing has changed for a moment."""
        self.js("new Promise(done => setTimeout(done, 100))")

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def images(self, selector: str) -> list[int]:
        """The images whose thumbnails stand in an element."""
        thumbnails = f"document.querySelectorAll('{selector} .thumb')"
        return self.js(f"[...{thumbnails}].map(thumbnail => +thumbnail.dataset.image)")

    def in_view(self, selector: str) -> bool:
        """Whether an element is in the window as a whole, and nothing covers its middle."""
        return self.js(
            f"(() => {{ const e = document.querySelector('{selector}');"
            "const b = e.getBoundingClientRect();"
            "const over = document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2);"
            "return b.width > 0 && b.top >= 0 && b.bottom <= innerHeight && b.left >= 0"
            "&& b.right <= innerWidth && (e.contains(over) || over.contains(e)); })()"
        )

    def open_filters(self) -> None:
        self.js("document.querySelector('#filters').open = true")

    def downloaded(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def shown(self) -> int:
        """The number of images that pass the filters, as the page says."""
        return int(self.page.inner_text("#shown-count").split()[0].replace(",", ""))

    def selected(self) -> int:
        return self.names.index(self.page.inner_text("#portrait dd >> nth=0"))

    def select(self, image: int) -> None:
        """Search its name, select it in the map, and empty the search again."""
        self.page.fill("#search", re.split("[\udc80-\udcff]", self.names[image])[0])
        self.page.focus("#map")
        self.page.keyboard.press("Enter")
        self.page.fill("#search", "")

    def hovers_over(self, image: int, x: float, y: float) -> bool:
        """Whether the mouse at a place of the window shows this image."""
        self.page.mouse.move(x - 1, y)
        self.page.mouse.move(x, y)
        return self.page.inner_text("#tip").split("\n")[0] == self.names[image]

    @cached_property
    def table(self) -> list[dict[str, str]]:
        return read_table((self.directory / artifacts.IMAGES).read_bytes())

    @property
    def names(self) -> list[str]:
        return [row["path"] for row in self.table]

    @cached_property
    def xy(self) -> np.ndarray:
        """float64 (N, 2), the places on the map with y downward and the middle at 0."""
        xy = np.array([[float(row["x"]), -float(row["y"])] for row in self.table])
        return xy - (xy.min(0) + xy.max(0)) / 2

    def points(self, zoom: float = 1) -> np.ndarray:
        """float64 (N, 2), the places in the window, when all fit into the map or after a zoom."""
        left, top, *size = self.page.locator("#map").bounding_box().values()
        scale = zoom * ((np.array(size) - 60) / np.ptp(self.xy, axis=0)).min()
        return self.xy * scale + np.array(size) / 2 + (left, top)

    def point(self, image: int, zoom: float = 1) -> tuple[float, float]:
        x, y = self.points(zoom)[image]
        return float(x), float(y)

    def isolated_images(self, count: int) -> list[int]:
        """The images with the most room around them on the map."""
        return np.argsort(-KDTree(self.xy).query(self.xy, 2)[0][:, 1])[:count].tolist()

    def pixels(self, selector: str) -> np.ndarray:
        """uint8 (height, width, 3): a canvas, after it is drawn again."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        url = self.js(f"document.querySelector('{selector}').toDataURL()")
        with urlopen(url) as png:
            return np.asarray(Image.open(io.BytesIO(png.read())).convert("RGB"))

    def until_map_is_not(self, before: np.ndarray) -> None:
        """Wait until the map is drawn in another way."""
        end = time.monotonic() + 20
        while np.array_equal(self.pixels("#map"), before):
            assert time.monotonic() < end


def read_table(content: bytes) -> list[dict[str, str]]:
    text = content.decode("utf-8-sig", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


OpenReport = Callable[..., Report]
