"""Many small pictures in a few WebP sheets, so that one page can carry them."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.runtime.cli import progress

COLUMNS = 64
"""Tiles in each row and column of a sheet: 4,096 on a sheet, so that a phone can decode it."""
PIXELS = 30_000_000
"""All tiles together. At quality 60 real photographs take about 0.2 bytes a pixel."""


@dataclass(frozen=True)
class Sheets:
    tile: int
    """Side of a tile in pixels; a multiple of 16, or color bleeds from tile to tile."""
    rows: np.ndarray
    """int (n,): which image each tile shows. Every image, or a sorted sample."""
    webp: list[bytes]
    """Tile i is on sheet i // 4096, in reading order."""


def make_sheets(read: Callable[[np.ndarray], np.ndarray], count: int, size: int) -> Sheets:
    """The sheets of `count` images: the largest tiles that fit into `PIXELS`. If even the
    smallest do not fit, a fixed random sample of the images.

    `read` gives uint8 (n, size, size, 3) for int (n,) image numbers.
    """
    wanted = -(-size // 16) * 16
    tile = next((t for t in (64, 48, 32) if t <= wanted and count * t * t <= PIXELS), 32)
    rows = np.sort(np.random.default_rng(0).permutation(count)[: PIXELS // (tile * tile)])
    per_sheet = COLUMNS * COLUMNS
    starts = progress(range(0, len(rows), per_sheet), desc="pictures", unit="sheet")
    return Sheets(tile, rows, [_sheet(read, rows[i : i + per_sheet], tile) for i in starts])


def _sheet(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, tile: int) -> bytes:
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (tile * min(len(rows), COLUMNS), tile * lines))
    for line in range(lines):
        for column, image in enumerate(read(rows[line * COLUMNS : (line + 1) * COLUMNS])):
            thumbnail = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (column * tile, line * tile))
    webp = io.BytesIO()
    sheet.save(webp, "WEBP", quality=60, method=4)
    return webp.getvalue()
