"""A stream of pictures: found one by one, decoded by threads ahead of whoever consumes them.

However many pictures there are, only those of a bounded window are in memory.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from dataset.pictures import IMAGE_SUFFIXES, BadPicture, load_picture

THREADS = min(8, os.cpu_count() or 1)
"""The largest picture that is decoded has 89 million pixels, so this bounds the memory too."""


def find(names: Iterable[str], leave_out: Path | None = None) -> Iterator[Path]:
    """The pictures that `names` stand for, in a fixed order.

    A folder stands for all files in it and below with a picture's ending, except hidden ones; links
    to folders are not followed. Any other name stands for itself, and `decode` gives the reason if
    it is no picture.

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
) -> Iterator[tuple[Path, np.ndarray | BadPicture]]:
    """Every path with its picture, uint8 (3, size, size), or with the reason why there is none.

    Args:
        ahead: how many pictures may be decoded before they are asked for.
    """
    rest = iter(paths)
    pool = ThreadPoolExecutor(THREADS)  # Pillow decodes and resizes without the GIL
    try:
        waiting = deque((path, pool.submit(_load, path, size)) for path in islice(rest, ahead))
        while waiting:
            path, picture = waiting.popleft()
            waiting.extend((path, pool.submit(_load, path, size)) for path in islice(rest, 1))
            yield path, picture.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: Path, size: int) -> np.ndarray | BadPicture:
    try:
        if path.is_dir():
            readable = os.access(path, os.R_OK | os.X_OK)
            return BadPicture("no pictures in this folder" if readable else "permission denied")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            return BadPicture("neither a file nor a folder")
        return load_picture(path, size)
    except BadPicture as reason:
        return reason
    except OSError as error:  # a name that is too long, a link to itself
        return BadPicture((error.strerror or str(error)).lower())
    except ValueError as error:  # a list whose names end with NUL instead of a line's end
        return BadPicture(str(error))
