"""Which code and which package versions produced a file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch


def git_commit() -> str | None:
    """The commit of this checkout, followed by "+" if files differ from it; None without git."""
    root = Path(__file__).parents[2]
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
