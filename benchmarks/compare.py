"""Contestants that take turns: their medians, and the ratios within each round; and the pictures
that they get."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from src.runtime.cli import progress
from src.storage.provenance import git_commit

SIDE = 96


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)


class Pictures(Dataset):
    """What `transform` makes of Pillow images, as a folder of pictures would give them."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.images[i].transpose(1, 2, 0)))


@dataclass(frozen=True)
class Result:
    name: str
    rate: float
    """Median images a second."""
    ratio: float
    """Median over the rounds of the first contestant's rate by this one's."""


def per_second(count: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> list[Result]:
    """Every round asks each contestant for its images a second: a busy machine hits all alike.

    The first contestant is ours. On a CPU all keep freed memory, since `select_device` sees to it.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in progress(range(rounds), desc="rounds"):
        for name, measure in contestants.items():
            rates[name].append(measure())
    ours = next(iter(rates.values()))
    return [
        Result(
            name,
            statistics.median(own),
            statistics.median(o / r for o, r in zip(ours, own, strict=True)),
        )
        for name, own in rates.items()
    ]


def report(title: str, results: list[Result], json_file: Path | None, **more: Any) -> None:
    """A table on the screen, and JSON where asked for."""
    width = max(len(result.name) for result in results)
    print(f"\n{title}\n{hardware()}")
    print(f"{'':{width}}  images/s  ours is")
    for result in results:
        print(f"{result.name:{width}}  {result.rate:8,.1f}  {result.ratio:6.2f} x")
    for name, value in more.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if json_file:
        rows = [vars(result) for result in results]
        content = {"title": title, "hardware": hardware(), "commit": git_commit(), "results": rows}
        with json_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**content, **more}) + "\n")


def hardware() -> str:
    if torch.cuda.is_available():
        where = f"one {torch.cuda.get_device_name()}"
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        where = f"{torch.get_num_threads()} threads of {processor()}, {instructions}"
    return f"{where}, {os.cpu_count()} cores, torch {torch.__version__}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
