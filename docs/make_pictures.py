"""Make the pictures of the README and docs/ from photographs: a page, its screenshot, two figures.

    make pictures DATA=FOLDER CREDIT='Photographs: …'    # FOLDER/CLASS/… or FOLDER/train/CLASS/…
    python docs/make_pictures.py --feature-dir features/pictures    # from a finished run

The first takes --count photographs without their classes, as a person has them, runs all stages on
them, and names the groups as a person would: each by the class of most of its pictures, so that
groups of one class are merged. No photographs are part of this repository; those in docs/ are of
clothing-dataset-small (github.com/alexeygrigorev/clothing-dataset-small, CC0).

Writes docs/example_report.html (the page with smaller thumbnails, without links to the originals),
docs/report.png, docs/map.png and docs/clusters.jpg. Needs Chromium and requirements-dev.txt.
"""

import base64
import io
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.pictures import IMAGE_SUFFIXES
from src.runtime.cli import RunError, UserError, run_script
from src.runtime.commands import command
from src.storage import artifacts
from src.storage.artifacts import ASSIGNMENTS, FINE, Manifest
from src.storage.files import write_json

FIGURES = {"map": "map.png", "clusters": "clusters.jpg"}
"""The picture in docs/ of each figure."""
WIDTH, HEIGHT = 1400, 900
"""Size of the screenshot in pixels."""
MAX_BYTES = 250_000
"""Of one picture: every clone of the repository downloads them."""
MAX_EXAMPLE_BYTES = 1_000_000
SMALLER = [(96, 60), (96, 40), (96, 25), (64, 60), (64, 40), (64, 20), (48, 20), (32, 5)]
"""Side of a thumbnail in the example, at most, and its quality; the first that fits is taken."""
SHEET = re.compile(r'(id="sheet-\d+"[^>]*>)([^<]+)')
"""Many thumbnails in the page, a WebP in base64."""
TILE = re.compile(r'"tile": (\d+)')
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Not wait_for_function: under load that falls back on eval, which the page forbids.
READY = (
    "new Promise(done => { const f = () => "
    "document.querySelector('#map').getAttribute('aria-busy') === 'false' "
    "? done() : setTimeout(f, 50); f(); })"
)
"""Waits until the map is drawn with its pictures."""
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass(frozen=True)
class PicturesConfig:
    data_dir: Path | None = None
    """Photographs in a folder for each class, to run all stages on first."""
    count: int = 600
    """How many of them to take."""
    photos_dir: Path = Path("dataset/photos")
    """Where to copy them to, without their classes."""
    feature_dir: Path = Path("features")
    """Directory of figures and report, if there is no --data-dir."""
    output_dir: Path = Path("docs")
    """Directory of the pictures."""
    credit: str | None = None
    """Whose photographs they are, a line at the end of the example page."""
    chromium: str = "chromium"
    """Command or path of the browser."""
    example: bool = False
    """Write the example page only, which needs no browser."""


def main(config: PicturesConfig) -> None:
    features = config.feature_dir
    if config.data_dir:
        features = run_stages(config)
    report = existing(features / artifacts.REPORT)
    write_example(report, config.output_dir / "example_report.html", config.credit)
    if config.example:
        return
    program = shutil.which(config.chromium)
    if program is None:
        raise UserError(f"{config.chromium} was not found: name a browser with --chromium")
    for figure, name in FIGURES.items():
        picture = features / artifacts.FIGURES / f"{figure}.png"
        write(existing(picture), config.output_dir / name)
    write(screenshot(report, program), config.output_dir / "report.png")


# --- photographs ------------------------------------------------------------------------------


def run_stages(config: PicturesConfig) -> Path:
    """Every stage, as a person runs them; returns the directory of the results."""
    assert config.data_dir
    class_of = copy_photographs(config.data_dir, config.photos_dir, config.count)
    name = config.photos_dir.name
    features = Path("features") / name
    data = ("--dataset", "folder", "--data-dir", str(config.photos_dir))
    stage("src/train.py", *data, "--wandb", "disabled", "--name", name)
    stage("src/feature_extraction.py", "--untrained", "--name", name)
    stage("src/clustering.py", "--baselines", "--name", name)
    stage("visualize_features.py", "--name", name)  # images.csv has the names of the pictures
    write_names(features, class_of)
    stage("src/clustering.py", "--names", "--name", name)
    stage("visualize_features.py", "--name", name)
    return features


