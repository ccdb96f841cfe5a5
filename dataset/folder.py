"""The pictures in a folder, with the splits and classes that its subfolders define.

    <folder>/train/<class>/...      labeled, a class per folder; `test` likewise
    <folder>/train/*.jpg            `train` without labels; `test` likewise
    <folder>/unlabeled/...          without labels
    <folder>/...                    if none of the three exists: one split "unlabeled"

Names are not case-sensitive; `unlabelled` is `unlabeled`, and `val`, `valid` or `validation`
is `test` if there is no `test`. Pictures next to the splits are left out, and `notes` says which.
Classes, `unlabeled` and a folder without splits may contain folders of any depth; links are
followed, but no file is read twice. A picture is a file with a picture's suffix, or with any other
whose content is one. Hidden files and folders and folders of thumbnails are ignored, and so is the
folder of this program, if it lies in the folder.

Pictures that this program writes are like any others. So that none of them becomes part of the
folder that it reads, commands refuse to write there (`refuse_among`).
"""

import os
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dataset.pictures import IMAGE_SUFFIXES, RAW_SUFFIXES, is_picture
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
"""Thumbnail folders created by NAS devices and operating systems."""

PROGRAM = Path(__file__).resolve().parents[1]
"""The folder of this program: its own figures and the results that are in it by default."""

NAMED_AT_MOST = 10
"""Of the things that cannot be read."""


@dataclass(frozen=True)
class Pictures:
    """The picture files of one split."""

    root: Path
    split: str
    files: tuple[PictureFile, ...]
    """Sorted by name."""
    labeled: bool
    """Whether names are <split>/<class>/..."""


@dataclass(frozen=True)
class LeftOut:
    """What a search for pictures did not enter."""

    unreadable: list[str] = field(default_factory=list)
    """Folders and files that cannot be read."""
    others: Counter[str] = field(default_factory=Counter)
    """How many files are not pictures, by suffix."""
    repeated: Counter[str] = field(default_factory=Counter)
    """How many links lead to "files" and "folders" that are read anyway."""

    def others_note(self) -> str:
        """One line; "" if there are none."""
        if not self.others:
            return ""
        shown = [f"{count:,} {suffix}" for suffix, count in self.others.most_common(8)]
        more = ", …" if len(self.others) > len(shown) else ""
        raw = "; convert RAW photographs first" if self.others.keys() & RAW_SUFFIXES else ""
        total = f"{self.others.total():,} files that are not pictures are left out"
        return f"{total}: {', '.join(shown)}{more}{raw}"


def class_of(name: str) -> str:
    return name.split("/")[1]


def find_pictures(root: Path, notes: list[str] | None = None) -> dict[str, Pictures]:
    """The splits of a folder that have a picture.

    Args:
        root: the folder.
        notes: receives a line for everything that is left out or ambiguous.

    Raises:
        UserError: there are no pictures, two folders mean the same split, or a split has pictures
            both in class folders and next to them.
    """
    if not root.is_dir():
        raise UserError(f"--data-dir {root} is not a directory")
    notes = [] if notes is None else notes
    left_out = LeftOut()
    folders = _split_folders(root)
    if folders:
        candidates = [_split(root, split, name, left_out) for split, name in folders.items()]
        _note_left_out(root, set(folders.values()), notes)
    else:
        files = tuple(_scan(root, left_out))
        candidates = [Pictures(root, "unlabeled", files, labeled=False)]
        _note_folder_names(root, files, notes)
    unreadable = left_out.unreadable
    notes += [f"{place} cannot be read and is left out" for place in unreadable[:NAMED_AT_MOST]]
    if len(unreadable) > NAMED_AT_MOST:
        notes.append(f"{len(unreadable):,} files and folders in {root} cannot be read in all")
    if others := left_out.others_note():
        notes.append(others)
    if repeated := left_out.repeated:
        counts = " and ".join(f"{count:,} {what}" for what, count in sorted(repeated.items()))
        notes.append(f"links lead to {counts} that are read already: each is read once")
    with_files = {pictures.split: pictures for pictures in candidates if pictures.files}
    if not with_files:
        searched = " or ".join(str(root / name) for name in folders.values()) or str(root)
        raise UserError(
            f"no pictures in {searched} (JPEG, PNG, WebP, TIFF and the like)"
            + "".join(f"; {note}" for note in notes)
        )
    return with_files


