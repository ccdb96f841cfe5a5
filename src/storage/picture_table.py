"""CSV with a row for each picture, as predictions and `images.csv` write it.

People open it in spreadsheets, which compute cells that look like a formula, whoever gave them
their name, and take a file for UTF-8 only by its first bytes.
"""

import csv
import io
from collections.abc import Iterable

from src.storage.artifacts import CertaintyName

ENCODING = "utf-8-sig"
"""Of a file; a pipe goes to programs, which do not expect a mark at the beginning."""

FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""Where a cell begins with one of these, some spreadsheet computes it; the last four are the wide
forms of the first."""


def picture_columns(certainty: CertaintyName) -> tuple[str, ...]:
    """The first columns of every such file. `name` is a given name, the matched class, or such as
    "cluster 7"; `unusual` is 0 or 1."""
    return "path", "cluster", "name", certainty, "distance", "unusual"


def csv_line(values: Iterable[object]) -> str:
    """Without its line break, which is CR and LF. Texts that a spreadsheet would compute begin with
    an apostrophe."""
    text = io.StringIO()
    # Before Python 3.13 a name with a line break is quoted only if this terminator has that break.
    csv.writer(text, lineterminator="\r\n").writerow(map(_inert, values))
    return text.getvalue().removesuffix("\r\n")


def _inert(value: object) -> object:
    if not isinstance(value, str) or not value or value[0] not in FORMULA:
        return value
    try:
        float(value)  # a negative number
    except ValueError:
        return f"'{value}"
    return value
