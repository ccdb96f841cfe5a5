"""Draw the figures of a run and one page to explore its clusters.

    python visualize_features.py

Reads features/, checkpoints/metrics.jsonl and the images that the features come from. Writes
features/figures/, features/report.html, which opens from disk without a network, and
features/images.csv, a row for each image. Without labels, training log or images it leaves out what
needs them, and says so. Weights & Biases gets the figures; those of your own pictures only with
--wandb.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[0]))  # this checkout's own packages

from src.runtime.cli import run_script
from src.visualization.flags import VisualizeConfig


def main(config: VisualizeConfig) -> None:
    from src.visualization.stage import run

    run(config)


if __name__ == "__main__":
    run_script(main, VisualizeConfig)
