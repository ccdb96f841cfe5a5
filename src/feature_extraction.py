"""Features of every split, from the frozen backbone of the newest checkpoint.

    python src/feature_extraction.py

Reads checkpoints/ and the images. Writes features/{split}_features.npy and _labels.npy, of one
split {split}_views.npy and _view_pixels.npy, and its part of features/manifest.json. The checkpoint
determines dataset and architecture.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.features.flags import ExtractionConfig
from src.runtime.cli import run_script


def main(config: ExtractionConfig) -> None:
    from src.features.extraction import run

    run(config)


if __name__ == "__main__":
    run_script(main, ExtractionConfig)
