"""Pictures a second: inference from PNG files beside extraction, and ONNX Runtime beside PyTorch.

    python benchmarks/inference_throughput.py --feature-dir features

Needs a finished run; uses the images of its dataset, written out as PNG into a temporary folder.
They take turns and the median of the rounds counts. Also says how many clusters agree.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from dataset.load_dataset import reload_dataset
from src import artifacts
from src.cli import UserError, run_script
from src.encoder import encode_into
from src.export import to_onnx
from src.predictor import Predictor


@dataclass(frozen=True)
class BenchmarkConfig:
    feature_dir: Path = Path("features")
    """A finished run."""
    data_dir: Path | None = None
    """Where its images are; None takes the place they were extracted from."""
    pictures: int = 2000
    """How many of the training images."""
    rounds: int = 3
    """How often each is timed."""


def main(config: BenchmarkConfig) -> None:
    predictor = Predictor.load(config.feature_dir, device="cpu")
    predictor_fp32 = Predictor.load(config.feature_dir, device="cpu", precision="fp32")
    recorded = predictor.extraction["dataset"]
    dataset = reload_dataset(recorded, config.data_dir)
    if "train" not in dataset.splits:
        raise UserError("this benchmark needs a train split")
    images = np.ascontiguousarray(dataset.splits["train"].images[: config.pictures])
    assigned = artifacts.load(artifacts.ASSIGNMENTS, config.feature_dir, "train")[: len(images)]
    session = onnxruntime.InferenceSession(
        to_onnx(predictor_fp32).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def extraction() -> np.ndarray:
        features = np.empty((len(images), predictor.backbone.feature_dim), np.float32)
        for _ in encode_into(features, predictor.backbone, images, predictor.dtype):
            pass
        return assigned

    def onnx_runtime() -> np.ndarray:
        parts = (images[i : i + 64] for i in range(0, len(images), 64))
        return np.concatenate(
            [np.asarray(session.run(["cluster"], {"images": p})[0]) for p in parts]
        )

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i:05d}.png") for i in range(len(images))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "extraction": extraction,
            "inference from PNG": lambda: predictor.predict(files).clusters,
            "inference from arrays": lambda: predictor.predict(images).clusters,
            "PyTorch float32": lambda: predictor_fp32.predict(images).clusters,
            "ONNX Runtime float32": onnx_runtime,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        agree = {}
        for _ in range(config.rounds):
            for name, way in ways.items():
                started = time.monotonic()
                clusters = way()
                seconds[name].append(time.monotonic() - started)
                agree[name] = (clusters == assigned).mean()
    print(f"{len(images)} images, {predictor.dtype}, {torch.get_num_threads()} threads")
    first = np.median(seconds["extraction"])
    for name, times in seconds.items():
        median = float(np.median(times))
        print(
            f"{name:<22} {len(images) / median:7.0f} images/s  {first / median:6.1%} of extraction"
            f"  {agree[name]:.2%} in the cluster that clustering gave"
        )


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
