"""Import features of any model, in place of src/feature_extraction.py.

    python src/import_features.py --train train.npy --train-labels labels.npy
    python src/import_features.py --unlabeled features.npy --unlabeled-names names.txt \\
        --data-dir ~/pictures

Reads .npy files with a row for every image: float16, float32 or float64 of any width, the same in
all splits. Writes features/{split}_features.npy and _labels.npy, and the extraction's part of
features/manifest.json. src/clustering.py and visualize_features.py then work as always.

With --data-dir, a folder of pictures as in training, and the names of the rows, galleries and
baselines work too, and class folders are the labels where no labels are given.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.features.flags import ImportConfig
from src.runtime.cli import run_script


def main(config: ImportConfig) -> None:
    from src.features.importing import run

    run(config)


if __name__ == "__main__":
    run_script(main, ImportConfig)
