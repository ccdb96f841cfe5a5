"""Many pictures, decoded by threads or processes ahead of whoever uses them.

Imports nothing else of the project but `dataset.pictures`, because every process that decodes
imports this file.
"""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from joblib.externals.loky import get_reusable_executor

from dataset.pictures import BadPicture, load_picture

Item, Result = TypeVar("Item"), TypeVar("Result")

_CHUNK = 32
"""Pictures that a process decodes at a time."""

_IDLE_SECONDS = 10.0
"""How long a process waits for the next split before it ends."""


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """The results in the order of `items`, of which at most `ahead` are taken in advance."""
    rest = iter(items)
    futures = deque(pool.submit(function, item) for item in islice(rest, ahead))
    while futures:
        oldest = futures.popleft()
        futures.extend(pool.submit(function, item) for item in islice(rest, 1))
        yield oldest.result()


def decode_into(
    file: Path, offset: int, size: int, paths: list[str], workers: int
) -> Generator[tuple[int, dict[int, str]], None, None]:
    """Write pictures into the rows of `file`.

    Args:
        file: exists; row 0, uint8 (3, S, S), starts at byte `offset`.
        size: the side S in pixels.
        paths: the picture of each row.
        workers: how many processes decode; one is this process itself.

    Yields:
        How many more rows are done, and which of them have no picture, each with the reason;
        those hold zeros.

    Raises:
        BrokenProcessPool: a process died.
        OSError: the file cannot be written.
    """
    decode = partial(_decode_chunk, file, offset, size)
    chunks = [(first, paths[first : first + _CHUNK]) for first in range(0, len(paths), _CHUNK)]
    if workers == 1:
        yield from map(decode, chunks)
        return
    # Threads would spend a third of the time waiting for Python's lock, and the processes of
    # `multiprocessing` import the script that was started, and with it torch.
    workers = min(workers, len(chunks))
    pool = get_reusable_executor(workers, timeout=_IDLE_SECONDS, initializer=_ignore_ctrl_c)
    try:
        yield from map_ahead(pool, decode, chunks, 3 * workers)
    except BaseException:  # also when the caller closes the generator early
        pool.shutdown(kill_workers=True)
        raise


def _ignore_ctrl_c() -> None:
    """The process that started this one gets the signal as well, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode_chunk(
    file: Path, offset: int, size: int, chunk: tuple[int, list[str]]
) -> tuple[int, dict[int, str]]:
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
