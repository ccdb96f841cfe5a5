"""k-NN accuracy after so many minutes of training: ours beside other SimCLRs, on the same pictures.

    python benchmarks/time_to_target.py --dataset stl10 --data-dir DIR
    python benchmarks/time_to_target.py --minutes 0.5 1      # digits, a first look

Trains one contestant at a time from random weights, with a run for every number of minutes. Each
learns as its documentation says, with its learning rate scheduled over the minutes of the run:
- ours: as src/train.py does, mixed precision included.
- lightly: its views, projection head, loss, and the optimizer of its SimCLR tutorial (SGD 0.06,
  momentum 0.9, weight decay 5e-4, cosine), batches of 256, float32.
- sthalles: the recipe of github.com/sthalles/SimCLR, with torchvision's transforms (Adam 3e-4,
  weight decay 1e-4, temperature 0.07, a cosine from epoch 10 on), batches of 256, float32.
- names that end in -fast: the same in mixed precision and channels-last.

All are pinned to `--threads` cores, data loading included, and keep freed memory. k-NN leaves one
out of up to 5,000 labeled pictures; scoring does not count as training. A run is saved every
minute: the same command continues it, and skips finished ones. It is marked as disturbed if other
processes used more than the other cores. Needs benchmarks/requirements.txt for lightly.
"""

import itertools
import json
import math
import multiprocessing
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare import hardware
from benchmarks.simclr_contestants import CONTESTANTS, Ours, Peer, new_contestant
from src.evaluation.metrics import knn_accuracy
from src.evaluation.tables import aligned
from src.runtime.cli import UserError, run_script
from src.runtime.device import select_device
from src.runtime.flag_choices import DatasetName
from src.storage.files import json_digest, replacing
from src.storage.provenance import git_commit
from src.training.flags import TrainConfig
from src.training.health import WATCHED, labeled_sample
from src.training.setup import open_dataset

SAVE_SECONDS = 60


@dataclass(frozen=True)
class TargetConfig:
    dataset: DatasetName = "digits"
    """The pictures."""
    data_dir: Path = Path("dataset")
    """Where they are, as for src/train.py."""
    contestants: tuple[str, ...] = tuple(n for n in CONTESTANTS if not n.endswith("-fast"))
    """Who trains; each of lightly and sthalles also exists with -fast."""
    minutes: tuple[float, ...] = (10, 20, 40)
    """Training time of each run."""
    targets: tuple[float, ...] = (0.4, 0.45, 0.5)
    """k-NN accuracies whose minutes are interpolated."""
    threads: int = os.cpu_count() or 1
    """Cores to use; the others are left to other work."""
    batch_size: int | None = None
    """Images in a batch; by default what the documentation of each says."""
    seed: int = 0
    """Of weights and views."""
    output: Path = Path("checkpoints/time_to_target")
    """Folder for results.jsonl and unfinished runs."""


