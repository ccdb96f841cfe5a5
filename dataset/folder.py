"""The pictures in a folder, with the splits and classes that its subfolders define.

    <folder>/train/<class>/...      labeled, a class per folder; `test` likewise
    <folder>/train/*.jpg            `train` without labels; `test` likewise
    <folder>/unlabeled/...          without labels
    <folder>/...                    if none of the three exists: one split "unlabeled"

Upper and lower case do not matter; `unlabelled` is `unlabeled`, and `val`, `valid` or `validation`
is `test` if there is no `test`. Pictures next to the splits are left out, and `notes` says which.
Classes, `unlabeled` and a folder without splits may contain folders of any depth; links are
followed. Hidden files and folders, folders of thumbnails and files without a picture's suffix are
ignored.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset.pictures import IMAGE_SUFFIXES
from src.runtime.cli import UserError
from src.storage.artifacts import SPLITS

PictureFile = tuple[str, int, int]
"""A picture's name relative to the folder, its size in bytes, and its modification time in
nanoseconds. The time of an unreadable file is 0, so it changes when the file becomes readable."""

SPLIT_OF = {
    **{split: split for split in SPLITS}, "unlabelled": "unlabeled",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
"""By the name of a folder in lower case. "val" takes the place of a missing test split."""

THUMBNAILS = ("@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "__MACOSX")
"""Folders in which network drives and systems keep copies that are no pictures of a user."""


@dataclass(frozen=True)
class Pictures:
    """The picture files of one split."""

    root: Path
    split: str
    files: tuple[PictureFile, ...]
    """Sorted by name."""
    labeled: bool
    """Whether names are <split>/<class>/..."""


def class_of(name: str) -> str:
    return name.split("/")[1]


def find_pictures(root: Path, notes: list[str] | None = None) -> dict[str, Pictures]:
    """The splits of a folder that have a picture.

    Args:
        root: the folder.
        notes: receives a line about everything that is left out or could be meant otherwise.

    Raises:
        UserError: there is no picture, two folders stand for one split, or a split has pictures
            both in class folders and next to them.
    """
    if not root.is_dir():
        raise UserError(f"--data-dir {root} is not a directory")
    notes = [] if notes is None else notes
    folders = _split_folders(root)
    if folders:
        candidates = [_split(root, split, name, notes) for split, name in folders.items()]
        _note_left_out(root, set(folders.values()), notes)
    else:
        files = tuple(sorted(_scan(str(root), "", notes)))
        candidates = [Pictures(root, "unlabeled", files, labeled=False)]
        _note_folder_names(root, files, notes)
    with_files = {pictures.split: pictures for pictures in candidates if pictures.files}
    if not with_files:
        searched = " or ".join(str(root / name) for name in folders.values()) or str(root)
        raise UserError(
            f"no pictures in {searched} (files named .jpg, .png, .webp, .tif and the like)"
        )
    return with_files


def _split_folders(root: Path) -> dict[str, str]:
    """The name of the folder of each split, in the order of the splits."""
    names: dict[str, str] = {}
    for folder in sorted(root.iterdir()):
        split = SPLIT_OF.get(folder.name.lower())
        if split is None or not folder.is_dir():
            continue
        if split in names:
            raise UserError(
                f"{root / names[split]} and {folder} both hold the {split} split: rename one"
            )
        names[split] = folder.name
    if "val" in names:
        names.setdefault("test", names["val"])
    return {split: names[split] for split in SPLITS if split in names}


def _note_left_out(root: Path, used: set[str], notes: list[str]) -> None:
    """Name the pictures next to the folders of the splits, with their number in each place."""
    counts = Counter[str]()
    for name, _, _ in _scan(str(root), "", [], skip={*used, *THUMBNAILS}):
        place, slash, _ = name.partition("/")
        counts[f"{place}/" if slash else "the folder itself"] += 1
    if counts:
        places = ", ".join(f"{place} ({count:,})" for place, count in counts.most_common(10))
        splits = ", ".join(sorted(used))
        notes.append(
            f"{counts.total():,} pictures in {root} next to {splits} are left out: {places}; move "
            "them into train/<class>/ or unlabeled/ to use them"
        )


def _note_folder_names(root: Path, files: tuple[PictureFile, ...], notes: list[str]) -> None:
    """Say how folders become classes, where every picture lies in one of several."""
    folders = {name.split("/")[0] for name, _, _ in files if "/" in name}
    if len(folders) > 1 and all("/" in name for name, _, _ in files):
        shown = ", ".join(sorted(folders)[:3]) + (", ..." if len(folders) > 3 else "")
        notes.append(
            f"the names of the {len(folders)} folders in {root} ({shown}) are not used; if they "
            f"are classes to score the clusters by, move them into {root / 'train'}"
        )


def _split(root: Path, split: str, folder: str, notes: list[str]) -> Pictures:
    files = sorted(_scan(str(root / folder), f"{folder}/", notes))
    loose = [name for name, _, _ in files if name.count("/") == 1]
    labeled = split != "unlabeled" and len(loose) < len(files)
    if labeled and loose:
        raise UserError(
            f"{root / folder} has class folders and {len(loose):,} pictures next to them, such as "
            f"{loose[0]}: move these into a class, or into {root / 'unlabeled'}"
        )
    return Pictures(root, split, tuple(files), labeled)


def _scan(
    folder: str,
    prefix: str,
    notes: list[str],
    above: frozenset[str] = frozenset(),
    skip: Collection[str] = THUMBNAILS,
) -> Iterator[PictureFile]:
    resolved = os.path.realpath(folder)
    if resolved in above:  # a link to a parent folder
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        notes.append(f"{folder} may not be read and is left out")
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in skip or _is_broken_link(entry):
            continue
        if entry.is_dir():
            below = above | {resolved}
            yield from _scan(entry.path, f"{prefix}{entry.name}/", notes, below)
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
