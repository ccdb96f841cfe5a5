"""Export the whole pipeline as one ONNX file, to run without PyTorch or this repository, or the"""

import contextlib
import copy
import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch
import torchvision
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch import Tensor, nn

from dataset.load_dataset import reload_dataset
from src.clusters.head import ClusterHead
from src.models.architectures import TIMM
from src.models.backbone import Backbone
from src.models.encoder import TrainedBackbone
from src.models.preprocessing import preprocess
from src.prediction.backbone_card import backbone_card
from src.prediction.flags import ExportConfig
from src.prediction.predictor import Predictor
from src.runtime.cli import RunError, UserError
from src.storage import artifacts
from src.storage.files import refuse_to_replace, replacing

OPSET = 18
"""PyTorch's exporter writes it without a conversion."""

CERTAINTY = {"confidence": "largest", "margin": "1 - second / largest"}

MINIMUM_AGREEMENT = 0.999
"""Share of images that ONNX Runtime must put into the same cluster as PyTorch."""


class Pipeline(nn.Module):
    """uint8 images (N, 3, S, S) to the fields of `Predictions`, without the probabilities."""

    def __init__(self, backbone: Backbone, head: ClusterHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.backbone(preprocess(images)))[:-1]


def run(config: ExportConfig) -> None:
    if config.check_images < 0:
        raise UserError("--check-images must be 0 or above")
    if config.backbone:
        write_backbone(config.backbone, config)
        return
    with artifacts.only_writer(config.feature_dir):
        write_model(config)


def write_model(config: ExportConfig) -> None:
    predictor = Predictor.load(config.feature_dir, config.checkpoint, "cpu", "fp32")
    model = to_onnx(predictor)
    file = config.feature_dir / artifacts.MODEL
    with replacing(file) as temporary:
        temporary.write_bytes(model.SerializeToString())
        compared = _compare(temporary, predictor, config) if config.check_images else "not compared"
    size = file.stat().st_size / 1e6
    print(f"{file}: opset {OPSET}, {size:,.0f} MB, {compared}")


def write_backbone(file: Path, config: ExportConfig) -> None:
    """Write the backbone of a checkpoint as torchvision names it, and its card; safetensors also
    hold its origin and the normalization of the images."""
    if file.suffix not in (".safetensors", ".pt"):
        raise UserError(f"--backbone {file}: the name must end in .safetensors or .pt")
    refuse_to_replace("--backbone", file, "a backbone", _is_backbone)
    cpu = torch.device("cpu")
    trained = TrainedBackbone.load(config.checkpoint, config.checkpoint_dir, cpu)
    arch = trained.config["arch"]
    if not arch.startswith(TIMM) and arch not in torchvision.models.list_models():
        raise UserError(f"--backbone: torchvision has no {arch}, which {trained.file} holds")
    state = trained.backbone.published_state()
    about = {
        "format": "pt",  # as the library of safetensors asks for
        "architecture": arch,
        "image_size": str(trained.dataset["image_size"]),
        "mean": json.dumps(trained.backbone.mean),
        "std": json.dumps(trained.backbone.std),
        "checkpoint": trained.digest,
    }
    # PyTorch's own way into a file ends with a RuntimeError on a full disk, that of safetensors
    # makes a file for its owner only.
    content = io.BytesIO()
    if file.suffix == ".pt":
        torch.save(state, content)
    else:
        content.write(safetensors.torch.save(state, about))
    with replacing(file) as temporary:
        temporary.write_bytes(content.getbuffer())
    card = file.with_name(f"{file.name}.md")
    with replacing(card) as temporary:
        temporary.write_text(backbone_card(file, trained, config.feature_dir), encoding="utf-8")
    print(
        f"{file}: {arch} of {trained.file}, for images of {about['image_size']} px, red, green, "
        f"blue, from 0 to 1, less {about['mean']}, divided by {about['std']}; described in "
        f"{card.name}"
    )


