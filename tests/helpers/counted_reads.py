"""Counts the bytes that are read of checkpoints."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from src.storage import checkpoint
from src.storage.files import open_regular


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From now on, how many bytes were read of every file, by its name."""
    counts: Counter[str] = Counter()

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            count = super().readinto(buffer)
            counts[Path(str(self.name)).name] += count or 0
            return count

        def readall(self) -> bytes:
            content = super().readall()
            counts[Path(str(self.name)).name] += len(content)
            return content

    def opened(file: Path) -> Any:
        open_regular(file).close()
        return io.BufferedReader(Counted(file))

    monkeypatch.setattr(checkpoint, "open_regular", opened)
    return counts
