"""Any common picture file, as a square uint8 array.

This is the only place where the project decodes a picture, so the pictures for training and those
for inference are preprocessed alike.
"""

import contextlib
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from pillow_heif import register_heif_opener

from src.storage.files import open_regular

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp",
    ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif",
})  # fmt: skip
"""Files with these suffixes, in lower case, are taken for pictures."""

RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf",
    ".srw", ".x3f",
})  # fmt: skip
"""Of cameras' raw data, in lower case, which is not decoded."""

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
    composited on white; of several frames or pages the first is used. Channels of 9 to 16 bits are
    divided by the range of the fewest bits that hold their largest value, as cameras and
    microscopes store 10, 12 or 14 of them; 32-bit and floating-point gray is stretched from its
    minimum to its maximum. Metadata that cannot be read, such as a damaged EXIF block, is ignored.

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
            square = _square(_opaque(_loaded(image)), size).convert("RGB")
        except BadPicture:
            raise
        except _DAMAGE as error:
            raise BadPicture(f"damaged: {error or type(error).__name__}") from None
        turn = _turn(image)
    upright = square if turn is None else square.transpose(turn)
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height in pixels as they are stored, before EXIF's turn, from the header alone;
    raises BadPicture where it cannot be read."""
    with _opened(file) as image:
        return image.size


def is_picture(file: Path) -> bool:
    """Whether a file is one by its content, whatever its name; RAW photographs are not."""
    if file.suffix.lower() in RAW_SUFFIXES:  # most are TIFF files with a small preview
        return False
    try:
        with _opened(file):
            return True
    except BadPicture:
        return False


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ImageFile.ImageFile]:
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


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
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


def _loaded(image: ImageFile.ImageFile) -> Image.Image:
    """The decoded picture. Pillow keeps only the high byte of color with 16 bits a channel, which
    leaves pictures of 12 bits nearly black; for these, both bytes are decoded."""
    rawmode = _rawmode(image.tile[0].args) if image.tile else ""
    channels, _, order = rawmode.partition(";16")
    stream = image.fp
    image.load()
    if channels not in ("RGB", "RGBX", "RGBA", "LA") or order not in ("B", "L", "N"):
        return image
    assert stream is not None
    stream.seek(0)
    with Image.open(stream, formats=[str(image.format)]) as other:
        if channels == "LA":  # no other order exists: its four bytes as channels
            swapped = "RGBA"
        else:
            little = order == "L" or (order == "N" and sys.byteorder == "little")
            swapped = f"{channels};16{'B' if little else 'L'}"
        other.tile = [tile._replace(args=_with_rawmode(tile.args, swapped)) for tile in other.tile]
        other.load()
        low = other.split()
    if channels == "LA":  # which is opened as RGBA
        low = (low[1], low[1], low[1], low[3])
    colors = len(image.getbands()) - (image.mode in ("RGBA", "LA"))
    bands = [_from_bytes(image.getchannel(i), low[i]) for i in range(colors)]
    largest = max(int(band.max()) for band in bands)
    scaled = [_to_8_bits(band, largest) for band in bands]
    if colors < len(image.getbands()):
        alpha = _from_bytes(image.getchannel(colors), low[colors])
        scaled.append(_to_8_bits(alpha, int(alpha.max())))
    return Image.merge(image.mode, scaled)


def _rawmode(args: Any) -> str:
    """Of a tile, whose decoder takes it alone or as the first of several arguments."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _from_bytes(high: Image.Image, low: Image.Image) -> np.ndarray:
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def _to_8_bits(band: np.ndarray, largest: int) -> Image.Image:
    scale = 255 / (2 ** max(8, largest.bit_length()) - 1)
    return Image.fromarray(np.rint(band * np.float32(scale)).astype(np.uint8))


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
