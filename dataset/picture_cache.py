"""Decoded pictures on disk: one uint8 array per split and size, read through a memory map.

A split is decoded once, on all cores, and again only when the name, size or modification time of a
file in its folder changes. Pictures are written to the file as soon as they are decoded, so neither
writing nor reading needs memory for more than a few of them.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from loky import ProcessPoolExecutor, cpu_count
from numpy.lib import format as npy
from typing_extensions import TypedDict

from dataset.folder import NAMED_AT_MOST, Pictures
from dataset.pictures import BadPicture, load_picture
from src.runtime.cli import ENVIRONMENT_ERRORS, RunError, UserError, printable, progress
from src.storage.files import (
    digest,
    json_digest,
    map_array,
    misfit,
    open_regular,
    replacing,
    require_space,
    write_json,
)

CACHE_FOLDER = ".picture_cache"
PIXELS_VERSION = 2
"""Increment it when `load_picture` starts to give other pixels for the same file."""

SMALL_COUNT, SMALL_BYTES = 500, 50_000_000
"""A folder below both limits is decoded in this process: starting others would take longer."""

_CHUNK = 32
"""Pictures that a process decodes at a time."""


class CacheRecord(TypedDict):
    digest: str
    """Of the pixels and of `broken`."""
    broken: dict[str, str]
    """Name and reason of every picture that cannot be decoded."""


def load_pictures(
    pictures: Pictures,
    size: int,
    cache_dir: Path | None = None,
    workers: int | None = None,
    notes: list[str] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The decoded pictures of a split.

    Args:
        pictures: what `find_pictures` found.
        size: side S in pixels.
        cache_dir: where the cache is written; by default in the folder of pictures.
        workers: how many processes decode; by default one per core, and only this one for a
            small folder.
        notes: receives a line if pictures could not be decoded earlier.

    Returns:
        Images, uint8 (N, 3, S, S), memory-mapped, and the names of the N pictures. Pictures that
        cannot be decoded are left out, and named on standard error by the call that tries them; N
        may be 0.

    Raises:
        UserError: the cache cannot be written.
        RunError: a process that decodes died.
    """
    folder = pictures.root / CACHE_FOLDER
    if cache_dir is not None:
        folder = cache_dir / json_digest(str(pictures.root.resolve()))
    stem = f"{pictures.split}_{size}px"
    pixels = folder / f"{stem}_{json_digest([PIXELS_VERSION, pictures.files])}.pixels"
    cached = _open(pixels)
    is_new = cached is None
    if cached is None:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Every process of a distributed run calls this; the first one decodes, the others wait.
            with FileLock(folder / ".lock"):
                if not _open(pixels):
                    _write(pixels, pictures, size, workers or _suitable_workers(pictures))
                    _remove_others(pixels, stem)
                cached = _open(pixels)
    assert cached is not None
    images, broken = cached
    if is_new:
        _report(pictures, broken)
    elif broken and notes is not None:
        count = f"{len(broken):,} of {len(pictures.files):,} pictures of {pictures.split}"
        record = pixels.with_suffix(".json")
        notes.append(f"{count} cannot be read and are left out; {record} names them")
    return images, tuple(name for name, _, _ in pictures.files if name not in broken)


def _open(pixels: Path) -> tuple[np.ndarray, dict[str, str]] | None:
    """The cached images and the broken pictures with their reasons; None if not complete."""
    try:
        with open_regular(pixels.with_suffix(".json")) as file:
            record = json.loads(file.read())
        with open_regular(pixels) as file:
            if misfit(record, CacheRecord) or record["digest"] != _digest(file, record["broken"]):
                return None
            # Copy-on-write: torch warns of arrays that it may not write to.
            return map_array(file, "c"), record["broken"]
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        return None


def _digest(pixels: BinaryIO, broken: dict[str, str]) -> str:
    found = digest(pixels) + json_digest(broken)
    pixels.seek(0)
    return found


