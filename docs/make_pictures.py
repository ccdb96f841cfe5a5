"""Make the README's pictures from a finished run: two figures and a screenshot of the report.

    python docs/make_pictures.py
    python docs/make_pictures.py --example    # docs/example_report.html alone, from the digits

Reads features/figures/ and features/report.html, which visualize_features.py writes. Writes
docs/map.png, docs/clusters.png and docs/report.png. Needs Chromium and requirements-dev.txt. The
example needs neither: it is the page with its thumbnails in lower quality.
"""

import base64
import io
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from src.runtime.cli import UserError, run_script
from src.runtime.commands import command
from src.storage import artifacts

FIGURES = ("map", "clusters")
WIDTH, HEIGHT = 1400, 900
"""Size of the screenshot in pixels."""
MAX_BYTES = 250_000
"""Of one picture: every clone of the repository downloads them."""
MAX_EXAMPLE_BYTES = 500_000
SHEET = re.compile(r'(id="sheet-\d+"[^>]*>)([^<]+)')
"""Many thumbnails in the page, a WebP in base64."""
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


@dataclass(frozen=True)
class PicturesConfig:
    feature_dir: Path = Path("features")
    """Directory of figures and report."""
    output_dir: Path = Path("docs")
    """Directory of the pictures."""
    chromium: str = "chromium"
    """Command or path of the browser."""
    example: bool = False
    """Write the example page instead of the pictures."""


def main(config: PicturesConfig) -> None:
    report = existing(config.feature_dir / artifacts.REPORT)
    if config.example:
        write_example(report, config.output_dir / "example_report.html")
        return
    program = shutil.which(config.chromium)
    if program is None:
        raise UserError(f"{config.chromium} was not found: name a browser with --chromium")
    for name in FIGURES:
        picture = config.feature_dir / artifacts.FIGURES / f"{name}.png"
        write(existing(picture), config.output_dir / f"{name}.png")
    write(screenshot(report, program), config.output_dir / "report.png")


def screenshot(report: Path, program: str) -> io.BytesIO:
    """A PNG of the top of the page, taken after all its pictures are decoded and drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.resolve().as_uri())
        page.evaluate(READY)
        content = page.screenshot()
        browser.close()
    return io.BytesIO(content)


def write_example(report: Path, file: Path) -> None:
    """Write a copy with thumbnails in the best quality that `MAX_EXAMPLE_BYTES` allows."""
    page = report.read_text(encoding="utf-8")
    for quality in (60, 45, 30, 20, 10, 5):
        small = SHEET.sub(partial(recoded, quality=quality), page)
        if len(small.encode()) < MAX_EXAMPLE_BYTES:
            break
    else:
        raise UserError(f"{report} stays above {MAX_EXAMPLE_BYTES:,} bytes: use the digits")
    with artifacts.replacing(file) as temporary:
        temporary.write_text(small, encoding="utf-8")
    print(f"wrote {file} ({len(small.encode()) / 1000:.0f} kB, quality {quality})")


def recoded(sheet: re.Match[str], quality: int) -> str:
    """A match of `SHEET`, its picture encoded again."""
    content = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(sheet[2])))
    image.save(content, "WEBP", quality=quality, method=6)
    return sheet[1] + base64.b64encode(content.getvalue()).decode()


def existing(file: Path) -> Path:
    if not file.exists():
        raise UserError(f"{file} is missing: run {command('visualize_features.py')} first")
    return file


def write(picture: Path | io.BytesIO, file: Path) -> None:
    """Write a copy in 256 colors, as wide as `MAX_BYTES` allows."""
    image = Image.open(picture).convert("RGB")
    content = io.BytesIO()
    for width in range(WIDTH, 0, -100):
        small = image.copy()
        small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        small.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() < MAX_BYTES:
            break
    with artifacts.replacing(file) as temporary:
        temporary.write_bytes(content.getvalue())
    print(f"wrote {file} ({len(content.getvalue()) / 1000:.0f} kB)")


if __name__ == "__main__":
    run_script(main, PicturesConfig)
