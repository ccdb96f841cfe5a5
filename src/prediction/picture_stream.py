"""Finds the pictures that names of files and folders refer to, one by one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset.folder import LeftOut, walk


def find(names: Iterable[str]) -> Iterator[Path]:
    """The pictures that `names` refer to, in a fixed order.

    A folder stands for every file in it and its subfolders that has a picture's suffix, except
    hidden ones; links to folders are not followed. Any other name stands for itself; decoding it
    gives the reason if it is not a picture.

    """
    for name in names:
        if not os.path.isdir(name):  # noqa: PTH112 - False for an impossible name
            yield Path(name)
            continue
        left_out = LeftOut()
        none_found = True
        for _, entry in walk(name, left_out, follow_links=False):
            none_found = False
            yield Path(entry.path)
        if none_found and not left_out.unreadable:
            yield Path(name)
        yield from map(Path, left_out.unreadable)
