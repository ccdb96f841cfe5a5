"""Export the whole pipeline as one ONNX file, to run without PyTorch or this repository, or the
backbone as a state dict for torchvision and timm.

    python src/export.py
    python src/export.py --backbone resnet50.safetensors    # from checkpoints/ alone

The first reads the outputs of src/clustering.py in features/ and the checkpoint they were made
with. Writes features/model.onnx: normalization, network (batch norm folded into the convolutions),
L2 normalization, PCA, linear head and centroids in float32.

    in    images      uint8 (N, 3, S, S), red, green, blue
    out   cluster     int64 (N,)
          confidence  float32 (N,); without labels its name is margin
          distances   float32 (N, K)
          unusual     bool (N,)

The metadata hold the class names, the class and the name of every cluster, the image size and the
origin of the model. Before the file takes its final name, ONNX Runtime and PyTorch are compared on
real images.

The second reads a checkpoint and writes all of torchvision's ResNet of that architecture but `fc`,
as safetensors or for torch.load, by the suffix. The network expects images that are normalized as
in src/models/preprocessing.py. A card next to it (FILE.md) describes data, recipe, scores (if they
are in features/), license and limits.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's own packages

from src.prediction.flags import ExportConfig
from src.runtime.cli import run_script


def main(config: ExportConfig) -> None:
    from src.prediction.onnx_export import run

    run(config)


if __name__ == "__main__":
    run_script(main, ExportConfig)
