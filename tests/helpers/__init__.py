"""What the tests share: finished runs, data, and scripts that run as processes."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