def cpu_seconds() -> np.ndarray:
    """Seconds of CPU so far: of the whole machine, and of this process with its data loaders."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    loaders = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        loaders += int(fields[11]) + int(fields[12])
    own = sum(os.times()[:4]) + loaders / tick
    return np.array([(user + nice + system + sum(interrupts)) / tick, own])


def train(trained: Ours | Peer, minutes: float, file: Path) -> dict[str, Any]:
    """Train for so many minutes, of which earlier processes may have done a part.

    Args:
        file: takes the state every `SAVE_SECONDS`, and at the end.

    Returns:
        What a row has of the training.
    """
    budget, seconds, of_others = 60 * minutes, 0.0, 0.0
    if file.exists():
        saved = torch.load(file)
        trained.network.load_state_dict(saved["network"])
        trained.optimizer.load_state_dict(saved["optimizer"])
        trained.counts, seconds, of_others = saved["counts"], saved["seconds"], saved["of_others"]
    while seconds < budget:
        started, before = time.monotonic() - seconds, cpu_seconds()
        stop = min(budget, seconds + SAVE_SECONDS)
        while (seconds := time.monotonic() - started) < stop:
            trained.step(seconds / budget)
            trained.counts["steps"] += 1
        machine, own = cpu_seconds() - before
        of_others += float(machine - own)
        state = {"network": trained.network.state_dict(), "counts": trained.counts}
        state |= {"optimizer": trained.optimizer.state_dict()}
        with replacing(file) as temporary:
            torch.save({**state, "seconds": seconds, "of_others": of_others}, temporary)
    cores_left = (os.cpu_count() or 1) - torch.get_num_threads()
    return {
        "seconds": seconds,
        "steps": trained.counts["steps"],
        "cores_of_others": of_others / seconds,
        "is_disturbed": of_others / seconds > cores_left + 0.1,
        "hardware": hardware(),
        "commit": git_commit(),
    }


def minutes_to(target: float, points: list[tuple[float, float]]) -> float | None:
    """Minutes to a k-NN accuracy, interpolated along the logarithm of the minutes.

    Args:
        points: minutes and accuracy of each run, in order.

    Returns:
        None if the shortest run is already above `target`, infinity if none is.
    """
    if points[0][1] > target:
        return None
    for (m, low), (n, high) in itertools.pairwise(points):
        if low <= target <= high and low < high:
            return m * (n / m) ** ((target - low) / (high - low))
    return math.inf


def table(rows: list[dict[str, Any]], config: TargetConfig) -> str:
    """k-NN by minutes, * where disturbed, and the minutes to each target, with their ratio to those
    of the first contestant."""
    minutes = [f"{m:g} min" for m in sorted(config.minutes)]
    lines = [["", *minutes, *(f"to {t:g}" for t in config.targets)]]
    of_first: dict[float, float | None] = {}
    for name in config.contestants:
        own = sorted((row for row in rows if row["contestant"] == name), key=lambda r: r["minutes"])
        line = [f"{row['knn_accuracy']:.3f}{'*' * row['is_disturbed']}" for row in own]
        for target in config.targets:
            found = minutes_to(target, [(r["seconds"] / 60, r["knn_accuracy"]) for r in own])
            first = of_first.setdefault(target, found)
            ratio = f" ({found / first:.2f} x)" if found and first and first < math.inf else ""
            text = f"<{own[0]['minutes']:g}" if found is None else f"{found:.1f}{ratio}"
            line.append(text if found != math.inf else f">{own[-1]['minutes']:g}")
        lines.append([name, *line])
    return aligned(lines)


def main(config: TargetConfig) -> None:
    if unknown := set(config.contestants) - set(CONTESTANTS):
        raise UserError(f"--contestants {min(unknown)}: choose among {', '.join(CONTESTANTS)}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
    torch.set_num_threads(config.threads)
    select_device("cpu")  # keeps freed memory, for all
    flags = TrainConfig.for_dataset(
        config.dataset, data_dir=config.data_dir, weights="none", seed=config.seed
    )
    dataset, splits = open_dataset(flags)
    flags = replace(flags, image_size=dataset.image_size, device="cpu")
    images = [dataset.splits[split].images for split in splits]
    labeled = labeled_sample(dataset, WATCHED, seed=0)
    if labeled is None or labeled.labels is None:
        raise UserError(f"{config.data_dir} has no labels, which k-NN needs")
    config.output.mkdir(parents=True, exist_ok=True)
    results, rows = config.output / "results.jsonl", []
    known = list(map(json.loads, results.read_text().splitlines())) if results.exists() else []
    for minutes, name in itertools.product(sorted(config.minutes), config.contestants):
        key = {
            "contestant": name, "minutes": minutes, "dataset": config.dataset,
            "fingerprint": dataset.fingerprint, "threads": config.threads,
            "batch_size": config.batch_size, "seed": config.seed,
        }  # fmt: skip
        row = next((row for row in known if key.items() <= row.items()), None)
        if row is None:
            print(f"{name}, {minutes:g} minutes", flush=True)
            trained = new_contestant(name, flags, images, config.batch_size, config.threads)
            file = config.output / f"{name}-{json_digest(key)}.pt"
            measured = train(trained, minutes, file)
            x_ND, labels_N = trained.features(labeled.images), labeled.labels
            knn = knn_accuracy(x_ND, labels_N, x_ND, labels_N, leave_one_out=True)
            row = {**key, "knn_accuracy": knn, **measured}
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            file.unlink()
        rows.append(row)
    print(f"{hardware()}, commit {git_commit()}\n{table(rows, config)}")
    if any(row["is_disturbed"] for row in rows):
        print("* disturbed: other processes used more than the other cores")


if __name__ == "__main__":
    run_script(main, TargetConfig)
