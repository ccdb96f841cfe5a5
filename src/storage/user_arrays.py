"""Files that another program wrote: checked before anything is believed, and never run.

Shape letters: N rows, D features.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from src.runtime.cli import UserError, reason_of
from src.storage.files import mapped, reading

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

BLOCK = 1 << 23
"""Numbers in memory at a time, unless a row has more."""


def foreign_array(file: Path, remedy: str) -> np.ndarray:
    """The array of a `.npy` file of any origin, memory-mapped, read-only. Never unpickles.

    Raises:
        UserError: the file is missing, or no whole `.npy` file of plain numbers.
    """
    with reading(file, remedy) as stream:
        try:
            read_header = _HEADERS[npy.read_magic(stream)]
            shape, fortran_order, dtype = read_header(stream)
        except Exception as error:  # NumPy's parser answers damage with errors of many kinds
            raise ValueError(f"no .npy file: {reason_of(error)}") from None
        if not all(type(size) is int for size in shape):  # True is one for NumPy's parser
            raise ValueError(f"no .npy file: its shape is {shape}")
        if dtype.hasobject:
            raise ValueError("it holds pickled Python objects, which are never loaded")
        size = os.fstat(stream.fileno()).st_size - stream.tell()
        expected = math.prod(shape) * dtype.itemsize
        if not shape or min(shape) < 1 or expected == 0:
            raise ValueError(f"an array of shape {shape} has no rows")
        if size != expected:
            raise ValueError(f"{size:,} bytes of numbers, its header says {expected:,}")
        return mapped(stream, dtype, shape, order="F" if fortran_order else "C")


def read_lines(file: Path, remedy: str) -> list[str]:
    """The lines of a text file. Bytes that are no UTF-8 stay, as names of files may hold them."""
    with reading(file, remedy) as stream:
        text = stream.read().decode("utf-8-sig", errors="surrogateescape")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def foreign_features(file: Path, flag: str) -> np.ndarray:
    """float16, float32 or float64 (N, D), memory-mapped, of the `.npy` file that `flag` names.

    Raises:
        UserError: it is none, has another shape or dtype, or a number that float32 cannot hold.
    """
    x_ND = foreign_array(file, f"{flag} takes features as a .npy file, a row for every image")
    if x_ND.dtype.kind != "f" or x_ND.dtype.itemsize > 8 or x_ND.ndim != 2:
        raise UserError(
            f"{flag} {file} is {x_ND.dtype} of shape {x_ND.shape}: expected float16, float32 or "
            "float64 of shape (rows, features)"
        )
    for rows in blocks(*x_ND.shape):
        finite = np.isfinite(as_float32(x_ND[rows])).all(axis=1)
        if not finite.all():
            row = rows.start + int(finite.argmin())
            raise UserError(
                f"{flag} {file}: row {row} (from 0) has NaN, infinity or a number beyond float32: "
                "make its features again, or leave the row out"
            )
    return x_ND


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of `width` numbers, few enough at a time to be in memory."""
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, count, step))


def as_float32(x: np.ndarray) -> np.ndarray:
    """A copy; numbers beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return np.array(x, np.float32)
