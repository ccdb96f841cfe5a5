"""The pictures in a folder, with the splits and classes that its subfolders define.

    <folder>/train/<class>/...      labeled, a class per folder; `test` likewise
    <folder>/train/*.jpg            `train` without labels; `test` likewise
    <folder>/unlabeled/...          without labels
    <folder>/...                    if none of the three exists: one split "unlabeled"

If one of the three exists, nothing next to them is read. Classes, `unlabeled` and a folder without
splits may contain folders of any depth; links are followed. Hidden files, hidden folders and files
without a picture's suffix are ignored.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset.pictures import IMAGE_SUFFIXES
from src.runtime.cli import UserError
from src.storage.artifacts import SPLITS

PictureFile = tuple[str, int, int]
"""A picture's name relative to the folder, its size in bytes, and its modification time in
nanoseconds. The time of an unreadable file is 0, so it changes when the file becomes readable."""


@dataclass(frozen=True)
class Pictures:
    """The picture files of one split."""

    root: Path
    split: str
    files: tuple[PictureFile, ...]
    """Sorted by name."""
    labeled: bool
    """Whether names are <split>/<class>/..."""

    @property
    def classes(self) -> set[str]:
        return {class_of(name) for name, _, _ in self.files} if self.labeled else set()


def class_of(name: str) -> str:
    return name.split("/")[1]


def find_pictures(root: Path) -> dict[str, Pictures]:
    """The splits of a folder that have a picture.

    Raises:
        UserError: there is no picture, or a split has pictures both in class folders and next to
            them.
    """
    if not root.is_dir():
        raise UserError(f"--data-dir {root} is not a directory")
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if splits:
        candidates = [_split(root, name) for name in splits]
    else:
        files = sorted(_scan(str(root), ""))
        candidates = [Pictures(root, "unlabeled", tuple(files), labeled=False)]
    with_files = {pictures.split: pictures for pictures in candidates if pictures.files}
    if not with_files:
        searched = " or ".join(str(root / name) for name in splits) or str(root)
        raise UserError(
            f"no pictures in {searched} (files named .jpg, .png, .webp, .tif and the like)"
        )
    return with_files


def _split(root: Path, split: str) -> Pictures:
    files = sorted(_scan(str(root / split), f"{split}/"))
    loose = [name for name, _, _ in files if name.count("/") == 1]
    labeled = split != "unlabeled" and len(loose) < len(files)
    if labeled and loose:
        raise UserError(
            f"{root / split} has class folders and {len(loose):,} pictures next to them, such as "
            f"{loose[0]}: move these into a class, or into {root / 'unlabeled'}"
        )
    return Pictures(root, split, tuple(files), labeled)


def _scan(folder: str, prefix: str, above: frozenset[str] = frozenset()) -> Iterator[PictureFile]:
    resolved = os.path.realpath(folder)
    if resolved in above:  # a link to a parent folder
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or _is_broken_link(entry):
                continue
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}{entry.name}/", above | {resolved})
            elif _is_picture(entry):
                status = entry.stat()
                changed = status.st_mtime_ns if os.access(entry.path, os.R_OK) else 0
                yield prefix + entry.name, status.st_size, changed


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a link to nothing, or to itself."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def _is_picture(entry: os.DirEntry[str]) -> bool:
    _, dot, suffix = entry.name.rpartition(".")
    return (dot + suffix).lower() in IMAGE_SUFFIXES and entry.is_file()
