"""Which code and which packages made a file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch


def git_commit() -> str | None:
    """The commit of the checkout this file is in, "+" behind it when files differ from it."""
    root = Path(__file__).parents[2]
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
