"""CSV with a row for each picture, as predictions and `images.csv` write it."""

import csv
import io
from collections.abc import Iterable

from src.storage.artifacts import CertaintyName


def picture_columns(certainty: CertaintyName) -> tuple[str, ...]:
    """The first columns of every such file. `name` is a given name, the matched class, or such as
    "cluster 7"; `unusual` is 0 or 1."""
    return "path", "cluster", "name", certainty, "distance", "unusual"


def row_names(splits: dict[str, int]) -> list[str]:
    """The path of images without files: `train[12]` for the image at index 12 of train.

    Args:
        splits: the number of images of each.
    """
    return [f"{split}[{i}]" for split, count in splits.items() for i in range(count)]


def csv_line(values: Iterable[object]) -> str:
    """Without its line break, which is CR and LF."""
    text = io.StringIO()
    # Before Python 3.13 a name with a line break is quoted only if this terminator has that break.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n")
