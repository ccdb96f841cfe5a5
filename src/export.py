"""The whole pipeline as one ONNX file, to run without Python or PyTorch.

    python src/export.py

Reads the outputs of src/clustering.py in features/ and the checkpoint that they were made with.
Writes features/model.onnx: normalization, network (batch norm folded into the convolutions), L2
normalization, PCA and centroids in float32.

    in    images      uint8 (N, 3, S, S), red, green, blue
    out   cluster     int64 (N,)
          confidence  float32 (N,)
          distances   float32 (N, K)

The metadata hold class names, the class of every cluster, the image size and where the model comes
from. Before the file takes its name it is run in ONNX Runtime on real images beside PyTorch.
"""

import contextlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch import Tensor, nn

from dataset.load_dataset import reload_dataset
from src.models.preprocessing import preprocess
from src.models.simclr import Backbone
from src.prediction.predictor import ClusterHead, Predictor
from src.runtime.cli import RunError, UserError, run_script
from src.storage import artifacts

OPSET = 18
"""The one that PyTorch's exporter writes without a conversion."""

MINIMUM_AGREEMENT = 0.999
"""Share of images that ONNX Runtime puts into the same cluster as PyTorch."""


@dataclass(frozen=True)
class ExportConfig:
    feature_dir: Path = Path("features")
    """Where the clustering left its results; the model goes there too."""
    checkpoint: Path | None = None
    """Where the checkpoint is now, when it was moved since the features were extracted."""
    data_dir: Path | None = None
    """Where the images of the check are; None takes the place they were extracted from."""
    check_images: int = 256
    """How many images ONNX Runtime and PyTorch are compared on; 0 leaves the comparison out."""


class Pipeline(nn.Module):
    """uint8 images (N, 3, S, S) to cluster, confidence and distances."""

    def __init__(self, backbone: Backbone, head: ClusterHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.backbone(preprocess(images)))


def main(config: ExportConfig) -> None:
    if config.check_images < 0:
        raise UserError("--check-images must be 0 or above")
    predictor = Predictor.load(config.feature_dir, config.checkpoint, "cpu", "fp32")
    model = to_onnx(predictor)
    file = config.feature_dir / artifacts.MODEL
    with artifacts.replacing(file) as temporary:
        temporary.write_bytes(model.SerializeToString())
        compared = _compare(temporary, predictor, config) if config.check_images else "not tried"
    size = file.stat().st_size / 1e6
    print(f"{file}: opset {OPSET}, {size:,.0f} MB, {compared}")


def to_onnx(predictor: Predictor) -> onnx.ModelProto:
    """The checked ONNX model with its metadata."""
    pipeline = Pipeline(predictor.backbone, predictor.head).eval()
    side = predictor.image_size
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # PyTorch's exporter about PyTorch itself
        program = torch.onnx.export(
            pipeline,
            (torch.zeros(2, 3, side, side, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["cluster", "confidence", "distances"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Folding frozen batch norm into the convolutions is arithmetic on constants: done here, once.
    everything = 1 << 31
    optimizer.optimize_ir(program.model, input_size_limit=everything, output_size_limit=everything)
    # The exporter's notes hold paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    onnx.helper.set_model_props(model, _metadata(predictor))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(predictor: Predictor) -> dict[str, str]:
    """Strings, as ONNX wants them; lists and numbers are JSON."""
    recorded = predictor.extraction
    return {
        "class_names": json.dumps(predictor.class_names),
        "cluster_to_class": json.dumps(predictor.cluster_to_class.tolist()),
        "image_size": str(predictor.image_size),
        "opset": str(OPSET),
        "images": "turned upright as EXIF says, shorter side resized to image_size (bicubic, "
        "antialiased), center cut out, RGB",
        "confidence": f"largest softmax of -distances^2 / {predictor.head.temperature!r}",
        "checkpoint": recorded["checkpoint"]["digest"],
        "features": recorded["id"],
        "dataset": recorded["dataset"]["name"],
    }


def _compare(file: Path, predictor: Predictor, config: ExportConfig) -> str:
    """How far ONNX Runtime agrees with PyTorch on images of the run's own dataset.

    Raises:
        RunError: on too few of them.
    """
    recorded = predictor.extraction["dataset"]
    try:
        dataset = reload_dataset(recorded, config.data_dir)
    except UserError as error:
        raise UserError(f"{error}; or leave the comparison out: --check-images 0") from None
    split = list(dataset.splits)[-1]
    images = dataset.splits[split].images
    rows = np.linspace(0, len(images) - 1, min(config.check_images, len(images))).astype(int)
    expected = predictor.predict(images[rows])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    found = [session.run(["cluster"], {"images": images[part]})[0] for part in parts]
    clusters = np.concatenate([np.asarray(part) for part in found])
    same = int((clusters == expected.clusters).sum())
    if same < MINIMUM_AGREEMENT * len(rows):
        raise RunError(
            f"ONNX Runtime {onnxruntime.__version__} puts only {same} of {len(rows)} images into "
            f"the cluster that PyTorch {torch.__version__} does: no file was written"
        )
    assigned = artifacts.load(artifacts.ASSIGNMENTS, config.feature_dir, split)[rows]
    return (
        f"of {len(rows)} {split} images ONNX Runtime puts {same} into the cluster that PyTorch "
        f"does in float32, {(clusters == assigned).sum()} into that of the clustering "
        f"(features in {predictor.extraction['precision']})"
    )


if __name__ == "__main__":
    run_script(main, ExportConfig)
