"""Many small pictures in a few WebP sheets, so that one page can carry them."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.runtime.cli import progress

SIDE = 3072
"""Of a sheet in pixels, at most, so that a phone can decode it."""
PIXELS = 30_000_000
"""All tiles together at quality 60, at which real photographs take about 0.2 bytes a pixel."""
MORE_PIXELS = 54_000_000
"""At quality 40 they take 0.15: for many pictures, that is better than smaller tiles."""
CHOICES = (
    *((tile, 60, PIXELS) for tile in (192, 160, 128, 96, 64)),
    *((tile, 40, MORE_PIXELS) for tile in (64, 48)),
)
"""Tile, quality, and pixels of all tiles together; the first that fits is taken."""


@dataclass(frozen=True)
class Sheets:
    tile: int
    """Side of a tile in pixels; a multiple of 16, or color bleeds from tile to tile."""
    rows: np.ndarray
    """int (n,): which image each tile shows. Every image, or a sorted sample."""
    webp: list[bytes]
    """Tile i is on sheet i // columns ** 2, in reading order."""

    @property
    def columns(self) -> int:
        """Tiles in each row and column of a sheet."""
        return SIDE // max(self.tile, 1)


def make_sheets(read: Callable[[np.ndarray, int], np.ndarray], count: int, size: int) -> Sheets:
    """The sheets of `count` images of `size` pixels: the largest tiles that fit into the limits. If
    even the smallest do not fit, a fixed random sample of the images.

    `read` gives uint8 (n, S, S, 3) for int (n,) image numbers and the side of a tile, which it may
    differ from.
    """
    wanted = -(-size // 16) * 16
    tile, quality, pixels = next(
        ((t, q, most) for t, q, most in CHOICES if t <= wanted and count * t * t <= most),
        (32, 60, PIXELS),
    )
    rows = np.sort(np.random.default_rng(0).permutation(count)[: pixels // (tile * tile)])
    sheets = Sheets(tile, rows, [])
    per_sheet = sheets.columns**2
    for start in progress(range(0, len(rows), per_sheet), desc="pictures", unit="sheet"):
        sheet = _sheet(read, rows[start : start + per_sheet], tile, sheets.columns)
        webp = io.BytesIO()
        sheet.save(webp, "WEBP", quality=quality, method=4)
        sheets.webp.append(webp.getvalue())
    return sheets


def _sheet(
    read: Callable[[np.ndarray, int], np.ndarray], rows: np.ndarray, tile: int, columns: int
) -> Image.Image:
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (tile * min(len(rows), columns), tile * lines))
    for line in range(lines):
        for column, image in enumerate(read(rows[line * columns : (line + 1) * columns], tile)):
            thumbnail = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (column * tile, line * tile))
    return sheet