def copy_photographs(source: Path, target: Path, count: int) -> dict[str, str]:
    """Copy a random sample, always the same, under neutral names; returns the class of each."""
    root = source / "train" if (source / "train").is_dir() else source
    files = sorted(f for f in root.glob("*/*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{source} has no folders of photographs, such as {root}/CLASS/photo.jpg")
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    class_of = {}
    for number, file in enumerate(random.Random(0).sample(files, min(count, len(files)))):
        name = f"IMG_{number + 1:04d}{file.suffix.lower()}"
        shutil.copyfile(file, target / name)
        class_of[name] = file.parent.name
    return class_of


def write_names(directory: Path, class_of: dict[str, str]) -> None:
    """Write names.json: each cluster is called by the class of most of its pictures, and each fine
    cluster by a class that has two thirds of them."""
    manifest = Manifest(directory)
    (split,) = manifest.extraction["dataset"]["splits"]
    classes = np.array([class_of[name] for name in sorted(class_of)])  # the order of a folder
    named: dict[str, dict[str, str]] = {}
    for kind, artifact in (("names", ASSIGNMENTS), ("fine", FINE)):
        clusters = manifest.load(artifact, split)
        named[kind] = {}
        for k in np.unique(clusters):
            (name, most), *_ = Counter(classes[clusters == k]).most_common(1)
            if kind == "names" or most * 3 >= 2 * (clusters == k).sum():
                named[kind][str(k)] = str(name)
    write_json(directory / artifacts.NAMES, {"clusters": manifest.clusters_id, **named})


def stage(script: str, *flags: str) -> None:
    if code := subprocess.run([sys.executable, script, *flags]).returncode:
        raise RunError(f"{script} ended with exit code {code}")


# --- pictures ---------------------------------------------------------------------------------


def screenshot(report: Path, program: str) -> io.BytesIO:
    """A PNG of the top of the page, taken after all its pictures are decoded and drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.resolve().as_uri())
        page.evaluate(READY)
        page.press("#map", "Enter")  # selects the image nearest the middle
        page.evaluate(DRAWN)
        content = page.screenshot()
        browser.close()
    return io.BytesIO(content)


def write_example(report: Path, file: Path, credit: str | None) -> None:
    """Write a copy with thumbnails in the best quality that `MAX_EXAMPLE_BYTES` allows."""
    page = report.read_text(encoding="utf-8")
    page = re.sub(r'"folder": "[^"]*"', '"folder": null', page)
    if credit:
        page = page.replace("</body>", f'<p class="hint">{escape(credit)}</p>\n</body>')
    tile = int(re.findall(TILE, page)[0])
    for side, quality in SMALLER:
        side = min(side, tile)
        small = SHEET.sub(partial(recoded, scale=side / tile, quality=quality), page)
        small = TILE.sub(f'"tile": {side}', small)
        if len(small.encode()) < MAX_EXAMPLE_BYTES:
            break
    else:
        raise UserError(f"{report} stays above {MAX_EXAMPLE_BYTES:,} bytes: take fewer pictures")
    with artifacts.replacing(file) as temporary:
        temporary.write_text(small, encoding="utf-8")
    size = len(small.encode()) / 1000
    print(f"wrote {file} ({size:.0f} kB, pictures of {side} px in quality {quality})")


def recoded(sheet: re.Match[str], scale: float, quality: int) -> str:
    """A match of `SHEET`, its picture encoded again."""
    content = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(sheet[2])))
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size, Image.Resampling.LANCZOS).save(content, "WEBP", quality=quality, method=6)
    return sheet[1] + base64.b64encode(content.getvalue()).decode()


def existing(file: Path) -> Path:
    if not file.exists():
        raise UserError(f"{file} is missing: run {command('visualize_features.py')} first")
    return file


def write(picture: Path | io.BytesIO, file: Path) -> None:
    """Write a copy, in 256 colors if it is a PNG, as wide as `MAX_BYTES` allows."""
    image = Image.open(picture).convert("RGB")
    content = io.BytesIO()
    for width in range(WIDTH, 0, -100):
        small = image.copy()
        small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        if file.suffix == ".jpg":
            small.save(content, "JPEG", quality=85)
        else:
            small.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() < MAX_BYTES:
            break
    with artifacts.replacing(file) as temporary:
        temporary.write_bytes(content.getvalue())
    print(f"wrote {file} ({len(content.getvalue()) / 1000:.0f} kB)")


if __name__ == "__main__":
    run_script(main, PicturesConfig)
