"""Training in images a second: this project beside what one would write otherwise.

    python benchmarks/train_throughput.py

All train a ResNet-50 with the same projection head on 96-pixel images that are noise, two views
each, at the same batch size, in turns:
- ours: what src/train.py does once batch norm is frozen;
- (a) lightly's SimCLRTransform, a DataLoader on all cores, lightly's NTXentLoss, SGD, float32, as
  lightly's own example has it;
- (b) torchvision's transforms, a DataLoader on all cores, AdamW, mixed precision.

Then the views alone, on one thread, beside torchvision's on Pillow images; and the peak memory of
our training on a memory map of 100,000 images. Needs benchmarks/requirements.txt.
"""

import math
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]
from lightly.transforms.simclr_transform import (  # pyright: ignore[reportMissingImports]
    SimCLRTransform,
)
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.compare import SIDE, Pictures, noise, per_second, report, take_turns
from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD
from src.models.simclr import SimCLR, nt_xent
from src.runtime.cli import run_script
from src.runtime.device import select_device, select_precision
from src.runtime.flag_choices import DeviceName
from src.runtime.prefetch import prefetch
from src.training.batches import ImageStore, TrainingBatches
from src.training.flags import TrainConfig, ViewSettings
from src.training.loop import train_step
from src.training.randomness import random_stream
from src.training.state import make_optimizer, make_scaler
from src.training.views import draw, make_views

WARM_UP = 2
VIEWS = ViewSettings(jitter=0.5, blur=0.5)
"""As strong as those of the others."""


@dataclass(frozen=True)
class BenchmarkConfig:
    batch_size: int = 64
    """Images in a batch."""
    steps: int = 3
    """Timed steps in a turn, after two that are not timed."""
    rounds: int = 5
    """Turns of each contestant."""
    images: int = 2000
    """How many there are to choose from."""
    workers: int = os.cpu_count() or 1
    """Processes of the other loaders."""
    compile: bool = False
    """torch.compile for ours, as src/train.py does on CUDA."""
    device: DeviceName = "auto"
    """Where to train."""
    json: Path | None = None
    """A file that takes the results as well."""


def torchvision_views() -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
    view = v2.Compose([
        v2.RandomResizedCrop(SIDE, scale=(VIEWS.crop_min, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(PIXEL_MEAN, PIXEL_STD),
    ])  # fmt: skip
    return lambda image: (view(image), view(image))


def timed(step: Callable[[Any], None], batches: Any, config: BenchmarkConfig) -> float:
    """Images a second over the steps after the first two."""
    source = iter(batches)
    for _ in range(WARM_UP):
        step(next(source))
    wait()
    started = time.perf_counter()
    for _ in range(config.steps):
        step(next(source))
    wait()
    return config.steps * config.batch_size / (time.perf_counter() - started)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(images: np.ndarray, config: BenchmarkConfig) -> Callable[[], float]:
    device = select_device(config.device)
    dtype = select_precision("auto", device)
    recipe = TrainConfig(batch_size=config.batch_size, views=VIEWS)
    model = SimCLR().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    model.backbone.freeze()
    optimizer, scaler = make_optimizer(model, recipe.weight_decay), make_scaler(device, dtype)
    network: Any = torch.compile(model) if config.compile else model
    store = ImageStore([images], device, "auto")
    batches = TrainingBatches(store, recipe)

    def step(batch: Any) -> None:
        train_step(network, optimizer, scaler, batch, recipe, dtype)

    steps = range(config.steps + WARM_UP)
    return lambda: timed(step, prefetch(batches.load, steps), config)


def torchvision_network(device: torch.device) -> nn.Module:
    """The same network from torchvision, with ordinary batch norm."""
    network = torchvision.models.resnet50()
    network.fc = nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 128))  # type: ignore[assignment]
    return network.to(device).train()


def loader(images: np.ndarray, views_of: Callable, config: BenchmarkConfig) -> DataLoader:
    on_cuda = torch.cuda.is_available()
    return DataLoader(
        Pictures(images, views_of), config.batch_size, shuffle=True, drop_last=True,
        num_workers=config.workers, pin_memory=on_cuda,
    )  # fmt: skip


def with_lightly(images: np.ndarray, config: BenchmarkConfig) -> Callable[[], float]:
    device = select_device(config.device)
    network, criterion = torchvision_network(device), NTXentLoss(temperature=0.2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
    batches = loader(images, SimCLRTransform(input_size=SIDE), config)

    def step(views: Any) -> None:
        first, second = (network(view.to(device)) for view in views)
        loss = criterion(first, second)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: timed(step, batches, config)


def with_torchvision(images: np.ndarray, config: BenchmarkConfig) -> Callable[[], float]:
    device = select_device(config.device)
    dtype = select_precision("auto", device)
    network, scaler = torchvision_network(device), make_scaler(device, dtype)
    optimizer = torch.optim.AdamW(network.parameters())
    batches = loader(images, torchvision_views(), config)

    def step(views: Any) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            projections = network(torch.cat(views).to(device, non_blocking=True))
        scaler.scale(nt_xent(projections, 0.2)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return lambda: timed(step, batches, config)


def views_alone(images: np.ndarray, count: int = 512) -> dict[str, Callable[[], float]]:
    """Views a second of ours and of torchvision's, each on one thread."""
    pictures = Pictures(images, torchvision_views())
    batch = torch.from_numpy(images[:256])

    def on_one_thread(work: Callable[[], object]) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rate = per_second(count, work)
        torch.set_num_threads(threads)
        return rate

    def batched() -> None:
        for i in range(count // len(batch)):
            drawn = draw(VIEWS, len(batch), SIDE, random_stream(i))
            make_views(batch, drawn)

    return {
        "ours, in batches of 256": lambda: on_one_thread(batched),
        "torchvision on Pillow": lambda: on_one_thread(
            lambda: [pictures[i % len(pictures)] for i in range(count // 2)]
        ),
    }


def peak_memory(file: str, batch_size: int) -> float:
    """GB that a process holds at most while it trains on a memory map of 100,000 images."""
    images = np.memmap(file, np.uint8, "w+", shape=(100_000, 3, SIDE, SIDE))
    ours(images, BenchmarkConfig(batch_size=batch_size, device="cpu"))()
    status = Path("/proc/self/status")  # getrusage would count the parent's as well
    if not status.exists():
        return math.nan
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1e6


def main(config: BenchmarkConfig) -> None:
    images = noise(config.images)
    contestants = {
        "ours": ours(images, config),
        "(a) lightly, float32": with_lightly(images, config),
        "(b) torchvision, mixed precision": with_torchvision(images, config),
    }
    title = f"training, ResNet-50, {SIDE} px, batches of {config.batch_size} images"
    report(title, take_turns(contestants, config.rounds), config.json)
    results = take_turns(views_alone(images), config.rounds)
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1) as child,
    ):
        file = str(Path(folder) / "images")
        memory = child.apply(peak_memory, (file, config.batch_size))
    peak = f"{memory:.2f} GB, network and optimizer included"
    report("views alone, one thread", results, config.json, peak_on_100_000_images=peak)


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
