"""STL-10's binary files (Coates, Lee and Ng 2011): all of its splits or some of them.

`{train,test,unlabeled}_X.bin` hold uint8 images of 3 x 96 x 96, column-major; `{train,test}_y.bin`
a uint8 label from 1 to 10 for each. Only their shapes are checked, not their contents, so a part of
STL-10 or other images in the same format work as well.
"""

import os
from pathlib import Path

import numpy as np

from src.runtime.cli import UserError
from src.storage.artifacts import SPLITS
from src.storage.files import mapped, reading

STL10_FOLDER = "stl10_binary"
STL10_IMAGE_SIZE = 96
STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
STL10_IMAGES = {"unlabeled": 100_000, "train": 5_000, "test": 8_000}
STL10_FILES = (
    "unlabeled_X.bin", "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin",
    "class_names.txt", "fold_indices.txt",
)  # fmt: skip


def stl10_folder(data_dir: Path) -> Path:
    """The folder of the binary files: `stl10_binary` in `data_dir`, or `data_dir` itself if it is
    that folder."""
    is_it = data_dir.name == STL10_FOLDER or stl10_splits(data_dir)
    return data_dir if is_it else data_dir / STL10_FOLDER


def stl10_splits(folder: Path) -> tuple[str, ...]:
    """The splits whose images are in `folder`."""
    return tuple(split for split in SPLITS if (folder / f"{split}_X.bin").exists())


def load_stl10(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """The images and labels of every split in `folder`; {} if there is none.

    Returns:
        For each split the images, uint8 (N, 3, 96, 96), memory-mapped with rows first, and the
        labels, int64 (N,) from 0 to 9, or None.

    Raises:
        UserError: a file has the wrong size, or labels that do not fit.
    """
    splits = {}
    for name in stl10_splits(folder):
        images = _images(folder / f"{name}_X.bin")
        labels = folder / f"{name}_y.bin"
        splits[name] = (images, _labels(labels, len(images)) if labels.exists() else None)
    return splits


def load_stl10_classes(folder: Path) -> tuple[str, ...]:
    """The lines of `class_names.txt`, or STL-10's own names if there is no such file.

    Raises:
        UserError: there are not ten names.
    """
    file = folder / "class_names.txt"
    if not file.exists():
        return STL10_CLASSES
    with reading(file, _remedy(folder)) as stream:
        lines = stream.read().decode(errors="surrogateescape").splitlines()
    names = tuple(filter(None, map(str.strip, lines)))
    if len(names) != len(STL10_CLASSES):
        raise UserError(f"{file} has {len(names)} names, not {len(STL10_CLASSES)}")
    return names


def _images(file: Path) -> np.ndarray:
    side = STL10_IMAGE_SIZE
    image_bytes = 3 * side * side
    with reading(file, _remedy(file.parent)) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0 or size % image_bytes:
            raise UserError(
                f"{file} has {size:,} bytes, not a positive multiple of {image_bytes:,} "
                f"(3 x {side} x {side}): it is incomplete; {_remedy(file.parent)}"
            )
        columns_first = mapped(stream, np.uint8, (size // image_bytes, 3, side, side))
    return columns_first.transpose(0, 1, 3, 2)


def _labels(file: Path, images: int) -> np.ndarray:
    with reading(file, _remedy(file.parent)) as stream:
        labels = np.frombuffer(stream.read(), np.uint8)
    if len(labels) != images:
        raise UserError(f"{file} has {len(labels):,} labels for {images:,} images")
    if labels.min() < 1 or labels.max() > len(STL10_CLASSES):
        raise UserError(
            f"{file} has labels from {labels.min()} to {labels.max()}; STL-10's are 1 to 10"
        )
    return labels.astype(np.int64) - 1


def _remedy(folder: Path) -> str:
    return f"get it again, or remove {folder} and run python dataset/download_dataset.py"
