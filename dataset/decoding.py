"""Pictures into the rows of a file, in this process or as a worker of another.

Imports nothing but NumPy and Pillow, so that a worker starts in a fraction of a second.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dataset.pictures import BadPicture, load_picture


def decode_rows(
    file: BinaryIO, offset: int, size: int, first: int, paths: Sequence[str | Path]
) -> dict[int, str]:
    """Decode `paths` into the rows `first`, `first` + 1, ... of `file`.

    Args:
        file: open for writing; row 0, uint8 (3, S, S), starts at byte `offset`.
        size: the side S in pixels.

    Returns:
        The rows that got no picture, each with the reason; they hold zeros.
    """
    block = np.zeros((len(paths), 3, size, size), np.uint8)
    broken = {}
    for i, path in enumerate(paths):
        try:
            block[i] = load_picture(Path(path), size)
        except BadPicture as error:
            broken[first + i] = str(error)
    file.seek(offset + first * block[0].nbytes)
    file.write(block.data)
    return broken


def serve(file: str, offset: int, size: int) -> None:
    """A worker: one line of JSON in for every call of `decode_rows`, and one with its answer out.

    Ends with its standard input, so it does not outlive whoever started it.
    """
    with Path(file).open("r+b") as out:
        for line in sys.stdin:
            first, paths = json.loads(line)
            try:
                answer = list(decode_rows(out, offset, size, first, paths).items())
                out.flush()
            except OSError as error:  # a disk that fills up
                answer = error.errno
            print(json.dumps(answer), flush=True)
