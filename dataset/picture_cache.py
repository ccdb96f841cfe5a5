"""Decoded pictures on disk: one uint8 array per split and size, read through a memory map.

A split is decoded once, by every core, and again only when a name, a size or a time of change in
its folder is another. The array is written in order as the pictures come, so neither writing nor
reading needs memory for more than a few of them.
"""

import contextlib
import errno
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy

from dataset.folder import Pictures
from dataset.pictures import BadPicture, load_picture
from src import artifacts
from src.cli import UserError
from src.runtime import progress

CACHE_FOLDER = ".picture_cache"
PIXELS_VERSION = 1
"""To be raised when `load_picture` gives other pixels for the same file."""

_CHUNK = 32
_NAMED_AT_MOST = 10


def load_pictures(
    pictures: Pictures, size: int, cache_dir: Path | None = None, workers: int | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The decoded pictures of a split.

    Args:
        pictures: what `find_pictures` found.
        size: side S in pixels.
        cache_dir: where the cache goes; into the folder of pictures by default.
        workers: threads to decode with; one per core by default.

    Returns:
        Images, uint8 (N, 3, S, S), memory-mapped, and the names of the N pictures. Those that
        cannot be decoded are named on standard error and left out; N may be 0.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = pictures.root / CACHE_FOLDER
    if cache_dir is not None:
        folder = cache_dir / artifacts.digest(str(pictures.root.resolve()))
    stem = f"{pictures.split}_{size}px"
    pixels = folder / f"{stem}_{artifacts.digest([PIXELS_VERSION, pictures.files])}.pixels"
    cached = _open(pixels, pictures, size)
    if cached is None:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Every process of a distributed run comes here; the first decodes, the others wait.
            with FileLock(folder / ".lock"):
                cached = _open(pixels, pictures, size)
                if cached is None:
                    _write(pixels, pictures, size, workers or cores())
                    _remove_others(pixels, stem)
                    cached = _open(pixels, pictures, size)
    assert cached is not None
    images, broken = cached
    _report(pictures, broken)
    return images, tuple(name for name, _, _ in pictures.files if name not in broken)


def _open(pixels: Path, pictures: Pictures, size: int) -> tuple[np.ndarray, dict[str, str]] | None:
    """The cached images and the broken pictures with their reasons; None where not whole."""
    try:
        broken = json.loads(_broken_file(pixels).read_text())
        shape = (len(pictures.files) - len(broken), 3, size, size)
        if shape[0] == 0:
            return np.empty(shape, np.uint8), broken
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
        return None
    return (images, broken) if images.shape == shape and images.dtype == np.uint8 else None


def _broken_file(pixels: Path) -> Path:
    return pixels.with_suffix(".json")


def _write(pixels: Path, pictures: Pictures, size: int, workers: int) -> None:
    count = len(pictures.files)
    _check_space(pixels.parent, count * 3 * size * size)
    print(f"decoding {count:,} pictures of {pictures.split} into {pixels.parent}", file=sys.stderr)
    broken = {}
    paths = [pictures.root / name for name, _, _ in pictures.files]
    with artifacts.replacing(pixels) as temporary, temporary.open("wb") as file:
        _write_header(file, count, size)
        results = _decode(paths, size, workers)
        bar = progress(results, total=count, desc=f"decoding {pictures.split}", unit="picture")
        for (name, _, _), result in zip(pictures.files, bar, strict=True):
            if isinstance(result, np.ndarray):
                file.write(result.data)
            else:
                broken[name] = result
        file.seek(0)
        _write_header(file, count - len(broken), size)
    # Last: without it the array is not taken for whole.
    artifacts.write_json(_broken_file(pixels), broken)


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # NumPy pads the header so that a smaller count takes the same number of bytes.
    npy.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    )


def _decode(paths: list[Path], size: int, workers: int) -> Iterator[np.ndarray | str]:
    """Every picture in order, or the reason why there is none; only a few wait in memory."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[np.ndarray | str]]] = deque()
    try:
        for start in range(0, len(paths), _CHUNK):
            waiting.append(pool.submit(_decode_chunk, paths[start : start + _CHUNK], size))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(paths: list[Path], size: int) -> list[np.ndarray | str]:
    return [_decode_one(path, size) for path in paths]


def _decode_one(path: Path, size: int) -> np.ndarray | str:
    try:
        return load_picture(path, size)
    except BadPicture as error:
        return str(error)


def cores() -> int:
    """Those that this process may use, which a scheduler or container can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    denied = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC)
    try:
        yield
    except OSError as error:
        if error.errno not in denied:
            raise
        raise UserError(
            f"cannot write the cache of decoded pictures into {folder} "
            f"({(error.strerror or '').lower()}): name another place with --cache-dir"
        ) from None


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the cache of decoded pictures needs {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free: name another place with --cache-dir"
        )


def _remove_others(pixels: Path, stem: str) -> None:
    """What an earlier state of the folder, or a decoding that was cut short, left behind."""
    for file in pixels.parent.iterdir():
        if file.name.removeprefix(".").startswith(f"{stem}_") and file.stem != pixels.stem:
            file.unlink()


def _report(pictures: Pictures, broken: dict[str, str]) -> None:
    if not broken:
        return
    for name, reason in list(broken.items())[:_NAMED_AT_MOST]:
        print(f"left out {pictures.root / name}: {reason}", file=sys.stderr)
    if len(broken) > _NAMED_AT_MOST:
        count = f"{len(broken):,} of {len(pictures.files):,}"
        print(f"left out {count} pictures of {pictures.split} in all", file=sys.stderr)
