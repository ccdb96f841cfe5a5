"""Predict the cluster, class and certainty of new pictures.

    python src/inference.py photo.jpg holiday/
    find . -name "*.jpg" | python src/inference.py - --csv --output predictions.csv
    python src/inference.py --features FILE      # features of the same network, not pictures
    python src/inference.py                  # a sample of the images, as a demonstration

Reads the pictures, the outputs of src/clustering.py in features/ and the checkpoint they were made
with. Writes a table, CSV or JSON lines, in the order of the pictures. The exit code is 0 if every
picture was read, and 3 if some could not be read or sorted; each of those is named with the reason.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.prediction.flags import InferenceConfig
from src.runtime.cli import run_script


def main(config: InferenceConfig) -> int:
    from src.prediction.stage import run

    return run(config)


if __name__ == "__main__":
    run_script(main, InferenceConfig)
