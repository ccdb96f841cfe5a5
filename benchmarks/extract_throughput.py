"""Extraction in images a second: this project beside a plain float32 loop with a DataLoader.

    python benchmarks/extract_throughput.py

Both put 96-pixel images, which are noise, through a ResNet-50 and write a `.npy` of features, in
turns.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.compare import SIDE, Pictures, noise, per_second, report, take_turns
from src.models.batch_norm import calibrate_batch_norm, fold_batch_norm
from src.models.encoder import encode_into
from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD
from src.models.resnet import ResNet
from src.runtime.cli import run_script
from src.runtime.device import select_device, select_precision
from src.runtime.flag_choices import DeviceName


@dataclass(frozen=True)
class BenchmarkConfig:
    images: int = 1024
    """Images in a turn."""
    batch_size: int = 256
    """Images in a batch."""
    rounds: int = 5
    """Turns of each contestant."""
    workers: int = os.cpu_count() or 1
    """Processes of the DataLoader."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path | None = None
    """A file that takes the results as well."""


def ours(
    backbone: ResNet, images: np.ndarray, file: Path, config: BenchmarkConfig
) -> Callable[[], float]:
    dtype = select_precision("auto", select_device(config.device))

    def extract() -> None:
        out = np.lib.format.open_memmap(file, "w+", np.float32, (len(images), 2048))
        for _ in encode_into(out, backbone, images, dtype, config.batch_size):
            pass
        out.flush()

    return lambda: per_second(len(images), extract)


def plain_loop(images: np.ndarray, file: Path, config: BenchmarkConfig) -> Callable[[], float]:
    device = select_device(config.device)
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()  # type: ignore[assignment]
    network.eval().to(device)
    transform = [transforms.ToTensor(), transforms.Normalize(PIXEL_MEAN, PIXEL_STD)]
    pictures = Pictures(images, transforms.Compose(transform))

    @torch.no_grad()
    def extract() -> None:
        batches = DataLoader(pictures, config.batch_size, num_workers=config.workers)
        np.save(file, torch.cat([network(batch.to(device)).cpu() for batch in batches]).numpy())

    return lambda: per_second(len(images), extract)


def main(config: BenchmarkConfig) -> None:
    images = noise(config.images)
    device = select_device(config.device)
    backbone = ResNet("resnet50").to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate_batch_norm(backbone, [torch.randn(64, 3, SIDE, SIDE, device=device)])
    fold_batch_norm(backbone)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        contestants = {
            "ours": ours(backbone, images, file, config),
            "plain float32 loop": plain_loop(images, file, config),
        }
        results = take_turns(contestants, config.rounds)
    title = f"extraction, ResNet-50, {SIDE} px, batches of {config.batch_size} images"
    report(title, results, config.json)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
