"""Folders of pictures that the program wrote, marked by a hidden file so that it never reads them.

Otherwise sorted or logged pictures and figures below a folder of pictures would become part of it.
"""

from collections.abc import Sequence
from pathlib import Path

MARK = ".simclr_output"
"""The hidden file, and the text in a montage that has no folder of its own."""


def mark(folder: Path, contents: str) -> None:
    """Create `folder` and mark it as one that holds `contents`, unless it is marked already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not marked_as(folder):  # also where a kill left an empty file
        (folder / MARK).write_text(f"{contents}\n", encoding="utf-8")


def marked_as(folder: Path) -> str | None:
    """The `contents` of a marked folder; None if it is not marked."""
    try:
        return (folder / MARK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no such file, or the folder of somebody else
        return None


def left_out_note(folders: Sequence[str]) -> str:
    """What to tell a user about marked folders that were not read."""
    others = f" and {len(folders) - 1:,} more" if len(folders) > 1 else ""
    return (
        f"pictures that this program wrote are left out: {folders[0]}{others}; remove the file "
        f"{MARK} there to use them"
    )
