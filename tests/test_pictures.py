"""Every kind of picture against an array that was worked out without Pillow's help."""

import hashlib
import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.pictures import MAX_PIXELS, BadPicture, load_picture
from tests.helpers.digits import png_16
from tests.helpers.processes import run_python

SIZE = 24


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoded(content: bytes, size: int = SIZE) -> np.ndarray:
    """What `load_picture` gives for a file of this content."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        return load_picture(Path(file.name), size)


def reloaded(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> np.ndarray:
    """What `load_picture` gives for `image` in a file of this format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return decoded(encoded(image, format, **options))


def colors(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """Smooth, so that a lossy format or another filter stays within a few levels."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * y / (height - 1), 255 * x / (width - 1), 127.5 + 0 * x]
    return np.uint8(np.rint(np.stack(channels, axis=2)))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
    ],
)
def test_a_picture_of_the_right_size_comes_back_bit_for_bit(format: str, options: dict) -> None:
    pixels = colors()
    loaded = reloaded(pixels, format, **options)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, pixels.transpose(2, 0, 1))


def test_jpeg_of_the_right_size_is_what_a_plain_decoder_gives() -> None:
    content = encoded(Image.fromarray(colors()), "JPEG")
    plain = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(content), plain)


@pytest.mark.parametrize(("height", "width"), [(96, 72), (72, 96), (96, 72 + 1)])
def test_shorter_side_is_resized_and_the_center_cut_out(height: int, width: int) -> None:
    pixels = ramp(height, width)
    loaded = reloaded(pixels)
    side, factor = min(height, width), min(height, width) / SIZE
    top, left = (height - side) / 2, (width - side) / 2
    # A linear ramp under any symmetric filter keeps its value at the center of each new pixel.
    center = (np.arange(SIZE) + 0.5) * factor - 0.5
    rows = 255 * (top + center) / (height - 1)
    columns = 255 * (left + center) / (width - 1)
    inner = slice(2, -2)  # at the edges the filter is cut off
    assert np.abs(loaded[0, inner].astype(float) - rows[inner, None]).max() < 1.5
    assert np.abs(loaded[1, :, inner].astype(float) - columns[inner]).max() < 1.5


def test_shrinking_is_antialiased() -> None:
    checkers = np.uint8(np.indices((8 * SIZE, 8 * SIZE)).sum(axis=0) % 2 * 255)
    assert np.abs(reloaded(checkers).astype(int) - 127).max() <= 2  # sampling would give 0 or 255


def test_a_large_jpeg_is_close_to_the_same_picture_as_png() -> None:
    pixels = ramp(30 * SIZE, 40 * SIZE)
    jpeg = reloaded(pixels, "JPEG", quality=95).astype(int)
    assert np.abs(jpeg - reloaded(pixels)).max() <= 6


def test_small_and_thin_pictures_are_enlarged() -> None:
    one = np.full((1, 1, 3), (10, 20, 30), np.uint8)
    loaded = reloaded(one)
    np.testing.assert_array_equal(loaded, np.broadcast_to(one.reshape(3, 1, 1), loaded.shape))
    np.testing.assert_array_equal(reloaded(np.full((1, 5000, 3), 77, np.uint8)), 77)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(format: str, orientation: int) -> None:
    upright = colors()
    # EXIF 2.3, 4.6.4 A: where row 0 and column 0 of the stored picture are seen.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    loaded = reloaded(np.ascontiguousarray(stored), format, exif=exif, **options)
    np.testing.assert_array_equal(loaded, upright.transpose(2, 0, 1))


def test_palette_gray_and_one_bit() -> None:
    indices = np.random.default_rng(1).integers(0, 4, (SIZE, SIZE), dtype=np.uint8)
    table = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])
    image = Image.frombytes("P", (SIZE, SIZE), indices.tobytes())
    image.putpalette(table.tobytes())
    for format in ("PNG", "GIF", "BMP"):
        loaded = reloaded(image, format)
        np.testing.assert_array_equal(loaded, table[indices].transpose(2, 0, 1))
    np.testing.assert_array_equal(reloaded(indices * 60)[2], indices * 60)
    np.testing.assert_array_equal(reloaded(indices > 1)[0], np.uint8(indices > 1) * 255)


def test_transparency_is_composited_on_white() -> None:
    pixels = colors()
    alpha = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    share = alpha / 255.0
    expected = (pixels * share + 255 * (1 - share)).transpose(2, 0, 1)
    rgba = Image.fromarray(np.concatenate([pixels, alpha], axis=2))
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(reloaded(rgba, format, **options) - expected).max() <= 1
    la = Image.fromarray(np.concatenate([pixels[:, :, :1], alpha], axis=2), "LA")
    assert np.abs(reloaded(la)[1] - expected[0]).max() <= 1


def test_transparent_palette_entry_and_color_key_are_white() -> None:
    indices = np.random.default_rng(3).integers(0, 2, (SIZE, SIZE), dtype=np.uint8)
    image = Image.frombytes("P", (SIZE, SIZE), indices.tobytes())
    image.putpalette(bytes([1, 2, 3, 200, 100, 50]))
    expected = np.where(indices == 0, 255, 100)
    for format in ("PNG", "GIF"):
        np.testing.assert_array_equal(reloaded(image, format, transparency=0)[1], expected)
    partial = reloaded(image, transparency=b"\x00\xff")
    np.testing.assert_array_equal(partial[1], expected)
    rgb = np.uint8([[1, 2, 3], [200, 100, 50]])[indices]
    np.testing.assert_array_equal(reloaded(rgb, transparency=(1, 2, 3))[1], expected)


def test_cmyk() -> None:
    cmyk = np.zeros((SIZE, SIZE, 4), np.uint8)
    cmyk[:, : SIZE // 2, 0] = 255  # cyan ink swallows red
    for format in ("TIFF", "JPEG"):
        loaded = reloaded(Image.fromarray(cmyk, "CMYK"), format).astype(int)
        error = loaded[:, :, : SIZE // 2 - 4] - np.array([0, 255, 255])[:, None, None]
        assert np.abs(error).max() < 4
        assert loaded[:, :, SIZE // 2 + 4 :].min() > 251


@pytest.mark.parametrize(
    ("format", "bits"),
    [("PNG", 16), ("TIFF", 16), ("PPM", 16), ("TIFF", 12), ("PNG", 10), ("PNG", 14)],
)
def test_gray_of_up_to_16_bits_is_divided_by_their_range(format: str, bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    np.testing.assert_array_equal(
        reloaded(levels, format)[0], np.rint(levels * (255 / (2**bits - 1)))
    )


def test_float_and_32_bit_gray_are_stretched_over_their_range() -> None:
    values = np.linspace(-3.0, 5.0, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    expected = np.rint((values.astype(float) + 3) / 8 * 255)
    np.testing.assert_array_equal(reloaded(values, "TIFF")[0], expected)
    whole = np.arange(SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE) * 1_000_000 - 77
    stretched = np.rint((whole + 77.0) / (whole.max() + 77.0) * 255)
    np.testing.assert_array_equal(reloaded(whole, "TIFF")[0], stretched)


def test_float_gray_with_nan_or_without_contrast() -> None:
    values = np.ones((SIZE, SIZE), np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, 3
    loaded = reloaded(values, "TIFF")[0]
    assert loaded[0, :4].tolist() == [0, 0, 255, 0]
    for constant in (0.5, np.nan):
        assert not reloaded(np.full((SIZE, SIZE), constant, np.float32), "TIFF").any()


def test_of_several_frames_the_first_counts() -> None:
    frames = [Image.fromarray(np.full((SIZE, SIZE, 3), level, np.uint8)) for level in (40, 200)]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        first = reloaded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(first, 40)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int) -> bytes:
    """A header that claims this size, and a few pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def _truncated(format: str, share: float) -> bytes:
    whole = encoded(Image.fromarray(colors(64, 64)), format)
    return whole[: int(len(whole) * share)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"these are words, whatever the name says", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged|not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png_of(30_000, 30_000), "more than 512 million"),
        (png_of(20_000, 20_000), "more than 89 million"),
        (png_of(10_000, 9_000), "more than 89 million"),
        (_truncated("JPEG", 0.5), "truncated"),
        (_truncated("PNG", 0.5), "damaged"),
        (_truncated("WEBP", 0.5), "damaged"),
        (_truncated("GIF", 0.5), "damaged"),
        (_truncated("BMP", 0.5), "truncated"),
        (_truncated("TIFF", 0.9), "truncated|damaged|not a picture"),
    ],
)
def test_bad_pictures_give_their_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason) as error:
        decoded(content)
    assert "\n" not in str(error.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(BadPicture, match="no such file"):
        load_picture(tmp_path / "none.png", SIZE)
    with pytest.raises(BadPicture, match="is a directory"):
        load_picture(tmp_path, SIZE)


def test_the_limit_itself_is_allowed() -> None:
    wide = MAX_PIXELS // 9000
    assert wide * 9000 <= MAX_PIXELS < 10_000 * 9000
    with pytest.raises(BadPicture, match=r"truncated|damaged"):  # it is decoded, and found short
        decoded(png_of(wide, 9000))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF
def test_damage_anywhere_gives_a_picture_or_its_reason() -> None:
    rng = np.random.default_rng(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(colors())
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM"):
        options = {"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}
        whole = np.frombuffer(encoded(image, format, **options), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
            try:
                picture = decoded(damaged.tobytes())
            except BadPicture:
                continue
            assert picture.shape == (3, SIZE, SIZE)


def test_threads_give_what_one_thread_gives(tmp_path: Path) -> None:
    files = []
    for index, format in enumerate(["png", "jpeg", "webp", "tiff", "gif"] * 8):
        pixels = np.roll(colors(40, 50), index, axis=1)
        files.append(tmp_path / f"{index}.{format}")
        Image.fromarray(pixels).save(files[-1])
    # A fresh process, so that Pillow's formats are not registered yet when the threads start.
    code = (
        "import sys, hashlib, pathlib; from concurrent.futures import ThreadPoolExecutor as T;"
        "from dataset.pictures import load_picture as load;"
        "f = [pathlib.Path(a) for a in sys.argv[1:]];"
        "r = T(8).map(lambda p: load(p, 24).tobytes(), f);"
        "print(hashlib.sha256(b''.join(r)).hexdigest())"
    )
    run = run_python("-W", "error", "-c", code, *files)
    alone = b"".join(load_picture(file, SIZE).tobytes() for file in files)
    assert run.stdout.strip() == hashlib.sha256(alone).hexdigest()


# --- metadata, bit depths and sizes ---------------------------------------------------------------


def png_with(kind: bytes, content: bytes) -> bytes:
    """A PNG of `colors()` with another chunk in front of its pixels."""
    whole = encoded(Image.fromarray(colors()), "PNG")
    return whole[:33] + png_chunk(kind, content) + whole[33:]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF
@pytest.mark.parametrize(
    "content",
    [
        png_with(b"eXIf", b"MM\0\x2a\0\0\0\xff"),
        png_with(b"eXIf", b"nonsense"),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nwxyz")),
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000))),
        png_with(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        encoded(Image.fromarray(colors()), "WEBP", lossless=True, exif=b"Exif\0\0II*\0"),
    ],
    ids=["EXIF", "no EXIF", "EXIF as text", "long text", "long profile", "EXIF of WebP"],
)
def test_metadata_does_not_decide_about_pixels(content: bytes) -> None:
    np.testing.assert_array_equal(decoded(content), colors().transpose(2, 0, 1))


def test_heic_is_read() -> None:
    loaded = decoded(encoded(Image.fromarray(ramp(64, 64)), "HEIF", quality=95), 64)
    assert np.abs(loaded - ramp(64, 64).transpose(2, 0, 1).astype(float)).mean() < 3


def gif_of(width: int, height: int) -> bytes:
    """A frame that is disposed to the background, for which memory is taken at once."""
    control = b"\x21\xf9\x04\x08\0\0\0\0"
    frame = b"\x2c\0\0\0\0" + struct.pack("<HH", width, height) + b"\0\x02\0\x3b"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0" + control + frame


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak memory")


@linux
def test_headers_that_claim_to_be_huge_take_neither_time_nor_memory(tmp_path: Path) -> None:
    bmp = encoded(Image.new("L", (8, 8)), "BMP")
    tiff = encoded(Image.new("L", (8, 8)), "TIFF")
    for tag in (256, 257):  # width and height, as a number of 16 or of 32 bits
        for kind in (3, 4):
            small, large = (struct.pack("<HHII", tag, k, 1, n) for k, n in ((kind, 8), (4, 60_000)))
            tiff = tiff.replace(small, large)
    huge = {
        "a.gif": gif_of(65_000, 60_000),
        "b.png": png_of(60_000, 60_000),
        "c.bmp": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "d.pgm": b"P5 60000 60000 255\n",
        "e.tif": tiff,
    }
    for name, content in huge.items():
        (tmp_path / name).write_bytes(content)
    assert _decoded_apart([tmp_path / name for name in huge]) < 200


@linux
def test_the_largest_pictures_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    Image.new("RGBA", (side, side)).save(tmp_path / "a.png", compress_level=1)
    Image.new("F", (side, side)).save(tmp_path / "b.tif", compression="tiff_lzw")
    Image.new("L", (12_000, 9_000)).save(tmp_path / "c.jpg")  # decoded at an eighth
    for name in ("a.png", "b.tif", "c.jpg"):
        assert _decoded_apart([tmp_path / name], fails=False) < 1000


def _decoded_apart(files: list[Path], fails: bool = True) -> int:
    """MiB that a process took to decode the files, in less than ten seconds."""
    code = """
import re, sys, time
from pathlib import Path
from dataset.pictures import BadPicture, load_picture
failures, start = 0, time.monotonic()
for file in sys.argv[1:]:
    try:
        load_picture(Path(file), 24)
    except BadPicture:
        failures += 1
assert time.monotonic() - start < 10
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(failures, int(peak[1]) // 1024)
"""
    run = run_python("-c", code, *files)
    failures, memory = map(int, run.stdout.split())
    assert failures == (len(files) if fails else 0)
    return memory


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_more_than_8_bits(tmp_path: Path, channels: int, bits: int) -> None:
    top = 2**bits - 1
    values = np.random.default_rng(0).integers(0, top, (16, 16, channels))
    values[0, 0] = top
    if channels in (2, 4):
        values[..., -1] = top  # opaque
    (tmp_path / "a.png").write_bytes(png_16(values))
    expected = values[..., : 1 if channels < 3 else 3] * 255 / top
    found = load_picture(tmp_path / "a.png", 16).transpose(1, 2, 0)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_with_12_bits_a_channel(tmp_path: Path, order: str) -> None:
    """Uncompressed, of either byte order; Pillow itself writes none of 16 bits."""
    values = np.random.default_rng(0).integers(0, 4095, (16, 16, 3))
    values[0, 0] = 4095
    data = values.astype(f"{order}u2").tobytes()
    entries = [
        (256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 3, 8 + 2 + 12 * 9 + 4), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 8 + 2 + 12 * 9 + 4 + 6), (277, 3, 1, 3), (278, 3, 1, 16),
        (279, 4, 1, len(data)),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        inline = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if inline else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    end = struct.pack(f"{order}I", 0) + struct.pack(f"{order}3H", 16, 16, 16)
    (tmp_path / "a.tif").write_bytes(magic + directory + end + data)
    found = load_picture(tmp_path / "a.tif", 16).transpose(1, 2, 0)
    assert np.abs(found - values * 255 / 4095).max() <= 1
