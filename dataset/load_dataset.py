"""Images and labels: STL-10's binaries, scikit-learn's digits, or a folder of pictures.

Every split is a uint8 array of shape (N, 3, S, S). If it comes from a file, it is memory-mapped and
never copied as a whole.
"""

import hashlib
import mmap
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.folder import class_of, find_pictures
from dataset.picture_cache import load_pictures
from dataset.stl10 import STL10_IMAGE_SIZE, load_stl10, load_stl10_classes, stl10_folder
from src.runtime.cli import UserError
from src.runtime.commands import command
from src.runtime.flag_choices import DatasetName
from src.storage.artifacts import DatasetRecord
from src.storage.files import json_digest


@dataclass(frozen=True)
class Split:
    images: np.ndarray
    """uint8 (N, 3, S, S); fancy indexing reads only the requested images."""
    labels: np.ndarray | None = None
    """int64 (N,), the index of the class; None for a split without labels."""
    names: tuple[str, ...] | None = None
    """For a folder of pictures, the path of each image relative to the folder."""


@dataclass(frozen=True)
class Dataset:
    name: DatasetName
    splits: dict[str, Split]
    """At least one of "unlabeled", "train", "test", in this order."""
    class_names: tuple[str, ...]
    fingerprint: str
    """A digest that changes with the data: of every label, a sample of the pixels, and for a
    folder the name and size of every file."""
    notes: tuple[str, ...] = ()
    """What in a folder is left out or could be meant otherwise, a line each."""

    @property
    def image_size(self) -> int:
        return next(iter(self.splits.values())).images.shape[-1]


def load_dataset(
    name: DatasetName,
    data_dir: Path,
    image_size: int | None = None,
    cache_dir: Path | None = None,
) -> Dataset:
    """Open every split that exists.

    Args:
        name: which dataset.
        data_dir: for `stl10` the folder that holds `stl10_binary/`, or `stl10_binary/` itself; for
            `folder` the pictures, laid out as `dataset.folder` says.
        image_size: side S in pixels to which a folder's pictures are resized (96 by default);
            the other datasets have a fixed size.
        cache_dir: where the decoded pictures of a folder are stored; by default in the folder.

    Raises:
        UserError: there is no image, a file has the wrong size, or the cache cannot be written.
    """
    files, notes = "", []
    if name == "digits":
        splits, class_names = _digits()
    elif name == "stl10":
        splits, class_names = _stl10(stl10_folder(data_dir))
    else:
        size = image_size or STL10_IMAGE_SIZE
        splits, class_names, files = _folder(data_dir, size, cache_dir, notes)
    fingerprint = _fingerprint(splits, class_names, files)
    return Dataset(name, splits, class_names, fingerprint, tuple(notes))


def reload_dataset(recorded: DatasetRecord, data_dir: Path | None = None) -> Dataset:
    """The dataset that an earlier stage recorded in the manifest.

    Args:
        recorded: the manifest's part about the dataset.
        data_dir: the new directory of the images, if they were moved.

    Raises:
        UserError: the images are missing, or differ from the recorded ones.
    """
    if recorded["name"] == "features" or recorded["data_dir"] is None:
        raise UserError(
            f"the features were imported without pictures: run {command('src/import_features.py')} "
            "again with --data-dir and the names of the rows"
        )
    directory = data_dir or Path(recorded["data_dir"])
    cache_dir = Path(recorded["cache_dir"]) if recorded["cache_dir"] else None
    dataset = load_dataset(recorded["name"], directory, recorded["image_size"], cache_dir)
    if dataset.fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"{directory} holds other images than those that the features were extracted from: "
            f"run {command('src/feature_extraction.py')} again, or, if they were imported, "
            + command("src/import_features.py")
        )
    return dataset


def image_paths(splits: dict[str, int], dataset: Dataset | None = None) -> list[str]:
    """Of every image, as in images.csv: its file, relative to the folder, or without files
    `train[12]` for the image at index 12 of train.

    Args:
        splits: the number of images of each.
    """
    paths: list[str] = []
    for split, count in splits.items():
        names = dataset.splits[split].names if dataset else None
        paths += names or [f"{split}[{i}]" for i in range(count)]
    return paths


def _digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits; every fifth is a test image.

    Each 8x8 digit is enlarged to 16x16 and padded to 20x20, so that shifting and turning
    it cuts hardly any stroke.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    gray = [
        np.asarray(
            Image.fromarray(np.uint8(image * (255 / 16))).resize((16, 16), Image.Resampling.BICUBIC)
        )
        for image in digits.images
    ]
    framed = np.pad(np.stack(gray), ((0, 0), (2, 2), (2, 2)))
    images = np.repeat(framed[:, None], 3, axis=1)
    labels = digits.target.astype(np.int64)
    is_test = np.arange(len(labels)) % 5 == 4
    splits = {
        "train": Split(images[~is_test], labels[~is_test]),
        "test": Split(images[is_test], labels[is_test]),
    }
    return splits, tuple(str(name) for name in digits.target_names)