def _is_backbone(file: Path) -> bool:
    """Whether it holds what `write_backbone` writes, and nothing else, as checkpoints do."""
    if file.suffix == ".pt":
        state = torch.load(file, weights_only=True, mmap=True)
        return "conv1.weight" in state and all(isinstance(x, Tensor) for x in state.values())
    with safetensors.safe_open(file, "pt") as tensors:
        return "architecture" in tensors.metadata()


def to_onnx(predictor: Predictor) -> onnx.ModelProto:
    """The checked ONNX model with its metadata."""
    trained_with = predictor.extraction["checkpoint"]
    assert predictor.backbone is not None
    assert trained_with is not None
    head = copy.deepcopy(predictor.head).float()  # many runtimes have no float64
    pipeline = Pipeline(predictor.backbone, head).eval()
    side = predictor.image_size
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # PyTorch's exporter about PyTorch itself
        program = torch.onnx.export(
            pipeline,
            (torch.zeros(2, 3, side, side, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["cluster", predictor.certainty_name, "distances", "unusual", "group"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Folding frozen batch norm into the convolutions is arithmetic on constants; do it once, here.
    no_limit = 1 << 31
    optimizer.optimize_ir(program.model, input_size_limit=no_limit, output_size_limit=no_limit)
    # The exporter's notes hold local paths.
    ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    recorded, head = predictor.extraction, predictor.head
    scale = head.confidence_scale if head.groups is None else head.group_scale
    metadata = {  # strings, as ONNX requires; lists and numbers are JSON
        "class_names": json.dumps(predictor.class_names),
        "cluster_to_class": json.dumps(predictor.cluster_to_class.tolist()),
        "cluster_names": json.dumps(predictor.cluster_names),
        "group_names": json.dumps(predictor.group_names),
        "image_size": str(predictor.image_size),
        "opset": str(OPSET),
        "images": "turned upright as EXIF says, shorter side resized to image_size (bicubic, "
        "antialiased), center cut out, RGB",
        predictor.certainty_name: f"{CERTAINTY[predictor.certainty_name]} of softmax of the "
        f"scores of the linear head of {'clusters' if head.groups is None else 'groups'} / "
        f"{scale!r}",
        "unusual": "distance to the nearest centroid, in all dimensions of the features, above "
        f"{head.unusual_distance!r}",
        "checkpoint": trained_with["digest"],
        "features": recorded["id"],
        "dataset": recorded["dataset"]["name"],
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_clusters(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """The cluster (N,) of uint8 images (N, 3, S, S), in batches as large as PyTorch's."""
    batches = (images[i : i + 64] for i in range(0, len(images), 64))
    return np.concatenate([np.asarray(session.run(["cluster"], {"images": x})[0]) for x in batches])


def _compare(file: Path, predictor: Predictor, config: ExportConfig) -> str:
    """Compare ONNX Runtime with PyTorch on images of the dataset, and describe the result.

    Raises:
        RunError: fewer than `MINIMUM_AGREEMENT` of the clusters are the same.
    """
    recorded = predictor.extraction["dataset"]
    try:
        dataset = reload_dataset(recorded, config.data_dir)
    except UserError as error:
        raise UserError(f"{error}; or skip the comparison: --check-images 0") from None
    split = list(dataset.splits)[-1]
    images = dataset.splits[split].images
    rows = np.linspace(0, len(images) - 1, min(config.check_images, len(images))).astype(int)
    expected = predictor.predict(images[rows])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    clusters = onnx_clusters(session, images[rows])
    same = int((clusters == expected.clusters).sum())
    if same < MINIMUM_AGREEMENT * len(rows):
        raise RunError(
            f"ONNX Runtime {onnxruntime.__version__} puts only {same} of {len(rows)} images into "
            f"the cluster that PyTorch {torch.__version__} does: no file was written"
        )
    assigned = predictor.manifest.load(artifacts.ASSIGNMENTS, split)[rows]
    return (
        f"of {len(rows)} {split} images ONNX Runtime puts {same} into the cluster that PyTorch "
        f"does in float32, {(clusters == assigned).sum()} into that of the clustering "
        f"(features in {predictor.extraction['precision']})"
    )
