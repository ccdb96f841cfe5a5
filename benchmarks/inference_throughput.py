"""Pictures a second: inference from files against extraction, ONNX Runtime against PyTorch.

    python benchmarks/inference_throughput.py --feature-dir features [FOLDER]

Needs the outputs of src/clustering.py. Takes the pictures of a folder, or writes the train images
as PNG. The methods take turns on the same pictures with the same number of threads; the median of
the rounds counts. Prints a table, or with --json a JSON object.
"""

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
import tyro
from PIL import Image

from benchmarks.compare import per_second, take_turns
from dataset.load_dataset import reload_dataset
from dataset.pictures import load_picture
from src.models.encoder import encode_all
from src.prediction.onnx_export import onnx_clusters, to_onnx
from src.prediction.picture_stream import find
from src.prediction.predictor import Predictor
from src.runtime.cli import UserError, run_script


@dataclass(frozen=True)
class ThroughputConfig:
    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """Pictures; by default the train images, written as PNG."""
    feature_dir: Path = Path("features")
    """Directory of the clusters."""
    checkpoint: Path | None = None
    """The checkpoint of the features, if it was moved since the extraction."""
    data_dir: Path | None = None
    """Directory of the images; by default, where they were extracted from."""
    pictures: int = 2000
    """Most pictures to use."""
    rounds: int = 3
    """Turns of each method."""
    json: bool = False
    """Print a JSON object instead of a table."""


def main(config: ThroughputConfig) -> None:
    predictor = Predictor.load(config.feature_dir, config.checkpoint, "cpu")
    in_float32 = Predictor.load(config.feature_dir, config.checkpoint, "cpu", "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or write_train_images(Path(temporary), predictor, config)
        files = list(islice(find([str(folder)]), config.pictures))
        images = np.stack([load_picture(file, predictor.image_size) for file in files])
        session = onnx_session(in_float32)
        backbone = predictor.backbone
        assert backbone is not None
        methods = {
            "extraction": lambda: encode_all(backbone, images, predictor.dtype),
            "inference from files": lambda: predictor.predict(files),
            "PyTorch float32": lambda: in_float32.predict(images),
            "ONNX Runtime float32": lambda: onnx_clusters(session, images),
        }
        timed = {name: partial(per_second, len(images), work) for name, work in methods.items()}
        rates = {result.name: result.rate for result in take_turns(timed, config.rounds)}
    ratios = {
        "inference / extraction": rates["inference from files"] / rates["extraction"],
        "ONNX Runtime / PyTorch": rates["ONNX Runtime float32"] / rates["PyTorch float32"],
    }
    conditions = {
        "images": len(images),
        "precision": str(predictor.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    if config.json:
        print(json.dumps({**conditions, "images_per_second": rates, "ratios": ratios}))
        return
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for name, rate in rates.items():
        print(f"{name:<24}{rate:>8.1f} images/s")
    for name, ratio in ratios.items():
        print(f"{name:<24}{ratio:>8.1%}")


def write_train_images(folder: Path, predictor: Predictor, config: ThroughputConfig) -> Path:
    splits = reload_dataset(predictor.extraction["dataset"], config.data_dir).splits
    if "train" not in splits:
        raise UserError("no train split: give a folder of pictures")
    for i, image in enumerate(splits["train"].images[: config.pictures]):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:06d}.png")
    return folder


def onnx_session(predictor: Predictor) -> onnxruntime.InferenceSession:
    """With as many threads as PyTorch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = to_onnx(predictor).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    run_script(main, ThroughputConfig)
