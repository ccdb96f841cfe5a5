"""Decodes pictures in their order, by threads ahead of whoever uses them.

However many pictures there are, only a bounded number of them is in memory.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dataset.pictures import BadPicture, load_picture

THREADS = min(8, os.cpu_count() or 1)
"""No picture of more than 89 million pixels is decoded, so this bounds the memory too."""


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
