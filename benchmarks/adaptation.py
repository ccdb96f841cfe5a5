"""What training gains over the weights that it starts from, on folders of pictures with classes.

    python benchmarks/adaptation.py PICTURES [PICTURES ...] --seeds 3
    python benchmarks/adaptation.py PICTURES --flags="--weights dino --epochs 4"

Runs src/train.py on each folder once a seed, in a temporary directory, and scores epoch 0 and the
last epoch: k-NN (leave one out), Hungarian accuracy of K-means and of smoothed clusters, and the
latter's NMI, mean of ten seeds of K-means. Labels are only used for scoring.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from sklearn.metrics import normalized_mutual_info_score

from dataset.load_dataset import load_dataset
from src.clusters.flags import ClusteringConfig
from src.clusters.method import Method
from src.evaluation.metrics import hungarian_accuracy, knn_accuracy
from src.models.encoder import TrainedBackbone, encode_all
from src.runtime.cli import run_script
from src.storage import artifacts, checkpoint

ROOT = Path(__file__).parents[1]
SCORES = ("k-NN", "K-means", "smoothed", "NMI")


@dataclass(frozen=True)
class BenchmarkConfig:
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of pictures, each with a folder of pictures for every class, or train/ with these."""
    seeds: int = 3
    """Trainings of each folder."""
    flags: str = ""
    """More flags for src/train.py."""


def train(pictures: Path, seed: int, config: BenchmarkConfig, directory: Path) -> float:
    """Minutes of src/train.py."""
    started = time.monotonic()
    command = [
        *(sys.executable, "src/train.py", "--dataset", "folder", "--data-dir", pictures.resolve()),
        *("--checkpoint-dir", directory, "--cache-dir", directory.parent / "cache"),
        *("--wandb", "disabled", "--monitor-every", 1000, "--seed", seed),
    ]
    subprocess.run([*map(str, command), *shlex.split(config.flags)], cwd=ROOT, check=True)
    return (time.monotonic() - started) / 60


def scores(file: Path, pictures: Path, cache: Path) -> list[float]:
    """Those of `SCORES`, on all images of the split that clusters are fitted on."""
    trained = TrainedBackbone.load(file, file.parent, torch.device("cpu"))
    dataset = load_dataset("folder", pictures, trained.dataset["image_size"], cache)
    name = artifacts.default_split({name: len(s.images) for name, s in dataset.splits.items()})
    images, labels = dataset.splits[name].images, dataset.splits[name].labels
    assert labels is not None, f"{pictures} has no classes"
    features = encode_all(trained.backbone, images, torch.float32)
    own, count = ClusteringConfig(), len(dataset.class_names)
    method = Method(
        name, {name: labels}, list(dataset.class_names), own.l2_normalize, own.components,
        own.restarts, own.hops, own.neighbors,
    )  # fmt: skip
    _, reduced = method.reduce({name: features})
    smoothed = method.smooth(reduced, count)
    rows = []
    for seed in range(10):
        found = method.clusterings(reduced, smoothed, count, seed)
        plain, used = found["kmeans"].clusters[name], found["smoothed"].clusters[name]
        rows.append(
            [
                hungarian_accuracy(labels, plain),
                hungarian_accuracy(labels, used),
                float(normalized_mutual_info_score(labels, used)),
            ]
        )
    knn = knn_accuracy(features, labels, features, labels, leave_one_out=True)
    return [knn, *np.mean(rows, axis=0).tolist()]


def main(config: BenchmarkConfig) -> None:
    lines = [f"| pictures | seed | minutes | {' | '.join(SCORES)} |", "|---" * 7 + "|"]
    gains = []
    for pictures in config.pictures:
        with tempfile.TemporaryDirectory() as scratch:
            cache, before = Path(scratch, "cache"), None
            for seed in range(config.seeds):
                directory = Path(scratch, str(seed))
                minutes = train(pictures, seed, config, directory)
                files = checkpoint.listed(directory)
                before = before or scores(files[0], pictures, cache)  # the same for every seed
                after = scores(files[-1], pictures, cache)
                gains.append(np.subtract(after, before))
                cells = (f"{b:.3f} → {a:.3f}" for b, a in zip(before, after, strict=True))
                lines.append(f"| {pictures.name} | {seed} | {minutes:.1f} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    cells = (f"{gain:+.3f}" for gain in np.mean(gains, axis=0))
    print("\n".join([*lines, f"| mean gain | | | {' | '.join(cells)} |"]))


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
