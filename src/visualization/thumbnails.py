"""Many small pictures in a few WebP sheets, so that one page can carry them."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.runtime.cli import progress

SIDE = 3072
"""Of a sheet in pixels, at most, so that a phone can decode it."""
CHOICES = (
    (192, 60), (160, 60), (128, 60), (96, 60), (64, 60), (64, 40), (48, 40), (32, 60),
)  # fmt: skip
"""Side of a tile and quality of the WebP; the first that fits is taken."""
PIXELS = {60: 30_000_000, 40: 54_000_000}
"""Of all tiles together, by quality: real photographs take about 0.2 bytes a pixel at 60, and 0.15
at 40. So 13,000 of them make a page of less than 13 MB, and 400 less than 5 MB."""


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
    tile, quality = tile_for(count, size)
    rows = np.random.default_rng(0).permutation(count)[: PIXELS[quality] // (tile * tile)]
    rows.sort()
    sheets = Sheets(tile, rows, [])
    per_sheet = sheets.columns**2
    for start in progress(range(0, len(rows), per_sheet), desc="pictures", unit="sheet"):
        sheet = _sheet(read, rows[start : start + per_sheet], tile, sheets.columns)
        webp = io.BytesIO()
        sheet.save(webp, "WEBP", quality=quality, method=4)
        sheets.webp.append(webp.getvalue())
    return sheets


def tile_for(count: int, size: int) -> tuple[int, int]:
    """Of `CHOICES`, for `count` images of `size` pixels."""
    wanted = -(-size // 16) * 16
    fitting = ((t, q) for t, q in CHOICES if t <= wanted and count * t * t <= PIXELS[q])
    return next(fitting, CHOICES[-1])


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
