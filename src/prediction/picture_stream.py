"""A stream of pictures: found one by one, decoded by threads ahead of the network.

However many pictures there are, only a bounded number of them is in memory.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dataset.pictures import IMAGE_SUFFIXES, BadPicture, load_picture

THREADS = min(8, os.cpu_count() or 1)
"""No picture of more than 89 million pixels is decoded, so this bounds the memory too."""


def find(names: Iterable[str], leave_out: Path | None = None) -> Iterator[Path]:
    """The pictures that `names` refer to, in a fixed order.

    A folder stands for every file in it and its subfolders that has a picture's suffix, except
    hidden ones; links to folders are not followed. Any other name stands for itself, and `decode`
    gives the reason if it is no picture.

    Args:
        leave_out: a folder to skip, also where it is named itself, as by the shell's `*`.
    """
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112 - False for an impossible name
            yield Path(name)
        elif Path(name).resolve() != leave_out:
            yield from _pictures_below(Path(name), leave_out)


def _pictures_below(path: Path, leave_out: Path | None) -> Iterator[Path]:
    none_found = True
    unreadable: list[Path] = []
    for root, folders, files in os.walk(
        path, onerror=lambda e: unreadable.append(Path(e.filename))
    ):
        folders[:] = sorted(
            f for f in folders if f[0] != "." and Path(root, f).resolve() != leave_out
        )
        for file in sorted(files):
            if file[0] != "." and Path(file).suffix.lower() in IMAGE_SUFFIXES:
                none_found = False
                yield Path(root, file)
    if none_found and not unreadable:
        yield path
    yield from unreadable


def decode(
    paths: Iterable[Path], size: int, ahead: int
) -> Generator[tuple[Path, np.ndarray | BadPicture], None, None]:
    """Every path with its picture, uint8 (3, size, size), or with the reason why it has none.

    Args:
        ahead: how many pictures may be decoded before they are asked for.
    """
    pool = ThreadPoolExecutor(THREADS)  # Pillow decodes and resizes without Python's lock
    decoding: deque[Future[tuple[Path, np.ndarray | BadPicture]]] = deque()
    try:
        for path in paths:
            decoding.append(pool.submit(_load, path, size))
            if len(decoding) > ahead:
                yield decoding.popleft().result()
        while decoding:
            yield decoding.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: Path, size: int) -> tuple[Path, np.ndarray | BadPicture]:
    return path, _picture_or_reason(path, size)


def _picture_or_reason(path: Path, size: int) -> np.ndarray | BadPicture:
    try:
        if path.is_dir():
            readable = os.access(path, os.R_OK | os.X_OK)
            return BadPicture("no pictures in this folder" if readable else "permission denied")
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            return BadPicture("neither a file nor a folder")
        return load_picture(path, size)
    except BadPicture as reason:
        return reason
    except OSError as error:  # a name that is too long, a link to itself
        return BadPicture((error.strerror or str(error)).lower())
    except ValueError as error:  # a list whose names end with NUL instead of a line's end
        return BadPicture(str(error))