def _stl10(folder: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    splits = {name: Split(images, labels) for name, (images, labels) in load_stl10(folder).items()}
    if not splits:
        raise UserError(
            f"no STL-10 images in {folder}: run python dataset/download_dataset.py, or point "
            "--data-dir at the directory that holds stl10_binary/"
        )
    return splits, load_stl10_classes(folder)


def _folder(
    data_dir: Path, size: int, cache_dir: Path | None, notes: list[str]
) -> tuple[dict[str, Split], tuple[str, ...], str]:
    """Splits, class names, and a digest of every file's name and size."""
    folder = find_pictures(data_dir, notes)
    decoded = {
        split: load_pictures(pictures, size, cache_dir, notes=notes)
        for split, pictures in folder.items()
    }
    labeled = [split for split, pictures in folder.items() if pictures.labeled]
    # Of the pictures that were decoded: a class without any does not count.
    found = {split: {class_of(name) for name in decoded[split][1]} for split in labeled}
    classes = _classes(found, notes)
    class_names = tuple(sorted(set(classes.values())))
    index = {name: class_names.index(shown) for name, shown in classes.items()}
    splits = {}
    for split, (images, names) in decoded.items():
        labels = None
        if split in labeled:
            labels = np.array([index[class_of(name)] for name in names], np.int64)
        if names:
            splits[split] = Split(images, labels, names)
    if not splits:
        raise UserError(f"none of the pictures in {data_dir} can be decoded")
    files = [(name, size) for pictures in folder.values() for name, size, _ in pictures.files]
    return splits, class_names, json_digest(files)


def _classes(found: dict[str, set[str]], notes: list[str]) -> dict[str, str]:
    """The class that each folder of a class stands for, by the folder's name.

    Names that differ only in Unicode form, as those of macOS do, in case, or in spaces at the ends
    are one class, which is called as in the first split.

    Args:
        found: the names in each split.
        notes: receives a line if names were joined, or if a split has classes that train lacks.
    """
    shown: dict[str, str] = {}
    result, joined = {}, set()
    for names in found.values():
        for name in sorted(names):
            normal = unicodedata.normalize("NFC", name).strip()
            result[name] = shown.setdefault(class_key(name), normal)
            if result[name] != unicodedata.normalize("NFC", name):
                joined.add(f'"{name}" is "{result[name]}"')
    if joined:
        notes.append(f"class folders with nearly the same name are one class: {_some(joined)}")
    for split, names in found.items():
        missing = {result[name] for name in names}
        missing -= {result[name] for name in found.get("train", names)}
        if missing:
            notes.append(f"classes of {split} that train lacks: {_some(missing)}")
    return result


def class_key(name: str) -> str:
    """Equal for folders that are one class."""
    normal = unicodedata.normalize("NFC", name).strip()
    return unicodedata.normalize("NFC", normal.casefold())


def _some(texts: Collection[str]) -> str:
    return ", ".join(sorted(texts)[:5]) + (
        f" and {len(texts) - 5:,} more" if len(texts) > 5 else ""
    )


def _fingerprint(splits: dict[str, Split], class_names: tuple[str, ...], files: str) -> str:
    """A digest of shapes, names, labels and up to 64 evenly spaced images of each split."""
    sha = hashlib.sha256(f"{class_names}{files}".encode())
    for name, split in splits.items():
        count = len(split.images)
        sha.update(f"{name}{split.images.shape}{split.names}".encode())
        rows = np.linspace(0, count - 1, min(64, count)).astype(int)
        sha.update(_without_readahead(split.images, rows))
        if split.labels is not None:
            sha.update(split.labels.tobytes())
    return sha.hexdigest()[:16]


def _without_readahead(images: np.ndarray, rows: np.ndarray) -> bytes:
    """The pixels of `rows`. From a memory map, the operating system would otherwise read
    megabytes around each of them."""
    mapped: mmap.mmap | None = getattr(images, "_mmap", None)
    if mapped is None or not hasattr(mmap, "MADV_RANDOM"):  # in memory, or on Windows
        return images[rows].tobytes()
    mapped.madvise(mmap.MADV_RANDOM)
    pixels = images[rows].tobytes()
    mapped.madvise(mmap.MADV_NORMAL)
    return pixels
