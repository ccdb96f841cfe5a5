"""The digits of scikit-learn as arrays and as picture files; PNG files of 16 bits."""

import functools
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.load_dataset import load_dataset


@functools.cache
def digits(split: str = "test") -> np.ndarray:
    """uint8 (N, 3, 20, 20), not to be changed."""
    return load_dataset("digits", Path()).splits[split].images


def all_digits() -> np.ndarray:
    """Those of all splits, as a finished run has them one after another."""
    return np.concatenate([digits("train"), digits("test")])


def save_picture(image_3SS: np.ndarray, file: Path, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_3SS.transpose(1, 2, 0)).save(file, **options)  # type: ignore[arg-type]
    return file


def write_digits(folder: Path, count: int, split: str = "test") -> list[Path]:
    """The first pictures of a split as 00.png, 01.png, ..."""
    images = enumerate(digits(split)[:count])
    return [save_picture(image, folder / f"{i:02d}.png") for i, image in images]


def png_16(values_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: gray, gray with alpha, RGB or RGBA."""
    height, width, channels = values_HWC.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
