"""Any common picture file, as a square uint8 array.

This is the only place where the project decodes a picture, so the pictures for training and those
for inference are preprocessed alike.
"""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from pillow_heif import register_heif_opener

from src.storage.files import open_regular

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp",
    ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif",
})  # fmt: skip
"""Files with these suffixes, in lower case, are taken for pictures."""

MAX_PIXELS = 89_478_485
"""More are never decoded; Pillow's own threshold, 256 MiB of RGB. A baseline JPEG may claim more
where decoding it at a half, quarter or eighth of its size takes fewer."""

MAX_WEBP_PIXELS = 40_000_000
"""The same for WebP, whose decoder keeps several copies of a picture."""

MAX_CLAIMED = 512_000_000
"""Pixels beyond which a header is not believed: some formats allocate memory for it at once."""

# Pillow raises an error at twice its limit and warns below, which is no concern of a user here.
Image.MAX_IMAGE_PIXELS = MAX_CLAIMED // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Texts and color profiles of a PNG, which do not concern its pixels; Pillow's own limit is 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26
register_heif_opener()
Image.init()  # registers every format now rather than in several threads at once

# Formats that are only decoded: Pillow runs Ghostscript for EPS, and others open further files.
_DECODED = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip
_FORMATS = [name for name in _DECODED if name in Image.OPEN]
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


def load_picture(file: Path, size: int) -> np.ndarray:
    """Decode a picture into a square.

    The largest centered square is resized to `size` x `size` with an antialiased bicubic filter,
    as if the shorter side were resized to `size` and the center cropped. A picture of
    `size` x `size` is returned bit for bit. EXIF orientation is applied; transparency is
    composited on white; of several frames or pages the first is used. Gray of 9 to 16 bits is
    divided by the range of the fewest bits that hold its largest value, as microscopes store 10,
    12 or 14 of them; 32-bit and floating-point gray is stretched from its minimum to its maximum.
    Metadata that cannot be read, such as a damaged EXIF block, is ignored.

    Returns:
        uint8 array of shape (3, size, size), red, green, blue.

    Raises:
        BadPicture: the file is missing, unreadable, empty, no picture, damaged, cut short, or
            larger than `MAX_PIXELS`.
    """
    with _opened(file) as image:
        try:
            # JPEG can decode at 1/2, 1/4 or 1/8 of its size, several times faster.
            image.draft(None, (2 * size, 2 * size))  # type: ignore[arg-type]
            _check_pixels(image)
            image.load()
            square = _square(_opaque(image), size).convert("RGB")
        except BadPicture:
            raise
        except _DAMAGE as error:
            raise BadPicture(f"damaged: {error or type(error).__name__}") from None
        turn = _turn(image)
    upright = square if turn is None else square.transpose(turn)
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))


def shorter_side(file: Path) -> int:
    """In pixels, from the header alone; raises BadPicture where it cannot be read."""
    with _opened(file) as image:
        return min(image.size)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with open_regular(file) as stream, _open(stream) as image:
            yield image
    except OSError as error:
        raise BadPicture((error.strerror or str(error)).lower()) from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What its EXIF block says; nothing where it cannot be read."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return None


def _check_pixels(image: Image.Image) -> None:
    limit = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
    if image.width * image.height > limit:
        shape = f"{image.width:,} x {image.height:,}"
        raise BadPicture(f"{shape} pixels, more than {limit // 10**6} million")


def _open(stream: BinaryIO) -> Image.Image:
    """Read and check the picture's header; no pixel is decoded yet."""
    if not stream.read(1):
        raise BadPicture("empty file")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadPicture("not a picture, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise BadPicture(
            f"its header claims more than {MAX_CLAIMED // 10**6} million pixels"
        ) from None
    except _DAMAGE as error:
        raise BadPicture(f"damaged: {error or type(error).__name__}") from None
    if image.format != "JPEG" or image.info.get("progressive"):  # whose coefficients are all kept
        _check_pixels(image)
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """In RGB, or in 8-bit gray, which takes less memory."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _gray(image)
    if image.has_transparency_data:
        image = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
        white = Image.new(image.mode[:-1], image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _gray(image: Image.Image) -> Image.Image:
    """8-bit gray from more bits; NaN and infinities count as the minimum."""

    def strips() -> Iterator[np.ndarray]:  # large pictures take little memory
        for top in range(0, image.height, 256):
            box = (0, top, image.width, min(top + 256, image.height))
            yield np.asarray(image.crop(box))

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        largest = max(int(strip.max()) for strip in strips())
        low, high = 0.0, float(2 ** max(8, largest.bit_length()) - 1)
    else:
        finite = (strip[np.isfinite(strip)] for strip in strips())
        ends = [(values.min(), values.max()) for values in finite if values.size] or [(0, 0)]
        low, high = float(min(ends)[0]), float(max(end for _, end in ends))
    scale = 255 / (high - low) if high > low else 0.0
    gray = [
        np.uint8(np.rint((np.where(np.isfinite(strip), strip, low).astype(float) - low) * scale))
        for strip in strips()
    ]
    return Image.fromarray(np.concatenate(gray))


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
