"""The digits of scikit-learn as arrays and as picture files."""

import functools
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
