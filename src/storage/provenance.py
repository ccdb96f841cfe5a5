"""Which code and which package versions produced a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch


def git_commit() -> str | None:
    """The commit of this checkout, followed by "+" if files differ from it; None without git.

    Neither a repository around an unpacked archive nor one that the environment names counts.
    """
    root = Path(__file__).resolve().parents[2]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own_git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    describe = ["describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        git = subprocess.run(
            own_git + describe, cwd=root, env=own, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
