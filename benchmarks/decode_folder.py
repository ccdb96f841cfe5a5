"""How fast a folder of pictures is decoded by one thread and by several, and opened again.

    python benchmarks/decode_folder.py --data-dir DIR

Reads the pictures of every split, decodes into caches in a temporary directory, and prints
pictures per second and the ratio of all threads to one (medians of the rounds, in which they take
turns), by how much the process grew, and the seconds to open the whole folder again.
"""

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dataset import decoding
from dataset.folder import Pictures, find_pictures
from dataset.load_dataset import load_dataset
from dataset.picture_cache import load_pictures
from src.runtime.cli import run_script


@dataclass(frozen=True)
class DecodeConfig:
    data_dir: Path = Path("dataset")
    """A folder of pictures."""
    image_size: int = 96
    """Side in pixels to which they are brought."""
    rounds: int = 3
    """How often each number of threads has its turn."""


def main(config: DecodeConfig) -> None:
    splits = find_pictures(config.data_dir)
    count = sum(len(pictures.files) for pictures in splits.values())
    for pictures in splits.values():  # from the disk into memory, so that no round waits for it
        for name, _, _ in pictures.files:
            (pictures.root / name).read_bytes()
    before = peak_bytes()
    rates: dict[int, list[float]] = {1: [], decoding.THREADS: []}
    for _ in range(config.rounds):
        for threads, measured in rates.items():
            measured.append(count / decode(splits, config.image_size, threads))
    for threads, measured in rates.items():
        ratio = statistics.median(many / one for many, one in zip(measured, rates[1], strict=True))
        rate = statistics.median(measured)
        print(f"{threads} threads: {rate:,.0f} pictures/s, {ratio:.2f} of one")
    print(f"memory grew by {(peak_bytes() - before) / 1e6:,.0f} MB")
    print(f"second open: {second_open(config):.2f} s for {count:,} pictures")


def decode(splits: dict[str, Pictures], size: int, threads: int) -> float:
    decoding.THREADS = threads
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        for pictures in splits.values():
            load_pictures(pictures, size, Path(cache))
        return time.perf_counter() - start


def second_open(config: DecodeConfig) -> float:
    with tempfile.TemporaryDirectory() as cache:
        load_dataset("folder", config.data_dir, config.image_size, Path(cache))
        start = time.perf_counter()
        load_dataset("folder", config.data_dir, config.image_size, Path(cache))
        return time.perf_counter() - start


def peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    run_script(main, DecodeConfig)