def _write(pixels: Path, pictures: Pictures, size: int, workers: int) -> None:
    count, row_bytes = len(pictures.files), 3 * size * size
    needed = count * row_bytes
    require_space(pixels.parent, needed, "the cache of decoded pictures", "--cache-dir")
    print(f"decoding {count:,} pictures of {pictures.split} into {pixels.parent}", file=sys.stderr)
    root = pictures.root.absolute()
    paths = [f"{root}/{name}" for name, _, _ in pictures.files]
    broken: dict[int, str] = {}
    with replacing(pixels) as temporary:
        with temporary.open("wb") as file:
            _write_header(file, count, size)
            offset = file.tell()
        decode = partial(_decode_rows, temporary, offset, size)
        chunks = [(first, paths[first : first + _CHUNK]) for first in range(0, count, _CHUNK)]
        with (
            _mapped(decode, chunks, workers) as decoded,
            progress(total=count, desc=f"decoding {pictures.split}", unit="picture") as bar,
        ):
            for rows, reasons in decoded:
                broken |= reasons
                bar.update(rows)
        if broken:
            with temporary.open("r+b") as file:
                _close_gaps(file, offset, row_bytes, count, broken)
                file.seek(0)
                _write_header(file, count - len(broken), size)
    # Last, because without this file the array does not count as complete.
    named = {pictures.files[row][0]: reason for row, reason in broken.items()}
    with pixels.open("rb") as file:
        record = {"digest": _digest(file, named), "broken": named}
    write_json(pixels.with_suffix(".json"), record)


@contextlib.contextmanager
def _mapped(
    function: Callable[..., Any], items: list[Any], workers: int
) -> Iterator[Iterator[Any]]:
    """The results in the order of `items`, from processes that end with the block.

    Threads would wait for Python's lock a third of the time. loky's processes do not import the
    script that started them, and torch with it, as those of `multiprocessing` do.
    """
    if workers == 1:
        yield map(function, items)
        return
    pool = ProcessPoolExecutor(min(workers, len(items)))
    try:
        yield pool.map(function, items)
    finally:
        pool.shutdown(kill_workers=True)


def _decode_rows(
    file: Path, offset: int, size: int, chunk: tuple[int, list[str]]
) -> tuple[int, dict[int, str]]:
    """Write the pictures of `chunk` into the rows of `file` from row `first` on.

    Returns:
        How many rows, and the reason for each that has no picture and holds zeros.
    """
    first, paths = chunk
    images = np.zeros((len(paths), 3, size, size), np.uint8)
    broken = {}
    for i, path in enumerate(paths):
        try:
            images[i] = load_picture(Path(path), size)
        except BadPicture as error:
            broken[first + i] = str(error)
    with file.open("r+b") as out:
        out.seek(offset + first * images[0].nbytes)
        out.write(images.data)
    return len(paths), broken


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # NumPy pads the header so that a smaller count takes the same number of bytes.
    npy.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    )


def _close_gaps(
    file: BinaryIO, offset: int, row_bytes: int, count: int, gaps: Collection[int]
) -> None:
    """Move the rows after a gap forward, and cut off the rest of the file."""
    end = min(gaps)
    for row in range(end, count):
        if row not in gaps:
            file.seek(offset + row * row_bytes)
            content = file.read(row_bytes)
            file.seek(offset + end * row_bytes)
            file.write(content)
            end += 1
    file.truncate(offset + end * row_bytes)


def _suitable_workers(pictures: Pictures) -> int:
    size = sum(size for _, size, _ in pictures.files)
    return 1 if len(pictures.files) < SMALL_COUNT and size < SMALL_BYTES else cpu_count()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise RunError(
            "a process that decodes pictures died, perhaps because memory ran out: run the same "
            "command again"
        ) from None
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        raise UserError(
            f"cannot write the cache of decoded pictures into {folder} "
            f"({(error.strerror or '').lower()}): make it writable, or name another directory with "
            "--cache-dir"
        ) from None


def _remove_others(pixels: Path, stem: str) -> None:
    """Remove the caches of earlier states of the folder, and of interrupted decoding."""
    for file in pixels.parent.iterdir():
        if file.name.removeprefix(".").startswith(f"{stem}_") and file.stem != pixels.stem:
            file.unlink()


def _report(pictures: Pictures, broken: dict[str, str]) -> None:
    for name, reason in list(broken.items())[:NAMED_AT_MOST]:
        print(printable(f"left out {pictures.root / name}: {reason}"), file=sys.stderr)
    if len(broken) > NAMED_AT_MOST:
        count = f"{len(broken):,} of {len(pictures.files):,}"
        print(f"left out {count} pictures of {pictures.split} in total", file=sys.stderr)
