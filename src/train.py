"""Train SimCLR on images without labels.

    python src/train.py                      # STL-10, downloaded if missing
    python src/train.py --dataset digits     # a minute or two on a laptop
    python src/train.py --epochs 0 --weights resnet50.pth    # no training, somebody else's network

Reads the images, and resumes from the newest checkpoint. Writes checkpoints/simclr_epoch_NNNN.pt
and checkpoints/metrics.jsonl. Stop it at any time: on Ctrl-C, SIGTERM or a closed terminal
(SIGHUP) it finishes the step, writes a checkpoint and exits; the same command resumes from there.

Prints a line every --monitor-every epochs, otherwise at most one a minute: loss, mean gradient norm
before clipping, rank (how many dimensions the projections fill, of 128; a few mean collapse),
speed, and with labels k-NN and K-means accuracy of up to 5,000 images. The file metrics.jsonl has
all epochs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.runtime.cli import run_script
from src.training.flags import TrainConfig


def main(config: TrainConfig) -> int:
    from src.training.loop import run

    return run(config)


if __name__ == "__main__":
    run_script(main, TrainConfig)