def refuse_among(flag: str, place: Path, root: Path, with_splits: bool = True) -> None:
    """Raise UserError if a picture at `place`, which need not exist, would be read with those in
    the folder `root`.

    Args:
        flag: the one that `place` comes from.
        with_splits: whether only the folders of the splits are read, if there are any.
    """
    place, root = (Path(os.path.realpath(path)) for path in (place, root))
    if not place.is_relative_to(root) or not root.is_dir():
        return
    parts = place.relative_to(root).parts
    if any(part.startswith(".") or part in THUMBNAILS for part in parts):
        return
    if root != PROGRAM and PROGRAM.is_relative_to(root) and place.is_relative_to(PROGRAM):
        return
    if with_splits and (folders := _split_folders(root)) and not {*parts[:1]} & {*folders.values()}:
        return
    raise UserError(f"{flag} {place} is among the pictures in {root}: choose a place outside")


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
    for name, _, _ in _scan(root, LeftOut(), skip=used):
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


def _split(root: Path, split: str, folder: str, left_out: LeftOut) -> Pictures:
    found = _scan(root / folder, left_out)
    files = [(f"{folder}/{name}", size, changed) for name, size, changed in found]
    loose = [name for name, _, _ in files if name.count("/") == 1]
    labeled = split != "unlabeled" and len(loose) < len(files)
    if labeled and loose:
        raise UserError(
            f"{root / folder} has class folders and {len(loose):,} pictures next to them, such as "
            f"{loose[0]}: move these into a class, or into {root / 'unlabeled'}"
        )
    return Pictures(root, split, tuple(files), labeled)


def _scan(folder: Path, left_out: LeftOut, skip: Collection[str] = ()) -> list[PictureFile]:
    """The readable picture files below a folder, sorted by name; links to nothing are ignored, and
    so are those to files that are found without them."""
    files, seen = [], set()
    found = list(walk(str(folder), left_out, skip=skip))
    for name, entry in sorted(found, key=lambda item: item[1].is_symlink()):
        try:
            status = entry.stat()
        except OSError:
            if not entry.is_symlink():
                left_out.unreadable.append(entry.path)
            continue
        identity = status.st_dev, status.st_ino
        if entry.is_symlink() and identity in seen:
            left_out.repeated["files"] += 1
        elif stat.S_ISREG(status.st_mode):
            seen.add(identity)
            changed = status.st_mtime_ns if os.access(entry.path, os.R_OK) else 0
            files.append((name, status.st_size, changed))
    return sorted(files)


def walk(
    top: str, left_out: LeftOut, follow_links: bool = True, skip: Collection[str] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every picture in a folder and the folders below, and its name relative to `top`, with
    slashes: first what is in a folder, then its subfolders, both sorted; last what links lead to.

    Hidden files and folders and folders of thumbnails are ignored. There is no recursion: folders
    may be nested deeper than Python allows that.

    Args:
        left_out: receives what is not read.
        follow_links: enter links to folders too, but each folder once.
        skip: folders in `top` to ignore.
    """
    program = PROGRAM.stat()
    seen: set[tuple[int, int]] = set()
    stack, links = [(top, "")], deque[tuple[str, str]]()
    while stack or links:
        folder, prefix = stack.pop() if stack else links.popleft()
        try:
            status = os.stat(folder)  # noqa: PTH116
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out.unreadable.append(folder)
            continue
        here = status.st_dev, status.st_ino
        if here in seen:
            left_out.repeated["folders"] += 1
            continue
        if seen and here == (program.st_dev, program.st_ino):
            continue
        seen.add(here)
        folders = []
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name in THUMBNAILS or name in skip:
                continue
            if _is_folder(entry):
                if not entry.is_symlink():
                    folders.append((entry.path, f"{name}/"))
                elif follow_links:
                    links.append((entry.path, f"{name}/"))
            elif _may_be_picture(entry):
                yield name, entry
            else:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                left_out.others[suffix or "without a suffix"] += 1
        stack += reversed(folders)


def _may_be_picture(entry: os.DirEntry[str]) -> bool:
    """Decoding tells more of those with a picture's suffix."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    return suffix in IMAGE_SUFFIXES or is_picture(Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
