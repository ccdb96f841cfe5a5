"""Finds the pictures that names of files and folders refer to, one by one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset.folder import LeftOut, walk


def find(names: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Path]:
    """The pictures that `names` refer to, in a fixed order.

    A folder stands for every picture in it and its subfolders, except
    hidden ones; links to folders are not followed. Any other name stands for itself; decoding it
    gives the reason if it is not a picture.

    Args:
        left_out: receives what in the folders is not read.

    """
    left_out = left_out or LeftOut()
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112 - False for an impossible name
            yield Path(name)
            continue
        unreadable, none_found = len(left_out.unreadable), True
        for _, entry in walk(name, left_out, follow_links=False):
            none_found = False
            yield Path(entry.path)
        if none_found and len(left_out.unreadable) == unreadable:
            yield Path(name)
        yield from map(Path, left_out.unreadable[unreadable:])
