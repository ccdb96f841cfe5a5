"""Decoded pictures on disk: one uint8 array per split and size, read through a memory map.

A split is decoded once, by several threads, and again only when the name, size or modification time
of a file in its folder changes. Pictures are written to the file as soon as they are decoded, so
neither writing nor reading needs memory for more than a few of them.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from typing_extensions import TypedDict

from dataset.decoding import decode
from dataset.folder import NAMED_AT_MOST, Pictures
from dataset.pictures import BadPicture
from src.runtime.cli import ENVIRONMENT_ERRORS, UserError, printable, progress
from src.storage.files import (
    LOCK,
    digest,
    json_digest,
    locked,
    map_array,
    misfit,
    open_regular,
    replacing,
    require_space,
    write_json,
)

CACHE_FOLDER = ".picture_cache"
PIXELS_VERSION = 3
"""Increment it when `load_picture` starts to give other pixels for the same file."""

AHEAD = 64
"""Pictures that may be decoded before they are written."""


class CacheDetails(TypedDict):
    digest: str
    """Of the pixels and of `broken`."""
    broken: dict[str, str]
    """Name and reason of every picture that cannot be decoded."""


def load_pictures(
    pictures: Pictures,
    size: int,
    cache_dir: Path | None = None,
    notes: list[str] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The decoded pictures of a split.

    Args:
        pictures: what `find_pictures` found.
        size: side S in pixels.
        cache_dir: where the cache is written; by default in the folder of pictures.
        notes: receives a line if pictures could not be decoded earlier.

    Returns:
        Images, uint8 (N, 3, S, S), memory-mapped, and the names of the N pictures. Pictures that
        cannot be decoded are left out, and named on standard error by the call that tries them; N
        may be 0.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = pictures.root / CACHE_FOLDER
    if cache_dir is not None:
        folder = cache_dir / json_digest(str(pictures.root.resolve()))
    stem = f"{pictures.split}_{size}px"
    cache = folder / f"{stem}_{json_digest([PIXELS_VERSION, pictures.files])}.pixels"
    cached = _open(cache)
    is_new = cached is None
    if cached is None:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Every process of a distributed run calls this; the first one decodes, the others wait.
            with locked(folder / LOCK):
                if not _open(cache):
                    _write(cache, pictures, size)
                    _remove_others(cache, stem)
                cached = _open(cache)
    assert cached is not None
    images, broken = cached
    if is_new:
        _report(pictures, broken)
    elif broken and notes is not None:
        count = f"{len(broken):,} of {len(pictures.files):,} pictures of {pictures.split}"
        details = cache.with_suffix(".json")
        notes.append(f"{count} cannot be read and are left out; {details} names them")
    return images, tuple(name for name, _, _ in pictures.files if name not in broken)


def _open(cache: Path) -> tuple[np.ndarray, dict[str, str]] | None:
    """The cached images and the broken pictures with their reasons; None if not complete."""
    try:
        with open_regular(cache.with_suffix(".json")) as file:
            details = json.loads(file.read())
        with open_regular(cache) as file:
            if misfit(details, CacheDetails) or details["digest"] != _digest(
                file, details["broken"]
            ):
                return None
            # Copy-on-write: torch warns of arrays that it may not write to.
            return map_array(file, "c"), details["broken"]
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        return None


def _digest(cache: BinaryIO, broken: dict[str, str]) -> str:
    found = digest(cache) + json_digest(broken)
    cache.seek(0)
    return found


def _write(cache: Path, pictures: Pictures, size: int) -> None:
    count, row_bytes = len(pictures.files), 3 * size * size
    needed = count * row_bytes
    require_space(cache.parent, needed, "the cache of decoded pictures", "--cache-dir")
    print(f"decoding {count:,} pictures of {pictures.split} into {cache.parent}", file=sys.stderr)
    root = pictures.root.absolute()
    paths = (Path(f"{root}/{name}") for name, _, _ in pictures.files)
    broken: dict[str, str] = {}
    with replacing(cache) as temporary, temporary.open("wb") as file:
        _write_header(file, count, size)
        with (
            contextlib.closing(decode(paths, size, AHEAD)) as decoded,
            progress(total=count, desc=f"decoding {pictures.split}", unit="picture") as bar,
        ):
            for (name, _, _), (_, picture) in zip(pictures.files, decoded, strict=True):
                if isinstance(picture, BadPicture):
                    broken[name] = str(picture)
                else:
                    file.write(np.ascontiguousarray(picture).data)
                bar.update()
        file.seek(0)
        _write_header(file, count - len(broken), size)
    # Last, because without this file the array does not count as complete.
    with cache.open("rb") as file:
        details = {"digest": _digest(file, broken), "broken": broken}
    write_json(cache.with_suffix(".json"), details)


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # NumPy pads the header so that a smaller count takes the same number of bytes.
    npy.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        raise UserError(
            f"cannot write the cache of decoded pictures into {folder} "
            f"({(error.strerror or '').lower()}): make it writable, or name another directory with "
            "--cache-dir"
        ) from None


def _remove_others(cache: Path, stem: str) -> None:
    """Remove the caches of earlier states of the folder, and of interrupted decoding."""
    for file in cache.parent.iterdir():
        if file.name.removeprefix(".").startswith(f"{stem}_") and file.stem != cache.stem:
            file.unlink()


def _report(pictures: Pictures, broken: dict[str, str]) -> None:
    for name, reason in list(broken.items())[:NAMED_AT_MOST]:
        print(printable(f"left out {pictures.root / name}: {reason}"), file=sys.stderr)
    if len(broken) > NAMED_AT_MOST:
        count = f"{len(broken):,} of {len(pictures.files):,}"
        print(f"left out {count} pictures of {pictures.split} in total", file=sys.stderr)
