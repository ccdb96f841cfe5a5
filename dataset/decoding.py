"""Many pictures, decoded by threads or processes ahead of whoever uses them.

As a command, this file decodes pictures into the rows of another file, with several processes.
Threads would spend a third of the time waiting for Python's lock, and processes started by a
script would import that script, and torch with it. So this file imports no more than it needs.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TypeVar

import numpy as np

from dataset.pictures import BadPicture, load_picture

Item, Result = TypeVar("Item"), TypeVar("Result")
Progress = tuple[int, dict[int, str]]
"""How many more rows are written, and the reason for each of them that has no picture."""

_CHUNK = 32
"""Pictures that a process decodes at a time."""


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
) -> Generator[Progress, None, None]:
    """Write pictures into the rows of `file`; a row without a picture holds zeros.

    Args:
        file: exists; row 0, uint8 (3, S, S), starts at byte `offset`.
        size: the side S in pixels.
        paths: the absolute path of each row's picture.
        workers: how many processes decode; one is this process itself.

    Raises:
        BrokenProcessPool: a process died.
        OSError: the file cannot be written.
    """
    if workers == 1:
        yield from map(partial(_decode_chunk, file, offset, size), _chunks(paths))
        return
    root = Path(__file__).parents[1]  # where `dataset` is imported from
    process = Popen(
        [sys.executable, "-m", "dataset.decoding"], cwd=root, stdin=PIPE, stdout=PIPE, text=True,
        start_new_session=True,  # so that Ctrl-C reaches this process only, which ends the others
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    written = 0
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it died: see below
            json.dump([str(file.absolute()), offset, size, paths, workers], process.stdin)
        for line in process.stdout:
            count, reasons = json.loads(line)
            if count == 0:
                raise OSError(reasons, os.strerror(reasons))
            written += count
            yield count, dict(reasons)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them ended
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
    if written < len(paths):
        raise BrokenProcessPool("a process that decodes pictures died, perhaps out of memory")


def main() -> None:
    file, offset, size, paths, workers = json.load(sys.stdin)
    decode = partial(_decode_chunk, Path(file), offset, size)
    chunks = list(_chunks(paths))
    try:
        with ProcessPoolExecutor(min(workers, len(chunks)), initializer=_end_with_parent) as pool:
            for count, reasons in map_ahead(pool, decode, chunks, 3 * workers):
                print(json.dumps([count, list(reasons.items())]), flush=True)
    except (BrokenProcessPool, BrokenPipeError):  # a process died, or the reader of this pipe
        os._exit(1)
    except OSError as error:
        print(json.dumps([0, error.errno]), flush=True)


def _end_with_parent() -> None:
    """The pool's processes would wait forever for work from a process that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _chunks(paths: list[str]) -> Generator[tuple[int, list[str]], None, None]:
    """The paths in parts, each with the row of its first picture."""
    for first in range(0, len(paths), _CHUNK):
        yield first, paths[first : first + _CHUNK]


def _decode_chunk(file: Path, offset: int, size: int, chunk: tuple[int, list[str]]) -> Progress:
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


if __name__ == "__main__":
    main()
