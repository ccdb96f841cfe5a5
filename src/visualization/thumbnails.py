"""Many small pictures in a few WebP sheets, as one page can carry them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.runtime.cli import progress

COLUMNS = 64
"""Tiles in each row and column of a sheet: 4,096 on a sheet, so that a phone can decode it."""
PIXELS = 30_000_000
"""Of all tiles together. At quality 60 real photographs take about 0.2 bytes a pixel."""


@dataclass(frozen=True)
class Sheets:
    tile: int
    """Side of a tile in pixels; a multiple of 16, or color bleeds from tile to tile."""
    rows: np.ndarray
    """int (n,): which image each tile shows. All of them, or a sorted sample."""
    webp: list[bytes]
    """Tile i is on sheet i // 4096, in reading order."""


def make_sheets(
    read: Callable[[np.ndarray], np.ndarray], count: int, size: int, seed: int
) -> Sheets:
    """The sheets of `count` images: the largest tiles that fit into `PIXELS`, and where even the
    smallest do not, a random sample of the images.

    Args:
        read: gives uint8 (n, S, S, 3) for int (n,) image numbers.
        count: N.
        size: S.
        seed: of the sample.
    """
    wanted = -(-size // 16) * 16
    tile = next((t for t in (64, 48, 32) if t <= wanted and count * t * t <= PIXELS), 32)
    sample = np.random.default_rng(seed).permutation(count)[: PIXELS // (tile * tile)]
    rows = np.sort(sample)
    step = COLUMNS * COLUMNS
    starts = progress(range(0, len(rows), step), desc="pictures", unit="sheet")
    return Sheets(tile, rows, [_sheet(read, rows[start : start + step], tile) for start in starts])


def _sheet(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, tile: int) -> bytes:
    high = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (tile * min(len(rows), COLUMNS), tile * high))
    for at, image in enumerate(_one_by_one(read, rows)):
        picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(picture, (at % COLUMNS * tile, at // COLUMNS * tile))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=60, method=4)
    return out.getvalue()


def _one_by_one(
    read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, block: int = 512
) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), block):
        yield from read(rows[start : start + block])
