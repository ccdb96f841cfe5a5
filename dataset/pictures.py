"""Any common picture file, as a square uint8 array.

This is the only place where the project decodes a picture, so the pictures for training and those
for inference are preprocessed alike.
"""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp",
    ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif",
})  # fmt: skip
"""Files with these suffixes, in lower case, are taken for pictures."""

MAX_PIXELS = 89_478_485
"""Larger pictures are rejected before they are decoded; Pillow's own threshold, 256 MiB of RGB."""

# Pillow's own limit warns before it raises an error, and a warning cannot be silenced in one thread
# only. The check in `_open` replaces it.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # registers every format now rather than in several threads at once

# Formats that are only decoded: Pillow runs Ghostscript for EPS, and others open further files.
_FORMATS = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
]
# Errors that Pillow's decoders raise on damaged data.
_DAMAGE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, IndexError, KeyError, TypeError,
    OverflowError, MemoryError, struct.error, zlib.error,
)  # fmt: skip

# How to undo an EXIF orientation, https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf 4.6.4 A.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(ValueError):
    """A file that cannot be decoded; the message is the reason in a few words."""


def load_picture(source: Path | BinaryIO, size: int) -> np.ndarray:
    """Decode a picture into a square.

    The largest centered square is resized to `size` x `size` with an antialiased bicubic filter,
    as if the shorter side were resized to `size` and the center cropped. A picture of
    `size` x `size` is returned bit for bit. EXIF orientation is applied; transparency is
    composited on white; of several frames or pages the first is used. 16-bit gray is divided by
    257; 32-bit and floating-point gray is stretched from its minimum to its maximum.

    Args:
        source: a file, or a binary stream that can seek.
        size: the side S in pixels.

    Returns:
        uint8 array of shape (3, S, S), red, green, blue.

    Raises:
        BadPicture: the file is missing, unreadable, empty, no picture, damaged, cut short, or
            larger than `MAX_PIXELS`.
    """
    if not isinstance(source, Path):
        return _load(source, size)
    try:
        with source.open("rb") as stream:
            return _load(stream, size)
    except OSError as error:
        raise BadPicture((error.strerror or str(error)).lower()) from None


def _load(stream: BinaryIO, size: int) -> np.ndarray:
    with _open(stream) as image:
        try:
            # JPEG can decode at 1/2, 1/4 or 1/8 of its size, several times faster.
            image.draft(None, (2 * size, 2 * size))  # type: ignore[arg-type]
            image.load()
            square = _square(_rgb(image), size)
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        except _DAMAGE as error:
            raise BadPicture(f"damaged: {error or type(error).__name__}") from None
    upright = square if turn is None else square.transpose(turn)
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))


def _open(stream: BinaryIO) -> Image.Image:
    """Read and check the picture's header; no pixel is decoded yet."""
    start = stream.read(12)
    if not start:
        raise BadPicture("empty file")
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        if start[4:8] == b"ftyp" and start[8:] != b"avif":  # photos from phones
            raise BadPicture("HEIC, which is not supported: convert it to JPEG or PNG") from None
        raise BadPicture("not a picture, or its header is damaged") from None
    except _DAMAGE as error:
        raise BadPicture(f"damaged: {error or type(error).__name__}") from None
    if image.width * image.height > MAX_PIXELS:
        shape = f"{image.width:,} x {image.height:,}"
        raise BadPicture(f"{shape} pixels, more than {MAX_PIXELS // 10**6} million")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_gray(np.asarray(image), is_16_bit=_is_16_bit(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _gray(values: np.ndarray, is_16_bit: bool) -> np.ndarray:
    """uint8 of the same shape; NaN and infinities count as the minimum."""
    if is_16_bit:
        low, high = 0.0, 65535.0
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        values = np.where(np.isfinite(values), values, low)
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
